"""How a run went, from the records of its `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from codetr_lab.viz import colors
from codetr_lab.viz.charts import curves_figure, styled

Curves = dict[str, tuple[list[float], list[float]]]


def loss_curves(records: Sequence[Mapping[str, Any]]) -> Curves:
    """Losses over steps by part of the model, terms and layers summed.

    `decoder <group>` for every group of queries, `head <name>` for every auxiliary head's own, and `encoder`.
    """
    curves: Curves = {}
    for record in records:
        sums: dict[str, float] = {}
        for name, value in record.get("losses", {}).items():
            part, _, rest = name.partition(".")
            owner = rest.partition(".")[0]
            key = {"decoder": f"decoder {owner}", "aux": f"head {owner}"}.get(part, part)
            sums[key] = sums.get(key, 0.0) + (float("nan") if value is None else value)
        for key, value in sums.items():
            steps, values = curves.setdefault(key, ([], []))
            steps.append(record["step"])
            values.append(value)
    return curves


def losses_figure(records: Sequence[Mapping[str, Any]], title: str = "") -> go.Figure:
    """Losses over training steps, on a logarithmic scale: solid in the decoder, dashed in the auxiliary heads.

    A group of queries and the head that it comes from share the head's colour.
    """
    curves = loss_curves(records)
    line_colors, dashes, named = {}, {}, {}
    for key, curve in curves.items():
        part, _, owner = key.partition(" ")
        name = {"decoder": "decoder, {} queries", "head": "{} head"}.get(part, part)
        name = name.format("original" if owner == "original" else colors.head_title(owner)) if owner else name
        named[name] = curve
        line_colors[name] = colors.head_color(owner) if owner else colors.TEXT
        dashes[name] = "dash" if part == "head" else "solid"
    figure = curves_figure(named, "training step", "loss", line_colors=line_colors, dashes=dashes, title=title)
    figure.update_yaxes(type="log", dtick="D2")  # ticks at 1, 2, 5
    return figure.update_layout(height=400)  # the legend has many rows


def metric_curves(records: Sequence[Mapping[str, Any]], metric: str = "AP") -> Curves:
    """An evaluation's number over steps by head."""
    curves: Curves = {}
    for record in records:
        for head, numbers in record.get("metrics", {}).items():
            value = numbers.get(metric)
            if value is not None:
                steps, values = curves.setdefault(head, ([], []))
                steps.append(record["step"])
                values.append(value)
    return curves


def metrics_figure(records: Sequence[Mapping[str, Any]], metric: str = "AP", title: str = "") -> go.Figure:
    """An evaluation's number (AP, AP50, ...) over training steps by head."""
    named = {colors.head_title(head): curve for head, curve in metric_curves(records, metric).items()}
    heads = {colors.head_title(head): colors.head_color(head) for head in metric_curves(records, metric)}
    figure = curves_figure(named, "training step", metric, line_colors=heads, title=title)
    for trace in figure.data:
        trace.mode = "lines+markers"
    figure.update_yaxes(rangemode="tozero")
    return figure


def runs_figure(runs: Mapping[str, Sequence[Mapping[str, Any]]], metric: str = "AP", title: str = "") -> go.Figure:
    """Several runs beside one another: the loss of the decoder's original queries, and an evaluation's number.

    This loss has the same terms for every K, so that it can be compared; the sum of all losses cannot.

    Args:
        runs: by name, the records of each.
        metric: of the main head.
        title: one line above.
    """
    panels = ("loss of the decoder's original queries", f"{metric} on images that were not trained on")
    figure = make_subplots(1, 2, subplot_titles=panels, horizontal_spacing=0.11)
    palette = [color for name, color in colors.HEAD_COLORS.items() if name not in colors.EXTRA_GROUPS]
    for number, (name, records) in enumerate(runs.items()):
        losses = loss_curves(records).get("decoder original", ([], []))
        evaluated = next(iter(metric_curves(records, metric).values()), ([], []))
        for column, (x, y) in enumerate((losses, evaluated), 1):
            figure.add_scatter(
                x=x, y=y, mode="lines+markers", name=name, legendgroup=name, showlegend=column == 1,
                line={"color": palette[number % len(palette)], "width": 2.5}, marker={"size": 5}, row=1, col=column,
            )  # fmt: skip
    styled(figure, "training step", "", title, 340)
    figure.update_yaxes(rangemode="tozero", row=1, col=2)
    return figure.update_layout(width=880, margin_t=76 if title else 36)
