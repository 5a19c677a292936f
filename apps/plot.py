"""A Gradio component of our own: a responsive grid of Plotly figures that reports clicks.

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


class FigureGrid(gr.HTML):
    """Panels side by side, as many in a row as the width allows; value: a list of `Panel`s.

    Events: `select`, whose `gr.EventData` has `panel` (the name) and `row` (the point's `customdata`).
    """

    def __init__(self, label: str, value: Sequence[Panel] | None = None, **kwargs: Any) -> None:
        super().__init__(
            value=value,
            html_template=f'<div class="figure-grid" role="group" aria-label="{label}"></div>',
            js_on_load=_SCRIPT.read_text(encoding="utf-8"),
            head=f'<script src="/gradio_api/file={PLOTLY_SCRIPT}"></script>',
            apply_default_css=False,
            **kwargs,
        )

    def postprocess(self, value: Sequence[Panel] | str | None) -> str | None:
        """The panels as one JSON text; plain text passes (Gradio sends a component's own value back)."""
        if value is None or isinstance(value, str):
            return value
        return "[" + ",".join(_panel_json(panel) for panel in value) + "]"

    def api_info(self) -> dict[str, Any]:
        return {"type": "string", "description": "JSON list of {name, title, note, color, figure}"}


def _panel_json(panel: Panel) -> str:
    words = {"name": panel.name, "title": panel.title, "note": panel.note, "color": panel.color}
    return json.dumps(words)[:-1] + ', "figure": ' + str(panel.figure.to_json()) + "}"
