"""Multi-scale deformable attention (Zhu et al., Deformable DETR, 2021, Eq. 3), without its linear projections."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from codetr_lab.ops import compiled

logger = logging.getLogger(__name__)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Weighted sum of bilinear samples of a feature pyramid.

    Args:
        value: (B,S,heads,D), the levels' cells one after the other, row by row; float32, float64, bfloat16 or float16.
        spatial_shapes: (height, width) of every level; the products sum to S.
        sampling_locations: (B,Q,heads,levels,points,2) as (x, y) in units of the level's width and height: 0 is the
            left or top edge of its first cell, 1 the far edge of its last. Outside, the value is zero.
        attention_weights: (B,Q,heads,levels,points). Sums are float32 (float64 for float64 values), and so are
            locations and weights, which are converted if they are not.
        backend: `compiled` (the C++ operator), `reference` (the formula in plain PyTorch), or `auto`: compiled where it
            is built and takes these tensors, else the formula; one log line says which. The environment variable
            `CODETR_OPS=reference` makes `auto` take the formula.

    Returns:
        (B,Q,heads * D), of the type of `value`.

    Raises:
        ValueError: sizes that do not fit, an unknown backend, or `compiled` where it cannot be had.
    """
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    if backend not in ("auto", "compiled", "reference"):
        raise ValueError(f"unknown backend {backend!r}; choose from auto, compiled, reference")
    computed = torch.float64 if value.dtype == torch.float64 else torch.float32
    sampling_locations, attention_weights = sampling_locations.to(computed), attention_weights.to(computed)
    if backend == "reference":
        return reference(value, spatial_shapes, sampling_locations, attention_weights)
    obstacle = compiled.unavailable() or compiled.unfit(value)
    if obstacle and backend == "compiled":
        raise ValueError(f"the compiled operator cannot be used: {obstacle}")
    if not torch.compiler.is_compiling():
        _announce(obstacle)
    function = reference if obstacle else compiled.ms_deform_attn
    return function(value, spatial_shapes, sampling_locations, attention_weights)


@functools.cache
def _announce(obstacle: str) -> None:
    """One log line for every way in which `auto` decides."""
    if obstacle:
        logger.info("deformable attention: plain PyTorch formula; the compiled operator is not used: %s", obstacle)
    else:
        logger.info("deformable attention: compiled operator")


def _check(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> None:
    if value.ndim != 4 or sampling_locations.ndim != 6 or sampling_locations.shape[-1] != 2:
        raise ValueError(
            "expected value (B,S,heads,D) and sampling_locations (B,Q,heads,levels,points,2), got "
            f"{tuple(value.shape)} and {tuple(sampling_locations.shape)}"
        )
    batch, tokens, heads, _ = value.shape
    if sum(h * w for h, w in spatial_shapes) != tokens:
        raise ValueError(
            f"value holds {tokens} tokens, but spatial_shapes {list(spatial_shapes)} describe another number"
        )
    if sampling_locations.shape[:-1] != attention_weights.shape or sampling_locations.shape[3] != len(spatial_shapes):
        raise ValueError(
            f"sampling_locations {tuple(sampling_locations.shape)} and attention_weights "
            f"{tuple(attention_weights.shape)} do not fit {len(spatial_shapes)} levels"
        )
    if sampling_locations.shape[0] != batch or sampling_locations.shape[2] != heads:
        raise ValueError(
            f"sampling_locations {tuple(sampling_locations.shape)} do not fit value {tuple(value.shape)}: "
            "batch size and heads must be the same"
        )


def reference(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The formula through `grid_sample`, one level at a time; arguments as in `ms_deform_attn`."""
    stored, value = value.dtype, value.to(sampling_locations.dtype)
    batch, _, heads, depth = value.shape
    queries = sampling_locations.shape[1]
    # (B,Q,heads,levels,points,2) in [0,1] -> (levels, B*heads, Q, points, 2) in [-1,1]
    grids = (2 * sampling_locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    values = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B*heads, D, S)
    per_level = values.split([h * w for h, w in spatial_shapes], dim=2)
    sampled = [
        F.grid_sample(cells.unflatten(2, shape), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        for cells, shape, grid in zip(per_level, spatial_shapes, grids, strict=True)
    ]  # each (B*heads, D, Q, points)
    weights = attention_weights.permute(0, 2, 1, 3, 4).reshape(batch * heads, 1, queries, -1)
    output = (torch.cat(sampled, dim=-1) * weights).sum(-1)  # (B*heads, D, Q)
    return output.view(batch, heads * depth, queries).transpose(1, 2).to(stored)
