"""Scenes for the tests of label assignments: grids of candidates and random objects."""

from __future__ import annotations

import torch
from torch import Tensor

from codetr_lab.structures import Candidates


def grid(levels: tuple[int, ...] = (8, 16, 32), size: int = 128, scale: float = 3.0, offset: float = 0.5) -> Candidates:
    """Squares of `scale` strides around the middles of the cells of a square image (`offset` 0: around the corners)."""
    boxes, level, strides = [], [], []
    for index, stride in enumerate(levels):
        y, x = torch.meshgrid(torch.arange(0, size, stride), torch.arange(0, size, stride), indexing="ij")
        centre = torch.stack([x, y], -1).reshape(-1, 2).float() + offset * stride
        boxes.append(torch.cat([centre - scale * stride / 2, centre + scale * stride / 2], 1))
        level += [index] * len(centre)
        strides += [float(stride)] * len(centre)
    every = torch.cat(boxes)
    return Candidates(every, torch.tensor(level), torch.tensor(strides), torch.ones(len(every), dtype=torch.bool))


def objects(seed: int, count: int, size: int = 128) -> dict[str, Tensor]:
    """Random objects of 12 to 60 pixels; the fractions of their coordinates keep them off the grid's own numbers."""
    generator = torch.Generator().manual_seed(seed)
    side = 12 + torch.rand(count, 2, generator=generator) * 48
    corner = torch.rand(count, 2, generator=generator) * (size - side)
    return {"boxes": torch.cat([corner, corner + side], 1), "labels": torch.arange(count)}


def with_valid(candidates: Candidates, valid: Tensor) -> Candidates:
    return Candidates(candidates.boxes, candidates.level, candidates.stride, valid, costs=candidates.costs)


def with_costs(candidates: Candidates, costs: Tensor) -> Candidates:
    return Candidates(candidates.boxes, candidates.level, candidates.stride, candidates.valid, costs=costs)
