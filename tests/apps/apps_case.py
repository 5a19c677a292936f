"""The page's own models and images, small in number."""

from __future__ import annotations

import torch

from codetr_lab.data.shapes import Shapes
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.presets import create_model


def models() -> dict[str, CoDETR]:
    """Baseline and Co-DETR with random weights, the same every time."""
    made = {}
    for name in ("lab_baseline", "lab_co_k2"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made[name] = create_model(name).eval()
    return made


def images() -> Shapes:
    return Shapes(split="val", images=8)
