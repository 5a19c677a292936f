"""A selection of images in one figure: separation, positives per object, agreement of the heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from codetr_lab.viz import colors
from codetr_lab.viz.charts import curves_figure, styled

MODEL_COLORS = (colors.HEAD_COLORS["original"], colors.NEGATIVE, colors.HEAD_COLORS["paa"], colors.HEAD_COLORS["fcos"])
"""The first model strong, the one it is compared with grey."""


def mean_curves_figure(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], images: int) -> go.Figure:
    """The mean IoF-IoB curve of every model; the further up and right, the better objects stand out.

    Args:
        curves: per model, IoB and IoF.
        images: how many images were averaged.
    """
    shades = dict(zip(curves, MODEL_COLORS, strict=False))
    figure = curves_figure(
        curves, "IoB: share of background below the threshold", "IoF: share of objects above it", line_colors=shades,
        title=f"Encoder's features, mean of {images} images",
    )  # fmt: skip
    figure.update_xaxes(range=[0, 1])
    figure.update_yaxes(range=[0, 1.02])
    return figure


def mean_positives_figure(means: Mapping[str, Mapping[str, float]], images: int) -> go.Figure:
    """One bar per head and model with its mean number of positives per object.

    Args:
        means: per model and head.
        images: how many images were averaged.
    """
    figure = go.Figure()
    for row, (model, by_head) in enumerate(means.items()):
        names = [colors.head_title(head) for head in by_head]
        figure.add_trace(
            go.Bar(
                x=names, y=list(by_head.values()), name=model, text=[f"{value:.1f}" for value in by_head.values()],
                textposition="outside", cliponaxis=False,
                marker={"color": [colors.head_color(head) for head in by_head],
                        "pattern": {"shape": "" if row == 0 else "/", "fgcolor": "#FFFFFF"}},
                hovertemplate=f"{model}<br>%{{x}}: %{{y:.2f}} positives per object<extra></extra>",
            )
        )  # fmt: skip
    figure.update_layout(barmode="group", showlegend=len(means) > 1)
    return styled(figure, "", "positives per object", f"Positives of an object, mean of {images} images", 360)


def field_title(field: str) -> str:
    """What people call a field of a record: `atss` is "ATSS", `queries_atss` "ATSS queries".

    A field of another model carries its name: `lab_baseline_detr` is "DETR decoder, lab_baseline".
    """
    fixed = {"queries": "Original queries", "matched_queries": "Original queries, matched"}
    heads = {head: colors.head_title(head) for head in ("detr", *colors.HEAD_COLORS)}
    names = fixed | {f"queries_{head}": f"{title} queries" for head, title in heads.items()} | heads
    for name in sorted(names, key=len, reverse=True):
        if field == name:
            return names[name]
        if field.endswith(f"_{name}"):
            return f"{names[name]}, {field.removesuffix(f'_{name}')}"
    return field


def agreement_figure(fields: Sequence[str], matrix: Sequence[Sequence[float]], images: int) -> go.Figure:
    """Of the objects that the row's head finds, the share that the column's head finds too.

    Args:
        fields: K fields of detections.
        matrix: (K,K) shares in [0,1]; NaN where the row's head finds nothing.
        images: how many images were counted.
    """
    values = np.asarray(matrix, dtype=np.float64)
    names = [field_title(field) for field in fields]
    text = [["" if np.isnan(v) else f"{v:.0%}" for v in row] for row in values]
    figure = go.Figure(
        go.Heatmap(
            z=values, x=names, y=names, text=text, texttemplate="%{text}", colorscale="Blues", xgap=2, ygap=2, zmin=0,
            zmax=1, colorbar={"title": {"text": "share", "side": "right"}, "thickness": 12, "tickformat": ".0%"},
            hovertemplate="of what %{y} finds,<br>%{x} finds %{z:.1%}<extra></extra>",
        )
    )  # fmt: skip
    styled(figure, "is found by", "an object found by", f"Agreement at IoU 0.5, {images} images", 420)
    figure.update_yaxes(autorange="reversed")
    return figure
