"""A detector that trains a step in milliseconds, for the tests of this folder."""

from __future__ import annotations

from typing import Any

from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.presets import preset


def tiny(name: str = "lab_baseline", **overrides: Any) -> CoDETRConfig:
    """The preset with 16 channels, one encoder and two decoder layers, for 64-pixel images."""
    small: dict[str, Any] = {
        "num_queries": 10, "image.short": 64, "image.long": 64, "recipe.short_sides": (64,), "recipe.batch_size": 2,
        "backbone.options": {"channels": (8, 8, 16, 16), "stem_width": 8}, "transformer.hidden_dim": 16,
        "transformer.heads": 2, "transformer.points": 2, "transformer.ffn_dim": 32, "transformer.encoder_layers": 1,
        "transformer.decoder_layers": 2, "transformer.norm_groups": 4, "queries.maximum": 20, "recipe.steps": 6,
        "recipe.warmup_steps": 2, "faster_rcnn.roi_hidden": 16, "faster_rcnn.roi_size": 3, "faster_rcnn.proposals": 20,
    }  # fmt: skip
    return preset(name, **(small | overrides))
