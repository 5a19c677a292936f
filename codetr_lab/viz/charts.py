"""Bars and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from codetr_lab.viz import colors
from codetr_lab.viz.image import FONT


def styled(figure: go.Figure, x_title: str, y_title: str, title: str, height: int) -> go.Figure:
    """Give a chart the look that all charts share."""
    layout = chart_layout(x_title, y_title, title, height)
    figure.update_xaxes(layout.pop("xaxis"))
    figure.update_yaxes(layout.pop("yaxis"))
    return figure.update_layout(layout)


def chart_layout(x_title: str, y_title: str, title: str, height: int) -> dict[str, Any]:
    """The look that all charts share, as Plotly's JSON."""
    axis = {"gridcolor": colors.GRID, "zerolinecolor": colors.GRID, "linecolor": colors.GRID, "automargin": True}
    return {
        "xaxis": {"title": {"text": x_title, "standoff": 8}, **axis},
        "yaxis": {"title": {"text": y_title, "standoff": 8}, **axis},
        "title": {
            "text": title, "x": 0, "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 8},
            "font": {"size": 16},
        },
        "font": {"family": FONT, "size": 13, "color": colors.TEXT},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 48, "r": 8, "t": 44 if title else 16, "b": 8},
        # At the very bottom, by the container: Plotly then makes room for all of its rows, whatever their number.
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        "hoverlabel": {"font": {"family": FONT, "size": 13}},
        "height": height,
    }  # fmt: skip


def positives_bar(counts: Mapping[str, Sequence[int]], objects: Sequence[str], title: str = "") -> go.Figure:
    """How many positives every object has, head by head.

    Args:
        counts: per head, one count per object (`Assignment.count_per_object`).
        objects: the objects' names.
        title: one line above the bars.

    Raises:
        ValueError: a head with another number of counts than there are objects.
    """
    figure = go.Figure()
    for head, values in counts.items():
        values = [int(value) for value in values]
        if len(values) != len(objects):
            raise ValueError(f"{head}: {len(values)} counts for {len(objects)} objects")
        name = colors.head_title(head)
        figure.add_trace(
            go.Bar(
                x=list(objects), y=values, name=name, marker={"color": colors.head_color(head)}, text=values,
                textposition="outside", cliponaxis=False,
                hovertemplate=f"<b>{name}</b><br>%{{x}}: %{{y}}<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.05)
    return styled(figure, "object", "positives", title, 300)


def grouped_bars_figure(
    values: Mapping[str, Mapping[str, float]],
    y_title: str,
    *,
    bar_colors: Mapping[str, str] | None = None,
    log: bool = False,
    digits: int = 3,
    title: str = "",
) -> go.Figure:
    """Bars in groups with their numbers above, for example the time of each case by backend.

    Args:
        values: `[name][group]`: one colour per name, one place on the x axis per group.
        y_title: with its unit.
        bar_colors: `#RRGGBB` per name; the palette in order for the names it leaves out.
        log: whether the y axis is logarithmic.
        digits: significant ones above the bars.
        title: one line above.
    """
    palette = list(colors.HEAD_COLORS.values())
    traces = [
        go.Bar(
            x=list(groups), y=list(groups.values()), name=name, cliponaxis=False, textposition="outside",
            marker={"color": (bar_colors or {}).get(name, palette[i % len(palette)])},
            text=[f"{v:.{digits}g}" for v in groups.values()],
            hovertemplate=f"{name}<br>%{{x}}: %{{y:.4g}}<extra></extra>",
        )
        for i, (name, groups) in enumerate(values.items())
    ]  # fmt: skip
    figure = go.Figure(traces, layout={"barmode": "group", "bargap": 0.25, "bargroupgap": 0.05, "showlegend": True})
    styled(figure, "", y_title, title, 340)
    return figure.update_yaxes(type="log", dtick=1) if log else figure


def curves_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_title: str,
    y_title: str,
    *,
    line_colors: Mapping[str, str] | None = None,
    dashes: Mapping[str, str] | None = None,
    title: str = "",
) -> go.Figure:
    """Curves by name, for example losses over steps or AP over epochs.

    Args:
        curves: per name, x and y of equal length.
        x_title: with its unit.
        y_title: with its unit.
        line_colors: `#RRGGBB` per name; the palette in order for the names it leaves out.
        dashes: Plotly's dash per name; solid, then others where the palette repeats, for the names it leaves out.
        title: one line above the curves.

    Raises:
        ValueError: a curve with different numbers of x and y.
    """
    palette = list(colors.HEAD_COLORS.values())
    patterns = ("solid", "dash", "dot", "dashdot")
    traces = []
    for i, (name, (x, y)) in enumerate(curves.items()):
        if len(x) != len(y):
            raise ValueError(f"curve {name!r}: {len(x)} x values for {len(y)} y values")
        color = (line_colors or {}).get(name, palette[i % len(palette)])
        dash = (dashes or {}).get(name, patterns[i // len(palette) % len(patterns)])
        line = {"color": color, "width": 2.5, "dash": dash}
        mode = "lines" if len(x) > 1 else "markers"
        traces.append(go.Scatter(x=list(x), y=list(y), mode=mode, line=line, name=name, marker={"color": color}))
    figure = go.Figure(traces, layout={"hovermode": "x unified"})
    return styled(figure, x_title, y_title, title, 360)
