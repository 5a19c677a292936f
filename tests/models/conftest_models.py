"""Small models and batches for the tests of the model room."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.presets import create_model, preset
from codetr_lab.structures import ImageBatch, Target

SMALL = {
    "num_queries": 20,
    "transformer.hidden_dim": 32,
    "transformer.heads": 2,
    "transformer.ffn_dim": 48,
    "transformer.encoder_layers": 1,
    "transformer.decoder_layers": 2,
    "backbone.options": {"channels": (8, 8, 16, 16), "stem_width": 8},
    "faster_rcnn.proposals": 40,
    "faster_rcnn.roi_samples": 24,
    "faster_rcnn.roi_hidden": 16,
}
DINO = {
    "decoder": preset("co_dino_5scale_r50").decoder, "denoising.queries": 10, "queries.features": False,
    "soft_nms_iou": 0.8, "transformer.positional_temperature": 20, "transformer.positional_offset": 0.0,
}  # fmt: skip
"""What makes the small model a Co-DINO."""
AUX_HEADS = [(), ("atss",), ("faster_rcnn",), ("atss", "faster_rcnn"), ("atss", "atss")]


@pytest.fixture
def small() -> Callable[..., CoDETR]:
    """A factory of small models with fixed random weights: `small(("atss",), num_queries=5)`."""

    def build(aux_heads: tuple[str, ...] = (), seed: int = 0, **overrides) -> CoDETR:
        torch.manual_seed(seed)
        return create_model("lab_co_k2", aux_heads=aux_heads, **(SMALL | overrides))

    return build


def images(*sizes: tuple[int, int], seed: int = 0) -> ImageBatch:
    """Noise images of the given sizes."""
    generator = torch.Generator().manual_seed(seed)
    return ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in sizes])


def objects(*rows: tuple[float, float, float, float, int]) -> Target:
    """A target from (x0, y0, x1, y1, label) rows."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return {"boxes": table[:, :4].clone(), "labels": table[:, 4].long()}


TWO = (objects((4, 6, 40, 50, 0), (30, 20, 60, 44, 3)), objects((10, 10, 50, 60, 5)))
