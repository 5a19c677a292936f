"""The compiled operator as torch sees it: loaded from the libraries that `codetr_lab.build_ops` makes.

`torch.ops.codetr_lab.ms_deform_attn` and its backward are ordinary custom operators: they have fake kernels, so they
go through `torch.compile` and `torch.export`, an autograd formula and a rule for autocast.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from codetr_lab import build_ops

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What the values may be. Everything is computed in float32, for float64 values in float64."""


MEND = "run `codetr build-ops` (or `python -m codetr_lab.build_ops`)"


def _load() -> str:
    """Load the CPU's library.

    Returns:
        Empty, or one line that says why the operator is not there and how to get it.
    """
    built = build_ops.built_hash()
    if built is None:
        return f"it is not built; {MEND}"
    try:
        if built != build_ops.sources_hash():
            return f"it was built from other sources; {MEND}"
        torch.ops.load_library(str(build_ops.LIBRARY))
    except (OSError, RuntimeError) as error:
        return f"it does not load ({str(error).splitlines()[0]}); {MEND}"
    _register()
    return ""


def _load_cuda() -> str:
    """Load the GPUs' library; returns as `_load`."""
    built = build_ops.built_hash(build_ops.CUDA_LIBRARY)
    if built is None:
        return f"it is not built for GPUs; {MEND} where nvcc is"
    try:
        if built != build_ops.cuda_sources_hash():
            return f"it was built for GPUs from other sources; {MEND}"
        torch.ops.load_library(str(build_ops.CUDA_LIBRARY))
    except (OSError, RuntimeError) as error:
        return f"it does not load for GPUs ({str(error).splitlines()[0]}); {MEND}"
    return ""


def instruction_set() -> str:
    """What the CPU's kernels use here: `generic`, `avx2` or `avx512`. The operator must be loaded."""
    name = ctypes.CDLL(str(build_ops.LIBRARY)).codetr_ops_instruction_set
    name.restype = ctypes.c_char_p
    return name().decode()


def unavailable() -> str:
    """Empty when the operator may be used, else why not: `CODETR_OPS=reference` is set, or it did not load."""
    if os.environ.get("CODETR_OPS") == "reference":
        return "CODETR_OPS=reference is set"
    return NOT_LOADED


def unfit(value: Tensor) -> str:
    """Empty when the operator takes such values, else what is wrong with them."""
    if value.device.type == "cuda":
        if CUDA_NOT_LOADED:
            return CUDA_NOT_LOADED
        if value.dtype == torch.float64 or value.shape[-1] % 4:
            return "on GPUs it takes no float64, and heads whose channels are a multiple of 4"
    elif value.device.type != "cpu":
        return f"it has no kernel for {value.device.type}"
    if value.dtype not in DTYPES:
        return f"it takes {', '.join(str(dtype).removeprefix('torch.') for dtype in DTYPES)}, got {value.dtype}"
    if value[:1].numel() >= 2**31:
        return "an image's value has 2^31 elements or more"
    return ""


def ms_deform_attn(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The operator; arguments as in `codetr_lab.ops.ms_deform_attn`. `unavailable()` must be empty.

    Locations and weights are of the type that is computed in.
    """
    sizes = [side for shape in spatial_shapes for side in shape]
    return torch.ops.codetr_lab.ms_deform_attn(value, sizes, sampling_locations, attention_weights)


def _autocast(value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """Under autocast values take the low precision; where and how much is sampled stays float32."""
    kind = value.device.type
    if value.dtype != torch.float64:
        value, locations, weights = value.to(torch.get_autocast_dtype(kind)), locations.float(), weights.float()
    with torch.amp.autocast(kind, enabled=False):
        return torch.ops.codetr_lab.ms_deform_attn(value, spatial_shapes, locations, weights)


def _register() -> None:
    name, backward_name = "codetr_lab::ms_deform_attn", "codetr_lab::ms_deform_attn_backward"
    for key in ("AutocastCPU", "AutocastCUDA"):
        _rules.impl("ms_deform_attn", _autocast, key)

    @torch.library.register_fake(name)
    def _(value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
        return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])

    @torch.library.register_fake(backward_name)
    def _(
        grad_output: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[int],
        locations: Tensor,
        weights: Tensor,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(t.new_empty(t.shape) for t in (value, locations, weights))  # type: ignore[return-value]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        value, ctx.spatial_shapes, locations, weights = inputs
        ctx.save_for_backward(value, locations, weights)

    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        value, locations, weights = ctx.saved_tensors
        grad_value, grad_locations, grad_weights = torch.ops.codetr_lab.ms_deform_attn_backward(
            grad_output, value, ctx.spatial_shapes, locations, weights, torch.are_deterministic_algorithms_enabled()
        )
        return grad_value, None, grad_locations, grad_weights

    def no_second_order(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError("the compiled operator has no second derivative; use backend='reference'")

    torch.library.register_autograd(name, backward, setup_context=setup_context)
    torch.library.register_autograd(backward_name, no_second_order)


_rules = torch.library.Library("codetr_lab", "IMPL")  # what it registers lasts as long as it does

NOT_LOADED = _load()
"""Empty when the operator is there, else why it is not. Found out on import, so that compiled graphs see a constant."""

CUDA_NOT_LOADED = NOT_LOADED or _load_cuda()
"""The same for the part that runs on GPUs."""
