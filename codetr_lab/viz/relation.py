"""How far heads are from one another (Eq. 9; supplement, Fig. 1 and 2), and queries from one another (Fig. 7b)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from codetr_lab.viz import colors
from codetr_lab.viz.charts import chart_layout, styled
from codetr_lab.viz.sketch import Sketch, drawing


def relation_figure(matrix: np.ndarray, heads: Sequence[str], *, unit: str = "distance", title: str = "") -> go.Figure:
    """The matrix of distances between heads; the darker, the further apart their views of the same images.

    Args:
        matrix: (K,K) distances; NaN is left blank.
        heads: the K heads' names.
        unit: what the numbers are.
        title: one line above.

    Raises:
        ValueError: the matrix does not fit the heads.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (len(heads), len(heads)):
        raise ValueError(f"a matrix of shape {matrix.shape} for {len(heads)} heads")
    names = [colors.head_title(head) for head in heads]
    text = [["" if np.isnan(v) else f"{v:.3g}" for v in row] for row in matrix]
    figure = go.Figure(
        go.Heatmap(
            z=matrix, x=names, y=names, text=text, texttemplate="%{text}", colorscale="Blues", xgap=2, ygap=2,
            zmin=0, colorbar={"title": {"text": unit, "side": "right"}, "thickness": 12, "outlinewidth": 0},
            hovertemplate=f"%{{y}} and %{{x}}: {unit} %{{z:.4f}}<extra></extra>",
        )
    )  # fmt: skip
    styled(figure, "", "", title, 320)
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False, autorange="reversed")
    return figure


@drawing
def distances_figure(
    distances: Mapping[str, Mapping[str, Mapping[str, float]]], kind: str = "positive", title: str = ""
) -> Sketch:
    """How far customized queries are from the original ones (Fig. 7b), head by head.

    Args:
        distances: `analysis.query_distances`: `[head][kind][original positive | original negative]`.
        kind: which customized queries; objects' own boxes (`ground-truth box`) are not positives that a head found.
        title: one line above.
    """
    layout = chart_layout("", "distance in object sizes", title, 340) | {"barmode": "group", "showlegend": True}
    sketch = Sketch(layout=layout)
    for head, kinds in distances.items():
        values = kinds.get(kind, {})
        if values:
            numbers = list(values.values())
            sketch.add(
                "bar", x=[f"to {name.removeprefix('original ')}s" for name in values], y=numbers,
                marker={"color": colors.head_color(head)}, name=colors.head_title(head), cliponaxis=False,
                text=["" if np.isnan(v) else f"{v:.2f}" for v in numbers], textposition="outside",
                hovertemplate=f"{colors.head_title(head)} %{{x}}: %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
    return sketch


def bars_figure(
    values: Mapping[str, float], y_title: str, *, bar_colors: Mapping[str, str] | None = None, title: str = ""
) -> go.Figure:
    """One bar per name with its number above, for example the distances between kinds of queries."""
    shades = [(bar_colors or {}).get(name, colors.head_color("original")) for name in values]
    figure = go.Figure(
        go.Bar(
            x=list(values), y=list(values.values()), marker={"color": shades}, cliponaxis=False,
            text=[f"{v:.3g}" for v in values.values()], textposition="outside",
            hovertemplate="%{x}: %{y:.4f}<extra></extra>",
        )
    )  # fmt: skip
    return styled(figure, "", y_title, title, 300)


def positions_figure(points: Mapping[tuple[str, str], np.ndarray], title: str = "") -> go.Figure:
    """Where queries lie in their objects, each object stretched to the same square (Fig. 7a over many objects).

    Args:
        points: `analysis.relative_positions`: by (group, kind), (P,2) in object sizes from the object's centre.
        title: one line above.
    """
    figure = go.Figure()
    for (group, kind), at in sorted(points.items(), key=lambda item: item[0][0] == "original"):  # originals on top
        color, original = colors.head_color(group), group == "original"
        marker = {
            "color": color, "size": 11 if original else 6, "opacity": 0.75,
            "symbol": {"original positive": "x-thin", "ground-truth box": "cross"}.get(kind, "circle"),
            "line": {"color": color, "width": 2 if original else 0},
        }  # fmt: skip
        name = f"{colors.head_title(group)}: {kind} · {len(at)}"
        x, y = np.asarray(at, dtype=np.float32).T.round(3)
        figure.add_trace(go.Scatter(x=x, y=y, mode="markers", name=name, marker=marker))
    square = {"color": colors.TEXT, "width": 2}
    figure.add_shape(type="rect", x0=-0.5, y0=-0.5, x1=0.5, y1=0.5, line=square)
    styled(figure, "widths from the object's centre", "heights from the object's centre", title, 560)
    figure.update_xaxes(range=[-0.6, 0.6], dtick=0.25, constrain="domain")
    figure.update_yaxes(range=[0.6, -0.6], dtick=0.25, scaleanchor="x", constrain="domain")
    return figure.update_layout(width=520)
