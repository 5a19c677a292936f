"""Moving averages of weights: what a training run evaluates and saves, where its recipe says so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WARM_UP = 2000
"""Steps in which the share of new weights falls by a factor of e (release: `total_iter`)."""


def share(step: int, momentum: float) -> float:
    """The share of the new weights after `step` (0, 1, ...): nearly 1 at first, so that the start is forgotten, then
    `momentum`.

    Source: `ExpMomentumEMAHook` of `co_dino_5scale_vit_large_coco`.
    """
    return (1 - momentum) * math.exp(-(1 + step) / WARM_UP) + momentum


class EMA:
    """The moving average of a model's parameters and floating-point buffers, by their keys.

    Args:
        model: the average starts from its weights.
        momentum: the share of new weights in the long run, in (0, 1].
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        self.momentum = momentum
        self.average = {name: value.clone() for name, value in self._weights(model).items()}

    @staticmethod
    def _weights(model: nn.Module) -> dict[str, Tensor]:
        """The model's own tensors, which change as it learns."""
        return {name: value.detach() for name, value in model.state_dict().items() if value.is_floating_point()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step `step` (0, 1, ...)."""
        for name, value in self._weights(model).items():
            self.average[name].lerp_(value, share(step, self.momentum))

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Give the model the average and keep its weights here, or the other way round."""
        for name, value in self._weights(model).items():
            kept = value.clone()
            value.copy_(self.average[name])
            self.average[name].copy_(kept)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model has the average inside, and its own weights again afterwards."""
        self.swap(model)
        try:
            yield
        finally:
            self.swap(model)
