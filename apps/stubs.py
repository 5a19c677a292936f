"""Gradio parses its own sources to write type stubs whenever it is imported: a second of every start, for editors.

It passes over classes that are in no file, so while it is imported its classes are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def no_stubs() -> Iterator[None]:
    """`import gradio` inside leaves its stubs as they are."""
    getfile = inspect.getfile

    def nowhere(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.startswith("gradio."):
            raise OSError("no stubs")
        return getfile(thing)

    inspect.getfile = nowhere  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = getfile
