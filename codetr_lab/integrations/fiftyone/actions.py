"""What the plugin's operators do: link to the workbench, assign again, run a model."""

from __future__ import annotations

import inspect
import urllib.parse
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from codetr_lab import assign
from codetr_lab.engine.checkpoint import load, shipped_models
from codetr_lab.images import load_image
from codetr_lab.integrations.records import IntegrationError
from codetr_lab.models.heads.anchors import make_anchors
from codetr_lab.structures import ImageBatch

if TYPE_CHECKING:
    import fiftyone as fo

    from codetr_lab.structures import Detections

WORKBENCH = "http://127.0.0.1:7860"
STRIDES = (8, 16, 32, 64)


def workbench_link(dataset: fo.Dataset, sample_id: str, address: str = WORKBENCH) -> str:
    """The workbench's page that shows a sample's image, by its number in the data set.

    Raises:
        IntegrationError: the dataset has no such sample, or was not built here.
    """
    found = dataset.select(sample_id)
    number = found.first()["number"] if len(found) and dataset.has_field("number") else None
    if number is None:
        raise IntegrationError(f"{dataset.name} has no sample {sample_id} that `codetr fiftyone` built")
    query = urllib.parse.urlencode({"tab": "assign", "image": number})
    return f"{address.rstrip('/')}/?{query}"


def models() -> list[str]:
    """Models that run without a download."""
    return list(shipped_models())


def rules() -> dict[str, dict[str, float]]:
    """Assignment rules that need anchors alone, with their numeric parameters and defaults."""
    chosen: dict[str, Any] = {"atss": assign.atss, "max_iou": assign.max_iou}
    return {
        name: {
            p.name: p.default
            for p in inspect.signature(rule).parameters.values()
            if isinstance(p.default, int | float) and not isinstance(p.default, bool)
        }
        for name, rule in chosen.items()
    }


def reassign(view: fo.DatasetView, rule: str, field: str, anchor_scale: float = 3.0, **parameters: float) -> int:
    """Write the positives of a rule over square anchors (one per cell, strides 8 to 64) into `field`.

    Args:
        anchor_scale: the anchors' side in strides.
        parameters: the rule's own.

    Returns:
        How many positives were written.

    Raises:
        IntegrationError: no such rule.
    """
    import fiftyone as fo

    if rule not in rules():
        raise IntegrationError(f"no rule {rule!r}; choose from {', '.join(rules())}")
    total = 0
    for sample in tqdm(view.iter_samples(autosave=True), total=len(view), desc=rule, unit="image"):
        width, height = sample.metadata.width, sample.metadata.height
        objects = [item for item in sample["ground_truth"].detections if not item["crowd"]]
        xywh = torch.tensor([item.bounding_box for item in objects]).reshape(-1, 4)
        whwh = torch.tensor([width, height, width, height])
        target = {
            "boxes": torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1) * whwh,
            "labels": torch.zeros(len(objects), dtype=torch.long),
        }
        batch = ImageBatch.from_images([torch.zeros(3, height, width)])
        levels = [torch.zeros(1, 1, -(-height // stride), -(-width // stride)) for stride in STRIDES]
        anchors = make_anchors(levels, STRIDES, torch.tensor([[anchor_scale, anchor_scale]]), batch)
        assignment = getattr(assign, rule)(anchors.candidates(0), target, **parameters)
        found = []
        for index in assignment.positive.nonzero()[:, 0].tolist():
            x0, y0, x1, y1 = (assignment.candidates.boxes[index] / whwh).tolist()
            owner = int(assignment.gt_index[index])
            found.append(
                fo.Detection(
                    label=objects[owner].label,
                    bounding_box=[x0, y0, x1 - x0, y1 - y0],
                    matched=objects[owner].id,
                    level=int(assignment.candidates.level[index]),
                    why=assignment.explain(index),
                )
            )
        sample[field] = fo.Detections(detections=found)
        total += len(found)
    return total


def run_model(view: fo.DatasetView, name: str, head: str, field: str, min_score: float = 0.2) -> int:
    """Write a model's detections of one head into `field`.

    Args:
        name: a shipped model, a run's folder, or a preset with weights.
        head: `detr` or an auxiliary head's name.

    Returns:
        How many detections were written.

    Raises:
        ConfigError: no such model or head.
    """

    model, total = load(name), 0
    for sample in tqdm(view.iter_samples(autosave=True), total=len(view), desc=name, unit="image"):
        image = load_image(sample.filepath)
        found = model.predict([image], heads=(head,))[0][head]
        labels = to_labels(found.select(found.scores >= min_score), image.shape[:2], model.config.classes)
        sample[field] = labels
        total += len(labels.detections)
    return total


def to_labels(found: Detections, size: tuple[int, ...], classes: tuple[str, ...]) -> fo.Detections:
    """Detections as FiftyOne keeps them: boxes as shares of the image."""
    import fiftyone as fo

    height, width = size[:2]
    share = found.boxes.cpu() / torch.tensor([width, height, width, height])
    rows: list[Any] = list(zip(share.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True))
    return fo.Detections(
        detections=[
            fo.Detection(
                label=classes[label] if classes else str(label), confidence=score,
                bounding_box=[x0, y0, x1 - x0, y1 - y0],
            )
            for (x0, y0, x1, y1), label, score in rows
        ]
    )  # fmt: skip
