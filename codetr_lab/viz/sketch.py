"""Figures as plain dicts, which a page that redraws with every move of a slider can send without Plotly's checks.

Plotly's classes check every property at every step; that was four fifths of the time of a slider's move. So the
figures on images are drawn as dicts. Who calls `assignment_figure(...)` still gets an ordinary, checked Figure;
`assignment_figure.sketch(...)` gives the dicts.
"""

from __future__ import annotations

import base64
import functools
import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Protocol, cast

import numpy as np
import plotly.graph_objects as go
from PIL import Image

P = ParamSpec("P")


@dataclass
class Sketch:
    """A figure in the making.

    Attributes:
        traces: as Plotly's JSON has them; arrays may be numpy's.
        layout: as Plotly's JSON has it.
        image: (H,W,3) uint8 RGB, the source of the layout's one image, which becomes a JPEG in `figure` alone.
    """

    traces: list[dict[str, Any]] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)
    image: np.ndarray | None = None

    def add(self, kind: str, **trace: Any) -> None:
        """One more trace, of Plotly's type `kind`."""
        self.traces.append({"type": kind, **trace})

    def figure(self) -> go.Figure:
        """The checked figure."""
        layout = self.layout
        if self.image is not None:
            layout = layout | {"images": [layout["images"][0] | {"source": jpeg_uri(self.image)}]}
        return go.Figure(self.traces, layout)


class Drawing(Protocol[P]):
    """A function that draws: it gives a Figure, and its `sketch` the same as a `Sketch`."""

    sketch: Callable[P, Sketch]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> go.Figure:
        """The checked figure."""
        ...


def drawing(sketch: Callable[P, Sketch]) -> Drawing[P]:
    """Make a function that returns a `Sketch` one that returns a Figure; the former stays as its `sketch`."""

    @functools.wraps(sketch)
    def figure(*args: P.args, **kwargs: P.kwargs) -> go.Figure:
        return sketch(*args, **kwargs).figure()

    made = cast("Any", figure)
    made.sketch = sketch
    made.__signature__ = inspect.signature(sketch).replace(return_annotation="go.Figure")
    return cast("Drawing[P]", made)


def jpeg_uri(image: np.ndarray, quality: int = 92) -> str:
    """A (H,W,3) uint8 RGB image as a JPEG data URI.

    Raises:
        ValueError: another shape or type.
    """
    stream = io.BytesIO()
    Image.fromarray(checked_image(image)).save(stream, "JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def checked_image(image: np.ndarray) -> np.ndarray:
    """The image.

    Raises:
        ValueError: it is not (H,W,3) uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
    return image
