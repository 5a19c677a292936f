"""One level of a feature pyramid, cell by cell, with the points at which it is read."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from codetr_lab.viz import colors
from codetr_lab.viz.charts import styled

RINGS = (colors.SELECTED, "#E69F00", "#009E73", "#7C20D8")
"""Colours of points, in turn; all are seen on blues."""


def cells_figure(values: np.ndarray, points: np.ndarray | None = None, title: str = "") -> go.Figure:
    """The numbers of one channel of one level, and a ring for every sampling point on it.

    Args:
        values: (H,W) one number per cell.
        points: (N,2) as (x, y) in units of the level's width and height, as `ops.ms_deform_attn` takes them: 0 is the
            left or top edge of the first cell, 1 the far edge of the last; None for no points.
        title: one line above.

    Raises:
        ValueError: values that are not (H,W), or points that are not (N,2).
    """
    values = np.asarray(values, dtype=np.float64)
    where = np.zeros((0, 2)) if points is None else np.asarray(points, dtype=np.float64)
    if values.ndim != 2 or where.ndim != 2 or where.shape[1] != 2:
        raise ValueError(f"expected (H,W) values and (N,2) points, got {values.shape} and {where.shape}")
    height, width = values.shape
    x, y = (where * [width, height] - 0.5).T
    figure = go.Figure(
        go.Heatmap(
            z=values, text=[[f"{v:.3g}" for v in row] for row in values], texttemplate="%{text}", colorscale="Blues",
            showscale=False, xgap=2, ygap=2, hovertemplate="row %{y}, column %{x}: %{z:.3g}<extra></extra>",
        )
    )  # fmt: skip
    for i, (column, row) in enumerate(zip(x, y, strict=True)):
        figure.add_scatter(
            x=[column], y=[row], mode="markers", name=f"point {i}", cliponaxis=False, showlegend=True,
            marker={"symbol": "circle-open", "size": 20, "color": RINGS[i % len(RINGS)], "line": {"width": 4}},
            hovertemplate="row %{y:.2f}, column %{x:.2f}",
        )  # fmt: skip
    styled(figure, "column", "row", title, 110 + 52 * height)
    left, right = min(-0.5, *x, 0) - 0.1, max(width - 0.5, *x, 0) + 0.1
    top, bottom = min(-0.5, *y, 0) - 0.1, max(height - 0.5, *y, 0) + 0.1
    figure.update_xaxes(
        range=[left, right], tickvals=list(range(width)), showgrid=False, zeroline=False, constrain="domain"
    )
    figure.update_yaxes(
        range=[bottom, top], tickvals=list(range(height)), showgrid=False, zeroline=False, scaleanchor="x"
    )
    return figure.update_layout(width=140 + round(52 * (right - left)))
