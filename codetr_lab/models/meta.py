"""What can be known of a model without its memory: it is built on PyTorch's meta device, which holds shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.config import CoDETRConfig, override
from codetr_lab.models.heads import AuxHead, build_heads
from codetr_lab.structures import ImageBatch

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


def part_sizes(model: CoDETR) -> dict[str, int]:
    """Number of parameters by part: top-level modules, and every auxiliary head and customizer by itself."""
    parts = dict(model.named_children())
    for group in ("heads", "customizers"):
        parts |= {f"{group}.{name}": part for name, part in getattr(model, group).items()}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


@dataclass(frozen=True)
class HeadCost:
    """What one auxiliary head adds in training.

    Attributes:
        head: parameters of its network. `queries`: parameters that make queries of its positives.
        multiply_adds: of its convolutions and matrix products when it detects in one image.
    """

    head: int
    queries: int
    multiply_adds: int


def head_cost(config: CoDETRConfig, size: tuple[int, int]) -> HeadCost:
    """The cost of the first of `config.aux_heads` on an image of `size` (height, width)."""
    model = meta_model(config)
    (name, meta), *_ = model.heads.items()
    queries = sum(p.numel() for p in model.customizers.parameters())
    head = build_heads(override(config, aux_heads=config.aux_heads[:1]), model.strides)[name]
    dim = config.transformer.hidden_dim
    pyramid = [torch.zeros(1, dim, -(-size[0] // s), -(-size[1] // s)) for s in model.strides]
    batch = ImageBatch.from_images([torch.zeros(3, *size)])
    with FlopCounterMode(display=False) as counter:
        cast("AuxHead", head).predict(pyramid, batch)
    return HeadCost(sum(p.numel() for p in meta.parameters()), queries, counter.get_total_flops() // 2)


def class_dependent(config: CoDETRConfig) -> set[str]:
    """The keys of the tensors whose shape depends on the number of classes."""
    few, more = (
        meta_model(override(config, classes=(), num_classes=n)).state_dict()
        for n in (config.num_classes, config.num_classes + 1)
    )
    return {key for key in few if few[key].shape != more[key].shape}
