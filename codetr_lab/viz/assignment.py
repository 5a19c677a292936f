"""What one label assignment did with one image: its candidates, its positives by pyramid level, and its objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from codetr_lab import boxes as box_ops
from codetr_lab.structures import Assignment
from codetr_lab.viz import colors
from codetr_lab.viz.image import WEBGL_FROM, Marks, add_boxes, add_ground_truth, centres, fit_legend, image_figure
from codetr_lab.viz.sketch import Sketch, drawing

COLUMNS = ("candidate", "stride", "iou", "object", "threshold", "score")
"""What every marker of `assignment_figure` carries as `customdata`; NaN where there is none."""
_MOST_BOXES = 150


def overlaps(assignment: Assignment, object_index: int | None = None) -> np.ndarray:
    """(M,) IoU of every candidate: with `object_index`; else with its own object, or the best one for a negative.

    NaN in an image without objects.
    """
    candidates, truth = assignment.candidates.boxes.detach(), assignment.target["boxes"]
    if not len(truth) or not len(candidates):
        return np.full(len(candidates), np.nan)
    if object_index is not None:
        return box_ops.iou(candidates, truth[object_index]).numpy()
    table = box_ops.iou(candidates[:, None], truth)
    own = table.gather(1, assignment.gt_index.clamp(min=0)[:, None])[:, 0]
    return own.where(assignment.positive, table.amax(1)).numpy()


def candidate_table(assignment: Assignment, object_index: int | None = None) -> np.ndarray:
    """(M, 6) float64, the `COLUMNS` of every candidate."""
    candidates, gt = assignment.candidates, assignment.gt_index.numpy()
    table = np.full((len(candidates), len(COLUMNS)), np.nan)
    table[:, 0] = np.arange(len(candidates))
    table[:, 1] = candidates.stride.numpy()
    table[:, 2] = overlaps(assignment, object_index)
    table[gt >= 0, 3] = gt[gt >= 0]
    thresholds = assignment.threshold.detach().numpy()
    about = gt if object_index is None else np.full_like(gt, object_index)
    if len(thresholds):
        table[about >= 0, 4] = thresholds[about[about >= 0]]
    if candidates.scores is not None and len(candidates):
        scores = candidates.scores.detach()
        table[:, 5] = (scores if scores.ndim == 1 else scores.sigmoid().amax(1)).numpy()
    return table


def _hover(assignment: Assignment, table: np.ndarray, state: str) -> str:
    """The text beside the pointer; lines that the data cannot fill are left out."""
    limit = "threshold" if assignment.quality.higher_is_better else "cost of its match"
    lines = [f"<b>%{{customdata[0]:.0f}} · {state}</b>"]
    if np.isfinite(table[:, 3]).all():
        lines.append("object %{customdata[3]:.0f}")
    if (table[:, 1] > 0).all():
        lines.append("stride %{customdata[1]:.0f}")
    if np.isfinite(table[:, 2]).all():
        lines.append("IoU %{customdata[2]:.3f}")
    if np.isfinite(table[:, 4]).all():
        lines.append(f"{limit} %{{customdata[4]:.3f}}")
    if np.isfinite(table[:, 5]).all():
        lines.append("score %{customdata[5]:.2f}")
    return "<br>".join(lines) + "<extra></extra>"


def _add_markers(
    sketch: Sketch, assignment: Assignment, table: np.ndarray, where: np.ndarray, state: str, marker: dict[str, Any],
    **trace: Any,
) -> None:  # fmt: skip
    """One trace with the centres of the candidates where `where` is True."""
    index = np.flatnonzero(where)
    if not len(index):
        return
    x, y = _inside(sketch, assignment.candidates.boxes.detach().numpy()[index])
    rows = table[index]
    sketch.add(
        "scattergl" if len(index) >= WEBGL_FROM else "scatter", x=x, y=y, mode="markers", marker=marker,
        customdata=rows, hovertemplate=_hover(assignment, rows, state), **trace,
    )  # fmt: skip


def _inside(sketch: Sketch, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres of boxes; those of a coarse level's last cells lie beyond the image, and are put on its edge."""
    picture = sketch.layout["images"][0]
    x, y = centres(boxes)
    return x.clip(0, picture["sizex"]), y.clip(0, picture["sizey"])


def _add_positives(
    sketch: Sketch, assignment: Assignment, table: np.ndarray, where: np.ndarray, color: str, boxes: bool
) -> None:
    """The positives level by level: symbol and shade say the level, the legend says how many."""
    level, stride = assignment.candidates.level.numpy(), assignment.candidates.stride.numpy()
    levels = np.unique(level[assignment.candidates.valid.numpy()])
    shades = colors.level_shades(color, len(levels))
    for shade, this in zip(shades, levels.tolist(), strict=True):
        here = where & (level == this)
        if not here.any():
            continue
        title = "matched" if this < 0 else f"stride {stride[here][0]:g}"
        name = f"{title} · {int(here.sum())}"
        if boxes:
            drawn = assignment.candidates.boxes.detach().numpy()[here]
            add_boxes(sketch, drawn, Marks(shade, 1.2, opacity=0.75), name, showlegend=False)
        symbol = colors.LEVEL_SYMBOLS[max(this, 0) % len(colors.LEVEL_SYMBOLS)]
        marker = {"symbol": symbol, "size": 10, "color": shade, "line": {"color": "#FFFFFF", "width": 1.5}}
        _add_markers(sketch, assignment, table, here, "positive", marker, name=name, legendgroup=name)


