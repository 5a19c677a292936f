"""What all explorers share: a figure that draws itself anew when a control moves, and stays in the saved notebook."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import plotly.graph_objects as go
import traitlets
from IPython.display import display
from plotly.offline import get_plotlyjs

from codetr_lab.viz.image import FONT

_CLASS = "codetr-explorer"
# JupyterLab and Notebook 7: where the explorer lives, the still figure in the same output is not needed.
_HIDE_STILL = f"<style>.jp-OutputArea:has(.{_CLASS}) .jp-RenderedPlotly {{ display: none }}</style>"
_NARROW = {"description_width": "initial"}


class FigureView(anywidget.AnyWidget):
    """A Plotly figure in a notebook, with clicks.

    Not plotly's own FigureWidget, because inside other widgets JupyterLab drew it empty (it opens its channel before
    it has its content), and because each one brings 5 MB of script, which a busy machine does not read within the two
    seconds that anywidget allows. Here the script is sent once for a page.
    """

    _esm = Path(__file__).parent / "figure.js"
    figure = traitlets.Unicode().tag(sync=True)
    """Plotly's JSON of what is shown."""

    def __init__(self, shown: go.Figure) -> None:
        super().__init__(figure=shown.to_json())
        self.shown = shown
        self.clicked: Callable[[go.Figure, list[float]], None] | None = None
        self.on_msg(self._receive)

    def replace(self, shown: go.Figure) -> None:
        """Show another figure."""
        self.shown = shown
        self.figure = shown.to_json()

    def _receive(self, _: Any, content: dict[str, Any], __: Any) -> None:
        if content.get("ask") == "plotly":
            self.send({"plotly": True}, buffers=[get_plotlyjs().encode()])
        elif "click" in content and self.clicked is not None and content["click"] < len(self.shown.data):
            row = [math.nan if value is None else float(value) for value in content["row"]]  # JSON has no NaN
            self.clicked(self.shown.data[content["click"]], row)


class Explorer(ipywidgets.VBox):
    """Controls above a figure.

    A subclass makes its controls, names them in `watched` and draws in `draw`; `finish` puts everything in place.
    """

    figure: FigureView

    def finish(self, rows: list[list[ipywidgets.Widget]], below: list[ipywidgets.Widget] | None = None) -> None:
        """Lay out the rows of controls, the figure and what goes below it; draw again whenever a control moves."""
        self.figure = FigureView(self.draw())
        self.listen()
        boxes = [
            ipywidgets.HBox(row, layout=ipywidgets.Layout(flex_flow="row wrap", align_items="center")) for row in rows
        ]
        super().__init__([ipywidgets.HTML(_HIDE_STILL), *boxes, self.figure, *(below or [])])
        self.add_class(_CLASS)
        for row in rows:
            for control in row:
                if control.has_trait("value") and not isinstance(control, ipywidgets.HTML):
                    control.observe(self.update, "value")

    def draw(self) -> go.Figure:
        """The figure for the present state of the controls."""
        raise NotImplementedError

    def listen(self) -> None:
        """Called after every drawing: renew texts and other figures."""

    def update(self, _: Any = None) -> None:
        """Draw again."""
        self.figure.replace(self.draw())
        self.listen()

    def static(self) -> go.Figure:
        """What is shown now, as an ordinary figure."""
        return self.draw()

    def _ipython_display_(self) -> None:
        """The explorer, and a still figure for the saved notebook, whose explorer is dead."""
        if "VSCODE_PID" not in os.environ and "google.colab" not in sys.modules:  # they would show both
            still = json.loads(self.static().to_json())
            display({"application/vnd.plotly.v1+json": still, "text/plain": "a figure"}, raw=True)
        display(self._repr_mimebundle_(), raw=True)


def slider(title: str, value: float, least: float, most: float, step: float) -> ipywidgets.Widget:
    """A labelled slider: whole numbers where the step is one."""
    kind = ipywidgets.IntSlider if step == 1 and float(value).is_integer() else ipywidgets.FloatSlider
    whole = int if kind is ipywidgets.IntSlider else float
    return kind(
        value=whole(value), min=whole(least), max=whole(most), step=whole(step), description=title, style=_NARROW,
        layout=ipywidgets.Layout(width="410px"),
    )  # fmt: skip


def choice(title: str, options: list[tuple[str, Any]], value: Any) -> ipywidgets.Dropdown:
    """A labelled choice."""
    return ipywidgets.Dropdown(options=options, value=value, description=title, style=_NARROW)


def words(text: str = "") -> ipywidgets.HTML:
    """A paragraph."""
    widget = ipywidgets.HTML()
    say(widget, text)
    return widget


def say(widget: ipywidgets.HTML, text: str) -> None:
    """Put plain words into a paragraph."""
    widget.value = f'<p style="font-family:{FONT};line-height:1.4;margin:4px 0;max-width:60em">{escape(text)}</p>'
