"""What can be known of a model without its memory: it is built on PyTorch's meta device, which holds shapes alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.config import CoDETRConfig, override

Shapes = Mapping[str, tuple[int, ...]]

TRAINING_ONLY = ("heads.", "customizers.", "pyramid.")
"""Parts that detection by the decoder does not need."""


def meta_model(config: CoDETRConfig) -> CoDETR:
    """The model of `config` without values; quick even for the largest, and no file is read."""
    with torch.device("meta"):
        return CoDETR(override(config, **{"backbone.pretrained": False, "backbone.weights": None}))


def parameter_counts(config: CoDETRConfig) -> tuple[int, int]:
    """The number of all parameters, and of those that the decoder's detections need."""
    sizes = {name: parameter.numel() for name, parameter in meta_model(config).named_parameters()}
    used = sum(size for name, size in sizes.items() if not name.startswith(TRAINING_ONLY))
    return sum(sizes.values()), used


def class_dependent(config: CoDETRConfig) -> set[str]:
    """The keys of the tensors whose shape depends on the number of classes."""
    few, more = (
        meta_model(override(config, classes=(), num_classes=n)).state_dict()
        for n in (config.num_classes, config.num_classes + 1)
    )
    return {key for key in few if few[key].shape != more[key].shape}
