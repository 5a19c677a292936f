"""Cells of all pyramid levels in one row: their tokens and their anchors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codetr_lab.structures import Candidates, ImageBatch


def tokens(levels: Sequence[Tensor]) -> Tensor:
    """Maps (B,D,H_j,W_j) to (B, sum of H_j * W_j, D), cells in row-major order."""
    return torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)


@dataclass(frozen=True)
class Anchors:
    """S anchors, shared by the images of a batch: levels in order, then rows, then columns, then shapes.

    Attributes:
        boxes: (S,4) xyxy pixels, not clipped.
        level: (S,) long. `stride`: (S,) pixels.
        valid: (B,S) bool; the cell lies inside the image's padded size.
    """

    boxes: Tensor
    level: Tensor
    stride: Tensor
    valid: Tensor

    def candidates(self, image: int) -> Candidates:
        """What a label assignment of one image starts from."""
        return Candidates(self.boxes, self.level, self.stride, self.valid[image])


def anchor_sides(scale: float, per_octave: int, ratios: Sequence[float]) -> Tensor:
    """(A,2) widths and heights in strides: ratio (height over width) by ratio, each in `per_octave` sizes."""
    sizes = scale * 2 ** (torch.arange(per_octave) / per_octave)
    height = torch.tensor(ratios).sqrt()[:, None]
    return torch.stack([sizes / height, sizes * height], -1).flatten(0, 1)


def square_anchors(
    pyramid: Sequence[Tensor], strides: Sequence[int], scale: float, batch: ImageBatch, offset: float = 0.0
) -> Anchors:
    """One square of `scale` strides per cell."""
    sides = pyramid[0].new_full((1, 2), scale, dtype=torch.float32)
    return make_anchors(pyramid, strides, sides, batch, offset)


def make_anchors(
    pyramid: Sequence[Tensor], strides: Sequence[int], sides: Tensor, batch: ImageBatch, offset: float = 0.0
) -> Anchors:
    """Anchors of `sides` (A,2), width and height in strides, at every cell of the (B,D,H_j,W_j) levels.

    Their centres are the cells' top left corners, (column * stride, row * stride), moved by `offset` strides
    (release: center_offset 0).
    """
    boxes, corners, counts = [], [], []
    for feature, stride in zip(pyramid, strides, strict=True):
        height, width = feature.shape[-2:]
        y, x = torch.meshgrid(
            torch.arange(0, height * stride, stride, dtype=sides.dtype, device=sides.device),
            torch.arange(0, width * stride, stride, dtype=sides.dtype, device=sides.device),
            indexing="ij",
        )
        corner = torch.stack([x, y], -1).reshape(-1, 1, 2)
        centre, half = corner + offset * stride, sides * (stride / 2)
        boxes.append(torch.cat([centre - half, centre + half], -1).flatten(0, 1))
        corners.append(corner.expand(-1, len(sides), -1).flatten(0, 1))
        counts.append(len(boxes[-1]))
    repeats = torch.tensor(counts, device=sides.device)
    levels = torch.arange(len(counts), device=sides.device).repeat_interleave(repeats)
    padded = sides.new_tensor([(width, height) for height, width in batch.padded_sizes])
    valid = (torch.cat(corners) < padded[:, None]).all(-1)
    return Anchors(torch.cat(boxes), levels, sides.new_tensor(strides)[levels], valid)
