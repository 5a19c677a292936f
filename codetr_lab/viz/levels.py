"""Feature maps of several levels beside one another, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from codetr_lab.structures import Target
from codetr_lab.viz.image import add_ground_truth, image_figure, side_by_side
from codetr_lab.viz.sketch import Sketch, drawing


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


@drawing
def votes_figure(
    image: np.ndarray, votes: np.ndarray, most: int, *, target: Target | None = None, title: str = ""
) -> Sketch:
    """How many heads claim each cell of a level, written into the cell; cells without a vote stay clear.

    Args:
        image: (H,W,3) uint8 RGB, padded as the batch was.
        votes: (h,w) whole numbers from 0 to `most`.
        most: how many heads voted.
        target: objects to outline.
        title: one line above the image.

    Raises:
        ValueError: votes below 0 or above `most`.
    """
    votes = np.asarray(votes, dtype=np.int64)
    if votes.min() < 0 or votes.max() > most:
        raise ValueError(f"votes from {votes.min()} to {votes.max()}, but there are {most} heads")
    height, width = image.shape[:2]
    dx, dy = width / votes.shape[1], height / votes.shape[0]
    sketch = image_figure.sketch(image, title)
    sketch.add(
        "heatmap", z=np.where(votes > 0, votes, np.nan), zmin=1, zmax=most, x0=dx / 2, dx=dx, y0=dy / 2, dy=dy, xgap=1,
        ygap=1, text=[[str(v) if v else "" for v in row] for row in votes.tolist()], texttemplate="%{text}",
        colorscale="Viridis", showscale=False, showlegend=False,
        hovertemplate=f"%{{z}} of {most} heads claim this cell<extra></extra>",
    )  # fmt: skip
    if target is not None:
        add_ground_truth(sketch, target, labels=False)
    return sketch
