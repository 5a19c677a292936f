"""A responsive grid of Plotly figures that reports clicks, on Gradio's `gr.HTML`.

Gradio's `gr.Plot` reports no clicks and draws a figure anew for every change. Here the installed plotly package's own
script is served from this machine, a panel is redrawn (`Plotly.react`) only if its figure changed, and a click on a
point of it sends `select` with the panel's name and the point's `customdata`.
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

PLOTLY_SCRIPT = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
_SCRIPT = Path(__file__).parent / "plot.js"


def allow_plotly_script() -> None:
    """Let Gradio serve plotly's script, and nothing else of that folder; call before the app is launched."""
    gr.set_static_paths([PLOTLY_SCRIPT])


@dataclass(frozen=True)
class Panel:
    """One figure of the grid: `name` identifies it in clicks, `note` is a line of text under the title."""

    name: str
    title: str
    figure: go.Figure
    note: str = ""
    color: str = ""


def figure_grid(label: str, **options: Any) -> gr.HTML:
    """Panels side by side, as many in a row as the width allows; its value is what `panels_json` gives.

    Its event `select` carries a `gr.EventData` with `panel` (the panel's name) and `row` (the point's `customdata`).
    A function, because Gradio writes a stub file beside every subclass of its components.
    """
    return gr.HTML(
        html_template=f'<div class="figure-grid" role="group" aria-label="{label}"></div>',
        js_on_load=_SCRIPT.read_text(encoding="utf-8"),
        head=f'<script src="/gradio_api/file={PLOTLY_SCRIPT}"></script>',
        apply_default_css=False,
        **options,
    )


def panels_json(panels: Sequence[Panel]) -> str:
    """The value of a `figure_grid`: a JSON list of `name`, `title`, `note`, `color` and Plotly's `figure`."""
    return "[" + ",".join(_panel_json(panel) for panel in panels) + "]"


def _panel_json(panel: Panel) -> str:
    words = {"name": panel.name, "title": panel.title, "note": panel.note, "color": panel.color}
    return json.dumps(words)[:-1] + ', "figure": ' + str(panel.figure.to_json()) + "}"