@drawing
def assignment_figure(
    image: np.ndarray,
    assignment: Assignment,
    head: str,
    *,
    classes: Sequence[str] = (),
    object_index: int | None = None,
    selected: int | None = None,
    title: str = "",
) -> Sketch:
    """One image, its objects, and which candidates one head made positive.

    Every marker carries `COLUMNS` as `customdata`, so that a click says which candidate was meant.

    Args:
        image: (H,W,3) uint8 RGB, in whose pixels the assignment's boxes are.
        assignment: what the head's rule decided for this image.
        head: whose assignment it is; gives the colour.
        classes: class names for the objects' labels.
        object_index: show the positives of this object alone (as boxes, too); all objects if None.
        selected: a candidate to point out.
        title: one line above the image.

    Raises:
        ValueError: no such object or candidate.
    """
    count = len(assignment.target["boxes"])
    if object_index is not None and not 0 <= object_index < count:
        raise ValueError(f"object {object_index}: this image has {count} objects")
    if selected is not None and not 0 <= selected < len(assignment.candidates):
        raise ValueError(f"candidate {selected}: this assignment has {len(assignment.candidates)} candidates")
    sketch = image_figure.sketch(image, title)
    table = candidate_table(assignment, object_index)
    gt, valid, used = assignment.gt_index.numpy(), assignment.candidates.valid.numpy(), assignment.used.numpy()
    mine = gt >= 0 if object_index is None else gt == object_index

    def lay(where: np.ndarray, state: str, words: str, marker: dict[str, Any], rank: int) -> None:
        """Markers that lie below the positives, as one entry of the legend."""
        # Of markers on one spot, Plotly answers a click for the smallest: those under a positive are not asked.
        hidden = where & np.isin(place, place[mine & used])
        common = {"name": f"{words} · {int(where.sum())}", "legendgroup": words, "legendrank": rank}
        _add_markers(sketch, assignment, table, where & ~hidden, state, marker, **common)
        alone = bool((where & ~hidden).any())
        _add_markers(sketch, assignment, table, hidden, state, marker, **common, hoverinfo="skip", showlegend=not alone)

    x, y = centres(assignment.candidates.boxes.detach().numpy())
    place, color = x + 1j * y, colors.head_color(head)
    many = len(assignment.candidates) > WEBGL_FROM  # whole dots would cover the image
    dot = {
        "size": 2 if many else 4, "color": colors.NEGATIVE, "opacity": 0.5 if many else 0.75, "line": {"width": 0},
    }  # fmt: skip
    cross = {"symbol": "x", "size": 6, "color": colors.IGNORED, "line": {"color": "#FFFFFF", "width": 1}}
    faint = {"size": 6, "color": color, "opacity": 0.35, "line": {"width": 0}}
    hollow = {"symbol": "circle-open", "size": 8, "color": color, "line": {"color": color, "width": 1.5}}
    lay(assignment.negative.numpy() & valid, "negative", "negative", dot, 2000)
    lay(assignment.ignored.numpy() & valid, "ignored", "ignored", cross, 1900)
    lay((gt >= 0) & used & ~mine, "positive", "other objects", faint, 1200)
    lay(mine & ~used, "not sampled", "not sampled", hollow, 1100)

    add_ground_truth(sketch, assignment.target, classes, object_index)
    chosen = mine & used
    own = chosen & (assignment.candidates.boxes == assignment.target_boxes).all(1).numpy()
    plus = {"symbol": "cross", "size": 10, "color": color, "line": {"color": "#FFFFFF", "width": 1.5}}
    _add_markers(
        sketch, assignment, table, own, "positive: the object's own box", plus, name=f"own box · {int(own.sum())}",
        legendrank=1050,
    )  # fmt: skip
    chosen &= ~own
    boxes = chosen.sum() <= _MOST_BOXES and (object_index is not None or chosen.sum() <= 2 * count)
    _add_positives(sketch, assignment, table, chosen, color, bool(boxes))
    if selected is not None:
        box = assignment.candidates.boxes.detach().numpy()[selected : selected + 1]
        add_boxes(sketch, box, Marks(colors.SELECTED, 2.5), "chosen candidate", showlegend=True)
        ring = {"symbol": "circle-open", "size": 18, "color": colors.SELECTED, "line": {"width": 3}}
        x, y = _inside(sketch, box)
        sketch.add("scatter", x=x, y=y, mode="markers", marker=ring, hoverinfo="skip", showlegend=False)
    return fit_legend(sketch)
