"""Detections as plain records, for `codetr predict` and whoever reads its `results.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codetr_lab.engine.checkpoint import write_atomically
from codetr_lab.structures import Detections


def record(
    image: str | Path, detections: Mapping[str, Detections], classes: Sequence[str], threshold: float = 0.0
) -> dict[str, Any]:
    """One image's detections by head: `box` (xyxy, pixels of the file), `score`, `label`, `class`; best first."""
    heads: dict[str, list[dict[str, Any]]] = {}
    for head, found in detections.items():
        shown = found.select(found.scores >= threshold)
        heads[head] = [
            {"box": [round(side, 2) for side in box], "score": round(score, 5), "label": label}
            | ({"class": classes[label]} if classes else {})
            for box, score, label in zip(
                shown.boxes.tolist(), shown.scores.tolist(), shown.labels.tolist(), strict=True
            )
        ]
    return {"image": str(image), "heads": heads}


def summary(record: Mapping[str, Any]) -> str:
    """One line per head: how many objects of which class."""
    lines = [str(record["image"])]
    for head, found in record["heads"].items():
        counts: dict[str, int] = {}
        for item in found:
            name = str(item.get("class", item["label"]))
            counts[name] = counts.get(name, 0) + 1
        listed = ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda pair: -pair[1]))
        lines.append(f"  {head:<14}{listed or 'nothing'}")
    return "\n".join(lines)


def write_results(path: str | Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as JSON, atomically.

    Raises:
        CheckpointError: the file cannot be written.
    """
    write_atomically(Path(path), (json.dumps(list(records), indent=1) + "\n").encode())
