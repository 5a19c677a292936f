"""Numbers of any selection of a dataset's samples, for the panels beside the grid; a few aggregations each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codetr_lab.integrations.fiftyone.judge import TRUTH, detection_fields
from codetr_lab.integrations.records import IOB_GRID, field_prefixes

if TYPE_CHECKING:
    import fiftyone as fo


def models_of(view: fo.DatasetView | fo.Dataset) -> list[str]:
    """The models that the dataset was built with; none if it was not built here."""
    return list((view._dataset.info.get("codetr_lab") or {}).get("models", []))


def mean_curves(view: fo.DatasetView | fo.Dataset) -> dict[str, tuple[list[float], list[float]]]:
    """By model: IoB, and the mean over the selected images of IoF at that IoB."""
    curves = {}
    for model, prefix in field_prefixes(models_of(view)).items():
        rows = [row for row in view.values(f"{prefix}iof_curve") if row] if view.has_field(f"{prefix}iof_curve") else []
        if rows:
            curves[model] = (IOB_GRID, [sum(column) / len(rows) for column in zip(*rows, strict=True)])
    return curves


def positives_per_object(view: fo.DatasetView | fo.Dataset) -> dict[str, dict[str, float]]:
    """By model and head: mean number of positives of the selected images' objects, crowds left out."""
    result: dict[str, dict[str, float]] = {}
    crowds = view.values(f"{TRUTH}.detections.crowd", unwind=True)
    for model, prefix in field_prefixes(models_of(view)).items():
        start = f"{prefix}positives_per_object_"
        for name in view.get_field_schema():
            if not name.startswith(start):
                continue
            head = name.removeprefix(start)
            counts = view.values(f"{TRUTH}.detections.{prefix}positives_{head}", unwind=True)
            kept = [c for c, crowd in zip(counts, crowds, strict=True) if c is not None and not crowd]
            if kept:
                result.setdefault(model, {})[head] = sum(kept) / len(kept)
    return result


def agreement(view: fo.DatasetView | fo.Dataset) -> tuple[list[str], list[list[float]]]:
    """Detection fields, and the share of objects found by the row's head that the column's head finds as well."""
    fields = [f for part in detection_fields(view._dataset, models_of(view)).values() for f in part]
    found = {
        field: [verdict == "tp" for verdict in view.values(f"{TRUTH}.detections.eval_{field}", unwind=True)]
        for field in fields
    }
    matrix = []
    for a in fields:
        total = sum(found[a])
        both = [sum(x and y for x, y in zip(found[a], found[b], strict=True)) for b in fields]
        matrix.append([n / total if total else float("nan") for n in both])
    return fields, matrix
