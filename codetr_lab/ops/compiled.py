"""The compiled operator as torch sees it: loaded from the library that `codetr_lab.build_ops` makes.

`torch.ops.codetr_lab.ms_deform_attn` and its backward are ordinary custom operators: they have fake kernels, so they
go through `torch.compile` and `torch.export`, and an autograd formula.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from codetr_lab import build_ops

DTYPES = (torch.float32, torch.float64)
"""What the CPU kernels take."""


def _load() -> str:
    """Load the library.

    Returns:
        Empty, or one line that says why the operator is not there and how to get it.
    """
    mend = "run `codetr build-ops` (or `python -m codetr_lab.build_ops`)"
    built = build_ops.built_hash()
    if built is None:
        return f"it is not built; {mend}"
    try:
        if built != build_ops.sources_hash():
            return f"it was built from other sources; {mend}"
        torch.ops.load_library(str(build_ops.LIBRARY))
    except (OSError, RuntimeError) as error:
        return f"it does not load ({str(error).splitlines()[0]}); {mend}"
    _register()
    return ""


def unavailable() -> str:
    """Empty when the operator may be used, else why not: `CODETR_OPS=reference` is set, or it did not load."""
    if os.environ.get("CODETR_OPS") == "reference":
        return "CODETR_OPS=reference is set"
    return NOT_LOADED


def unfit(value: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> str:
    """Empty when the operator takes these tensors, else what is wrong with them."""
    tensors = (value, sampling_locations, attention_weights)
    if any(t.device.type != "cpu" for t in tensors):
        return f"it has no kernel for {value.device.type}"
    if value.dtype not in DTYPES or any(t.dtype != value.dtype for t in tensors):
        return f"it takes float32 or float64, got {', '.join(str(t.dtype) for t in tensors)}"
    if value[:1].numel() >= 2**31:
        return "an image's value has 2^31 elements or more"
    return ""


def ms_deform_attn(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The operator; arguments as in `codetr_lab.ops.ms_deform_attn`. `unavailable()` must be empty."""
    sizes = [side for shape in spatial_shapes for side in shape]
    return torch.ops.codetr_lab.ms_deform_attn(value, sizes, sampling_locations, attention_weights)


def _register() -> None:
    name, backward_name = "codetr_lab::ms_deform_attn", "codetr_lab::ms_deform_attn_backward"

    @torch.library.register_fake(name)
    def _(value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
        return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])

    @torch.library.register_fake(backward_name)
    def _(
        grad_output: Tensor, value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(t.new_empty(t.shape) for t in (value, locations, weights))  # type: ignore[return-value]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, ctx.spatial_shapes, locations, weights = inputs
        ctx.save_for_backward(value, locations, weights)

    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        value, locations, weights = ctx.saved_tensors
        grad_value, grad_locations, grad_weights = torch.ops.codetr_lab.ms_deform_attn_backward(
            grad_output, value, ctx.spatial_shapes, locations, weights
        )
        return grad_value, None, grad_locations, grad_weights

    def no_second_order(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError("the compiled operator has no second derivative; use backend='reference'")

    torch.library.register_autograd(name, backward, setup_context=setup_context)
    torch.library.register_autograd(backward_name, no_second_order)


NOT_LOADED = _load()
"""Empty when the operator is there, else why it is not. Found out on import, so that compiled graphs see a constant."""
