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
        boxes: (S,4) xyxy pixels, not clipped. Their centres are the cells' top left corners (column * stride,
            row * stride), without half a cell's offset (release: center_offset 0).
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


def make_anchors(pyramid: Sequence[Tensor], strides: Sequence[int], sides: Tensor, batch: ImageBatch) -> Anchors:
    """Anchors of `sides` (A,2), width and height in strides, at every cell of the (B,D,H_j,W_j) levels."""
    boxes, corners, counts = [], [], []
    for feature, stride in zip(pyramid, strides, strict=True):
        height, width = feature.shape[-2:]
        y, x = torch.meshgrid(
            torch.arange(0, height * stride, stride, dtype=sides.dtype, device=sides.device),
            torch.arange(0, width * stride, stride, dtype=sides.dtype, device=sides.device),
            indexing="ij",
        )
        corner = torch.stack([x, y], -1).reshape(-1, 1, 2)
        half = sides * (stride / 2)
        boxes.append(torch.cat([corner - half, corner + half], -1).flatten(0, 1))
        corners.append(corner.expand(-1, len(sides), -1).flatten(0, 1))
        counts.append(len(boxes[-1]))
    repeats = torch.tensor(counts, device=sides.device)
    levels = torch.arange(len(counts), device=sides.device).repeat_interleave(repeats)
    padded = sides.new_tensor([(width, height) for height, width in batch.padded_sizes])
    valid = (torch.cat(corners) < padded[:, None]).all(-1)
    return Anchors(torch.cat(boxes), levels, sides.new_tensor(strides)[levels], valid)
