"""Every random "k of n" of the package goes through `choose`, so that one switch makes it reproducible by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_first_k: ContextVar[bool] = ContextVar("first_k", default=False)


def choose(items: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
    """At most `k` of the rows of `items`, drawn without replacement; all of them, in order, when there are no more.

    The draw happens on the CPU, so that the same seed picks the same rows on every device.
    """
    if len(items) <= k:
        return items
    if _first_k.get():
        return items[:k]
    picked = torch.randperm(len(items), generator=generator)[:k]
    return items[picked.to(items.device)]


@contextmanager
def first_k() -> Iterator[None]:
    """Inside, `choose` takes the first k instead of random ones, as the golden files need."""
    token = _first_k.set(True)
    try:
        yield
    finally:
        _first_k.reset(token)
