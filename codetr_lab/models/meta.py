"""What can be known of a model without its memory: it is built on PyTorch's meta device, which holds shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.config import CoDETRConfig, override

Shapes = Mapping[str, tuple[int, ...]]

TRAINING_ONLY = ("heads.", "customizers.", "pyramid.", "denoising.", "training_groups.", "selection.one_to_many.")
"""Parts that detection by the decoder does not need."""


class _NoValues(TorchFunctionMode):
    """Leaves out what only changes values: initialisation is most of the time that a model takes on the meta device."""

    _changes = frozenset({"uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._changes:
            return args[0] if args else kwargs["tensor"]  # of `torch.nn.init`
        return func(*args, **(kwargs or {}))


def meta_model(config: CoDETRConfig) -> CoDETR:
    """The model of `config` without values; quick even for the largest, and no file is read."""
    with torch.device("meta"), _NoValues():
        return CoDETR(override(config, **{"backbone.pretrained": False, "backbone.weights": None}))


def parameter_counts(config: CoDETRConfig) -> tuple[int, int]:
    """The number of all parameters, and of those that the main head's detections need."""
    model = meta_model(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    unused = TRAINING_ONLY if model.decoder else tuple(f"heads.{name}." for name in model.detectors[1:])
    used = sum(size for name, size in sizes.items() if not name.startswith(unused))
    return sum(sizes.values()), used


def class_dependent(config: CoDETRConfig) -> set[str]:
    """The keys of the tensors whose shape depends on the number of classes."""
    few, more = (
        meta_model(override(config, classes=(), num_classes=n)).state_dict()
        for n in (config.num_classes, config.num_classes + 1)
    )
    return {key for key in few if few[key].shape != more[key].shape}
