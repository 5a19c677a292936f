"""Feature maps of several levels beside one another, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from codetr_lab.viz.image import image_figure, side_by_side


def levels_figure(image: np.ndarray, levels: Sequence[np.ndarray], strides: Sequence[int]) -> go.Figure:
    """The length of the feature vector in every cell of every level, over the image; colours span each level's range.

    Args:
        image: (H,W,3) uint8 RGB, padded as the batch was.
        levels: (D,h,w) features of that image per level, finest first.
        strides: pixels per cell by level.

    Raises:
        ValueError: another number of strides than of levels.
    """
    if len(levels) != len(strides):
        raise ValueError(f"{len(levels)} levels, but {len(strides)} strides")
    height, width = image.shape[:2]
    panels = {}
    for number, (level, stride) in enumerate(zip(levels, strides, strict=True), 1):
        length = np.linalg.norm(np.asarray(level, dtype=np.float32), axis=0).round(4)
        rows, columns = length.shape
        dx, dy = width / columns, height / rows
        panel = image_figure(image)
        panel.add_trace(
            go.Heatmap(
                z=length, x0=dx / 2, dx=dx, y0=dy / 2, dy=dy, xgap=1, ygap=1, colorscale="Viridis", opacity=0.75,
                showscale=False, showlegend=False,
                hovertemplate="row %{y:.0f}, column %{x:.0f}, length %{z:.3f}<extra></extra>",
            )
        )  # fmt: skip
        panels[f"F_{number}: {rows} x {columns}, stride {stride}"] = panel
    return side_by_side(panels)
