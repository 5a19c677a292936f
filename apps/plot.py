"""A responsive grid of Plotly figures that reports clicks and drawn boxes, on Gradio's `gr.HTML`.

Gradio's `gr.Plot` reports no clicks and draws a figure anew for every change. Here the installed plotly package's own
script is served from this machine, a panel is redrawn (`Plotly.react`) only if its figure changed, and large parts of
figures are fetched once (`apps.parts`). A click on a point sends `select` with the panel's name, the point's
`customdata` and its trace's `meta`; a box drawn with the mouse sends `edit` with the panel's name and the box. Every
panel can be saved as a picture and as a page that needs nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import plotly
import plotly.graph_objects as go

from apps.parts import figure_json
from codetr_lab.viz.sketch import Sketch

PLOTLY_SCRIPT = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
_SCRIPTS = ("save.js", "plot.js")


def allow_plotly_script() -> None:
    """Let Gradio serve plotly's script, and nothing else of that folder; call before the app is launched."""
    gr.set_static_paths([PLOTLY_SCRIPT])


@dataclass(frozen=True)
class Panel:
    """One figure of the grid.

    Attributes:
        name: identifies it in clicks.
        title, note: a heading, and a line of text under it.
        color: of the little square before the title; none if empty.
        backdrop: address of a finer picture than the figure's own.
    """

    name: str
    title: str
    figure: go.Figure | Sketch
    note: str = ""
    color: str = ""
    backdrop: str = ""


def figure_grid(label: str, least: int = 220, **options: Any) -> gr.HTML:
    """Panels side by side, as many in a row as the width allows; its value is what `panels_json` gives.

    Its events carry a `gr.EventData`: `select` with `panel` (the panel's name), `row` (the point's `customdata`) and
    `meta` (its trace's), `edit` with `panel` and `box` (xyxy in the figure's pixels).
    A function, because Gradio writes a stub file beside every subclass of its components.

    Args:
        least: pixels that a panel needs at least.
    """
    style = f"--least: {least}px"
    return gr.HTML(
        html_template=f'<div class="figure-grid" role="group" aria-label="{label}" style="{style}"></div>',
        js_on_load="\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in _SCRIPTS),
        head=f'<script src="/gradio_api/file={PLOTLY_SCRIPT}"></script>',
        apply_default_css=False,
        **options,
    )


def panels_json(panels: Sequence[Panel], draw: bool = False) -> str:
    """The value of a `figure_grid`: a JSON list of `name`, `title`, `note`, `color`, `draw` and Plotly's `figure`.

    Args:
        draw: dragging the mouse draws a box instead of moving the picture.
    """
    return "[" + ",".join(_panel_json(panel, draw) for panel in panels) + "]"


def _panel_json(panel: Panel, draw: bool) -> str:
    words = {"name": panel.name, "title": panel.title, "note": panel.note, "color": panel.color, "draw": draw}
    return json.dumps(words)[:-1] + ', "figure": ' + figure_json(panel.figure, panel.backdrop) + "}"
