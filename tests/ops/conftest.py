"""Deformable attention's inputs, and the operator when it is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codetr_lab.ops import ms_deform_attn

Shapes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Inputs:
    """What deformable attention takes, and a gradient of its output."""

    value: Tensor
    shapes: Shapes
    locations: Tensor
    weights: Tensor
    grad: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same numbers in another type; locations and weights in the one that is computed in."""
        computed = torch.float64 if dtype == torch.float64 else torch.float32
        locations, weights = self.locations.to(computed), self.weights.to(computed)
        return Inputs(self.value.to(dtype), self.shapes, locations, weights, self.grad.to(dtype))

    def run(self, backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Output, then the gradients of value, locations and weights."""
        leaves = [t.detach().clone().requires_grad_() for t in (self.value, self.locations, self.weights)]
        output = ms_deform_attn(leaves[0], self.shapes, leaves[1], leaves[2], backend=backend)
        return (output.detach(), *torch.autograd.grad(output, leaves, self.grad))


Factory = Callable[..., Inputs]


def make_inputs(
    batch: int = 2,
    heads: int = 3,
    depth: int = 16,
    shapes: Shapes = ((7, 9), (3, 4), (1, 1)),
    points: int = 4,
    queries: int = 11,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    away_from_centres: bool = False,
) -> Inputs:
    """Random inputs, an eighth of the points outside.

    With `away_from_centres` every coordinate is at least a tenth of a cell from those where the gradient jumps.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(h * w for h, w in shapes)
    value = torch.randn(batch, tokens, heads, depth, generator=generator, dtype=dtype)
    locations = torch.rand(batch, queries, heads, len(shapes), points, 2, generator=generator, dtype=dtype) * 1.2 - 0.1
    if away_from_centres:
        sizes = torch.tensor([(w, h) for h, w in shapes], dtype=dtype)[:, None]
        cells = locations * sizes - 0.5
        locations = (cells.floor() + 0.1 + 0.8 * (cells - cells.floor()) + 0.5) / sizes
    weights = torch.rand(batch, queries, heads, len(shapes), points, generator=generator, dtype=dtype)
    grad = torch.randn(batch, queries, heads * depth, generator=generator, dtype=dtype)
    return Inputs(value, shapes, locations, weights / weights.sum((-1, -2), keepdim=True), grad)
