"""Where the decoder's cross-attention looks: its sampling points splatted onto the image (Fig. 2, right)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from codetr_lab.analysis.discriminability import AnalysisError, valid_mean_resize
from codetr_lab.structures import QueryGroup, Size, Trace


def splat(locations: Tensor, weights: Tensor, shapes: Sequence[Size]) -> list[Tensor]:
    """How much of every memory cell the sampling points read: the transpose of bilinear sampling.

    A point takes its value from the four cells around it; here each cell gets the share that it gave. So the sum over
    all cells of (map x value) is what the attention reads of the value, and a map sums to the weights of its points,
    less what falls outside (where sampling reads zero).

    Args:
        locations: (B,Q,heads,levels,points,2), normalised by the padded level.
        weights: (B,Q,heads,levels,points).
        shapes: (h,w) of every level.

    Returns:
        (B,1,h,w) per level.
    """
    maps = []
    for level, (height, width) in enumerate(shapes):
        where = locations[:, :, :, level].flatten(1, 3) * locations.new_tensor([width, height]) - 0.5  # (B,P,2)
        amount = weights[:, :, :, level].flatten(1)
        corner = where.floor()
        flat = amount.new_zeros(len(where), height * width)
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            cell = corner + corner.new_tensor([dx, dy])
            share = (1 - (where - cell).abs()).clamp(min=0).prod(-1) * amount
            x, y = cell.long().unbind(-1)
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
            flat.scatter_add_(1, index, torch.where(inside, share, 0))
        maps.append(flat.view(-1, 1, height, width))
    return maps


def matched_queries(group: QueryGroup, layer: int = -1) -> Tensor:
    """(B,Q) bool: the queries that one layer's assignment made positive.

    Raises:
        AnalysisError: the group has no assignments.
    """
    if not group.assignments:
        raise AnalysisError(f"group {group.name!r} has no assignments; call model.trace(batch, targets)")
    return torch.stack([assignment.positive & assignment.used for assignment in group.assignments[layer]])


def cross_attention(
    trace: Trace,
    group: str = "original",
    layer: int = -1,
    queries: Literal["all", "matched"] | Tensor = "matched",
) -> Tensor:
    """The attention score of every pixel in one decoder layer, for some of a group's queries together.

    The shares that the memory's cells give (`splat`) are spread over the pixels that a cell covers, resized
    bilinearly, summed over levels and divided by the maximum, so that the score can be read like D(F) of Eq. 7.
    (The paper does not say how. Unlike in Eq. 7 the levels keep their weight: attention shares itself among them.)

    Args:
        group: `original`, `denoising` or an auxiliary head.
        layer: of the decoder.
        queries: `matched` by this layer, `all`, or (B,Q) bool.

    Returns:
        (B,1,H,W) in [0,1] of the padded batch, 0 where padded; all 0 in an image without such queries.

    Raises:
        AnalysisError: no such group, no recorded attention, no assignments to match by, or a mask of another shape.
    """
    if group not in trace.groups:
        raise AnalysisError(f"the trace has no group {group!r}; it has {', '.join(trace.groups) or 'none'}")
    found = trace.groups[group]
    if found.sampling_locations is None or found.attention_weights is None:
        raise AnalysisError("the attention was not recorded; use model.trace")
    locations, weights = found.sampling_locations[layer].detach(), found.attention_weights[layer].detach()
    chosen = _chosen(found, layer, queries, weights)
    shapes = [(int(level.shape[-2]), int(level.shape[-1])) for level in trace.memory]
    maps = splat(locations.float(), weights.float() * chosen[:, :, None, None, None], shapes)
    pad_mask = trace.batch.pad_mask
    size = (pad_mask.shape[1], pad_mask.shape[2])
    total = torch.zeros(len(pad_mask), 1, *size, device=weights.device)
    for amount in maps:
        cells_per_pixel = amount.shape[-2] * amount.shape[-1] / (size[0] * size[1])
        total += valid_mean_resize(amount, pad_mask) * cells_per_pixel
    peak = total.amax(dim=(1, 2, 3), keepdim=True)
    return total / torch.where(peak > 0, peak, 1)


def _chosen(group: QueryGroup, layer: int, queries: str | Tensor, weights: Tensor) -> Tensor:
    if isinstance(queries, str):
        if queries == "matched":
            return matched_queries(group, layer)
        if queries == "all":
            return torch.ones(weights.shape[:2], dtype=torch.bool, device=weights.device)
        raise AnalysisError(f"queries is {queries!r}; give 'matched', 'all' or a mask")
    if queries.shape != weights.shape[:2]:
        raise AnalysisError(f"queries has shape {tuple(queries.shape)}, the group {tuple(weights.shape[:2])}")
    return queries.bool().to(weights.device)
