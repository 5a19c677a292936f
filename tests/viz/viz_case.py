"""One hand-made image with two objects and an assignment of five candidates, for all tests of the figures."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from codetr_lab.structures import IGNORED, NEGATIVE, Assignment, Candidates, Detections, Quality, Target

CLASSES = ("circle", "square", "star")


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    """(H,W,3) uint8."""
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def target() -> Target:
    return {"boxes": torch.tensor([[4.0, 4, 20, 20], [30, 10, 50, 30]]), "labels": torch.tensor([2, 1])}


def assignment(**changes: Any) -> Assignment:
    """Positive: 0 (the object's own box) and 1 for object 0, 2 for object 1; 3 negative; 4 ignored."""
    boxes = torch.tensor([[4.0, 4, 20, 20], [6, 4, 22, 20], [30, 10, 50, 28], [0, 30, 10, 40], [26, 2, 46, 22]])
    level = torch.tensor([0, 0, 1, 0, 1])
    stride = torch.tensor([8.0, 8, 16, 8, 16])
    candidates = Candidates(boxes, level, stride, torch.ones(5, dtype=torch.bool))
    made = Assignment(
        candidates, target(), torch.tensor([0, 0, 1, NEGATIVE, IGNORED]), torch.tensor([True, True, True, True, False]),
        Quality("IoU", True), torch.tensor([0.5, 0.6]), "a rule",
    )  # fmt: skip
    return replace(made, **changes)


def detections() -> Detections:
    return Detections(
        torch.tensor([[4.0, 4, 20, 20], [30, 10, 50, 30], [0, 0, 5, 5]]), torch.tensor([0.9, 0.5, 0.2]),
        torch.tensor([2, 1, 0]), torch.tensor([7, 3, 1]),
    )  # fmt: skip


def array(value: Any) -> np.ndarray:
    """A trace's column, which Plotly may hold as base64."""
    if isinstance(value, dict):
        flat = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
        shape = [int(side) for side in str(value.get("shape", len(flat))).split(",")]
        return flat.reshape(shape)
    return np.asarray(value, dtype=float)
