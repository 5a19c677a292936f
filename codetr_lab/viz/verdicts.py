"""One head's detections held against the image's objects: right, false, and what was missed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from codetr_lab.analysis.verdicts import Verdicts
from codetr_lab.structures import Detections, Target
from codetr_lab.viz import colors
from codetr_lab.viz.image import Marks, add_boxes, add_labels, centres, fit_legend, image_figure
from codetr_lab.viz.sketch import Sketch, drawing

FALSE, MISSED = "#B3261E", "#111111"
_MOST_LABELS = 12
"""Of each verdict: more would hide the picture, and are slow to draw."""
_FALSE_MARKS = Marks(FALSE, 1.6, "3px,3px")
_MISSED_MARKS = Marks("#FFFFFF", 2.2, "7px,4px", MISSED)


@drawing
def verdict_figure(
    image: np.ndarray,
    detections: Detections,
    found: Verdicts,
    target: Target,
    head: str,
    *,
    classes: Sequence[str] = (),
    title: str = "",
) -> Sketch:
    """Right detections in the head's colour, false ones dotted in red, missed objects dashed in black and white.

    The best 12 right and the best 12 false ones carry their class and score.

    Args:
        image: (H,W,3) uint8 RGB, in whose pixels the boxes are.
        detections: what the head found, above whatever score is asked for.
        found: `analysis.verdicts` of exactly these detections.
        target: the image's objects.
        head: whose detections they are; gives the colour.
        classes: class names.
        title: one line above the image.

    Raises:
        ValueError: `found` is about another number of detections.
    """
    if len(found.gt_index) != len(detections):
        raise ValueError(f"verdicts on {len(found.gt_index)} detections, but there are {len(detections)}")
    sketch = image_figure.sketch(image, title)
    color = colors.head_color(head)
    boxes, scores = detections.boxes.detach().numpy(), detections.scores.detach().numpy()
    words = [classes[label] if classes else f"class {label}" for label in detections.labels.tolist()]
    missed = found.missed.numpy()
    label = f"missed · {int(missed.sum())}"
    add_boxes(sketch, target["boxes"].numpy()[missed], _MISSED_MARKS, label, showlegend=False)
    if missed.any():  # a white line would not be seen in the legend
        marker = {"symbol": "square", "size": 10, "color": "#FFFFFF", "line": {"color": MISSED, "width": 2}}
        sketch.add("scatter", x=[None], y=[None], mode="markers", marker=marker, name=label, legendgroup=label)
    iou, owner = found.iou.numpy(), found.gt_index.numpy()
    for name, where, marks, symbol in (
        ("false", found.false.numpy(), _FALSE_MARKS, "x"),
        ("right", found.right.numpy(), Marks(color, 2.2), "circle"),
    ):
        if not where.any():
            continue
        label = f"{name} · {int(where.sum())}"
        add_boxes(sketch, boxes[where], marks, label, showlegend=True)
        x, y = centres(boxes[where])
        rows = np.stack([detections.source_index.numpy(), scores, iou, owner], 1)[where].astype(np.float64)
        marker = {"symbol": symbol, "size": 7, "color": marks.color, "line": {"color": "#FFFFFF", "width": 1}}
        sketch.add(
            "scatter", x=x, y=y, mode="markers", marker=marker, customdata=rows, showlegend=False, legendgroup=label,
            text=[words[i] for i in np.flatnonzero(where)],
            hovertemplate=f"<b>%{{text}}</b>, {name}<br>score %{{customdata[1]:.3f}}<br>IoU %{{customdata[2]:.3f}}"
            "<extra></extra>",
        )  # fmt: skip
        shown = np.flatnonzero(where)[np.argsort(-scores[where], kind="stable")[:_MOST_LABELS]][::-1]
        add_labels(sketch, boxes[shown], [f"{words[i]} {scores[i]:.2f}" for i in shown], marks.color)
    names = [classes[label] if classes else f"class {label}" for label in target["labels"][found.missed].tolist()]
    add_labels(sketch, target["boxes"].numpy()[missed], [f"missed {name}" for name in names], MISSED)
    return fit_legend(sketch)
