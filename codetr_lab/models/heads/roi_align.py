"""RoIAlign (He et al., 2017) as two small matrix products per image: much faster than sampling on small maps on CPU."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

SMALL_MAP = 32 * 32
"""Maps of up to this many cells are pooled by matrices on the CPU; beyond, the dense products cost more."""


def roi_align(feature: Tensor, boxes: Tensor, image: Tensor, size: int, scale: float) -> Tensor:
    """Average of bilinear samples in each of size x size bins of every box (aligned, adaptive sampling).

    Args:
        feature: (B,D,H,W).
        boxes: (R,4) xyxy pixels.
        image: (R,) long, ascending; the image that each box is in.
        scale: cells per pixel.

    Returns:
        (R,D,size,size).
    """
    if feature.device.type != "cpu" or feature.shape[-2] * feature.shape[-1] > SMALL_MAP:
        numbered = torch.cat([image[:, None].to(boxes), boxes], 1)
        return torchvision.ops.roi_align(feature, numbered, size, scale, sampling_ratio=-1, aligned=True)
    return roi_align_matrices(feature, boxes, image, size, scale)


def roi_align_matrices(feature: Tensor, boxes: Tensor, image: Tensor, size: int, scale: float) -> Tensor:
    """`roi_align` by products: averaging a product grid of bilinear samples separates into rows and columns."""
    count, channels, height, width = feature.shape
    edges = boxes.detach() * scale - 0.5
    rows = _averages(edges[:, 1], edges[:, 3], size, height)
    columns = _averages(edges[:, 0], edges[:, 2], size, width)
    pooled = []
    counts = torch.bincount(image, minlength=count).tolist()
    for level, row, column in zip(feature, rows.split(counts), columns.split(counts), strict=True):
        narrowed = row.flatten(0, 1) @ level.permute(1, 2, 0).reshape(height, -1)
        pooled.append(column[:, None] @ narrowed.view(len(row), size, width, channels))
    return torch.cat(pooled).permute(0, 3, 1, 2)


def _averages(start: Tensor, end: Tensor, size: int, cells: int) -> Tensor:
    """(R,size,cells) weights that average bilinear samples in `size` bins between `start` and `end`, in cells.

    A bin takes as many evenly spaced samples as it is cells long, rounded up, so none in a box without extent; samples
    more than a cell outside the map count as zero.
    """
    bins = ((end - start) / size)[:, None, None]
    samples = bins.ceil()
    step = torch.arange(int(samples.max()) if len(samples) else 0, device=start.device)
    number = torch.arange(size, device=start.device)[:, None]
    share = 1 / samples.clamp(min=1)
    at = start[:, None, None] + bins * (number + (step + 0.5) * share)
    weight = ((step < samples) & (at >= -1) & (at <= cells)) * share
    distance = at.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=start.device)
    return ((1 - distance.abs()).clamp(min=0) * weight[..., None]).sum(2)
