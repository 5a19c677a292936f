"""Computed values by key: those that were asked for last, as many as fit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

T = TypeVar("T")


class Memory:
    """Keeps about `most` bytes of values. Two who ask for the same key at once share one computation.

    Different keys do not wait for each other, so that a slider is not held up by somebody else's new image.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._locks: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The remembered value of `key`, or what `compute` gives."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
            own = self._locks.setdefault(key, threading.Lock())
        with own:
            with self._lock:
                if key in self._values:
                    return self._values[key][0]
            value = compute()
            with self._lock:
                size = held_bytes(value)
                self._values[key] = (value, size)
                self._held += size
                while self._held > self._most and len(self._values) > 1:
                    self._held -= self._values.popitem(last=False)[1][1]
                self._locks.pop(key, None)
        return value


def held_bytes(value: Any) -> int:
    """The bytes of all tensors, arrays and texts inside dataclasses, mappings, lists and tuples."""
    if isinstance(value, Tensor | np.ndarray):
        return int(value.nbytes)
    if isinstance(value, str):
        return len(value)
    if is_dataclass(value) and not isinstance(value, type):
        return sum(held_bytes(getattr(value, f.name)) for f in fields(value))
    if isinstance(value, Mapping):
        return sum(map(held_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(held_bytes, value))
    return 0
