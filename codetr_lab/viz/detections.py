"""What heads found in an image, above a score threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from codetr_lab.structures import Detections, Target
from codetr_lab.viz import colors
from codetr_lab.viz.image import (
    Marks,
    add_boxes,
    add_ground_truth,
    add_labels,
    centres,
    fit_legend,
    image_figure,
    side_by_side,
)
from codetr_lab.viz.sketch import Sketch, drawing

_MOST_LABELS = 12
_HOVER = "<b>%{text}</b><br>score %{customdata[1]:.3f}<br>source %{customdata[0]:.0f}<extra></extra>"


@drawing
def detection_figure(
    image: np.ndarray,
    detections: Detections,
    head: str,
    threshold: float,
    *,
    classes: Sequence[str] = (),
    target: Target | None = None,
    title: str = "",
) -> Sketch:
    """One head's detections with a score of at least `threshold`; the best 12 carry their class and score.

    Args:
        image: (H,W,3) uint8 RGB, in whose pixels the boxes are.
        detections: what the head found.
        head: whose detections they are; gives the colour.
        threshold: in [0,1].
        classes: class names.
        target: ground truth to draw as well.
        title: one line above the image.
    """
    sketch = image_figure.sketch(image, title)
    if target is not None:
        add_ground_truth(sketch, target, labels=False)
    kept = detections.select(detections.scores >= threshold)
    color = colors.head_color(head)
    boxes, scores, labels = kept.boxes.detach().numpy(), kept.scores.detach().numpy(), kept.labels.numpy()
    name = f"{colors.head_title(head)} · {len(kept)}"
    add_boxes(sketch, boxes, Marks(color, 2.0), name, showlegend=True)
    words = [classes[label] if classes else f"class {label}" for label in labels.tolist()]
    order = np.argsort(-scores, kind="stable")[:_MOST_LABELS][::-1]
    add_labels(sketch, boxes[order], [f"{words[i]} {scores[i]:.2f}" for i in order], color)
    if len(kept):
        x, y = centres(boxes)
        rows = np.stack([kept.source_index.numpy(), scores, labels], 1).astype(np.float64)
        marker = {"size": 6, "color": color, "line": {"color": "#FFFFFF", "width": 1}}
        sketch.add(
            "scatter", x=x, y=y, mode="markers", marker=marker, customdata=rows, text=words, showlegend=False,
            hovertemplate=_HOVER,
        )  # fmt: skip
    return fit_legend(sketch)


def detections_figure(
    image: np.ndarray,
    detections: Mapping[str, Detections],
    threshold: float,
    *,
    classes: Sequence[str] = (),
    target: Target | None = None,
) -> go.Figure:
    """Several heads' detections on the same image, side by side; the keys are head names (`detr`, `atss`, ...)."""
    return side_by_side(
        {
            colors.head_title(head): detection_figure(image, found, head, threshold, classes=classes, target=target)
            for head, found in detections.items()
        }
    )
