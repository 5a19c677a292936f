"""Queries on their image: where they start, of which kind they are (Fig. 7a), and where one of them looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from codetr_lab import boxes as box_ops
from codetr_lab.structures import EMPTY, GROUND_TRUTH, PADDING_NEGATIVE, QUERY_KINDS, QueryGroup, Size, Target
from codetr_lab.viz import colors
from codetr_lab.viz.image import Marks, add_boxes, add_ground_truth, fit_legend, image_figure, side_by_side
from codetr_lab.viz.sketch import Sketch, drawing

COLUMNS = ("query", "kind", "score", "object")
"""What every marker of `query_figure` carries as `customdata`; object is -1 where there is none."""
_KIND_SYMBOLS = {GROUND_TRUTH: "cross", PADDING_NEGATIVE: "x-thin"}
_ORIGINAL_NEGATIVE = "diamond-open"


def pixel_boxes(boxes: np.ndarray, size: Size) -> np.ndarray:
    """(..., 4) xyxy pixels of boxes normalised by `size` (height, width); (..., 2) centres become empty boxes."""
    height, width = size
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.shape[-1] == 2:
        boxes = np.concatenate([boxes, np.zeros_like(boxes)], -1)
    half = boxes[..., 2:] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], -1) * np.array([width, height] * 2)


def query_objects(group: QueryGroup, layer: int, image: int = 0) -> np.ndarray:
    """(Q,) the object that each query was given in a layer, -1 where none (or where there were no targets)."""
    if not group.assignments:
        return np.full(group.kind.shape[1], -1)
    return group.assignments[layer][image].gt_index.clamp(min=-1).numpy()


@drawing
def query_figure(
    image: np.ndarray,
    groups: Mapping[str, QueryGroup],
    size: Size,
    *,
    index: int = 0,
    layer: int = 0,
    target: Target | None = None,
    classes: Sequence[str] = (),
    object_index: int | None = None,
    selected: tuple[str, int] | None = None,
    title: str = "",
) -> Sketch:
    """Where the queries of every group are (Fig. 7a): what decoder layer `layer` reads, or -1 for what comes out.

    A group's colour is its head's. Filled markers are positives; padding negatives of a customized group are thin
    crosses, and a Faster R-CNN object's own box is a plus: neither is a positive that a head found.

    Args:
        image: (H,W,3) uint8 RGB, the valid part of the image that was traced.
        groups: by name, from a trace.
        size: the image's valid (height, width), by which boxes are normalised.
        index: which image of the batch.
        layer: 0..L-1, or -1 for the last layer's boxes.
        target: objects to draw.
        classes: class names.
        object_index: show only queries of this object.
        selected: group and query to point out.
        title: one line above the image.

    Raises:
        ValueError: no such object, or no such query.
    """
    if object_index is not None and not (target is not None and 0 <= object_index < len(target["boxes"])):
        raise ValueError(
            f"object {object_index}: this image has {0 if target is None else len(target['boxes'])} objects"
        )
    sketch = image_figure.sketch(image, title)
    if target is not None:
        add_ground_truth(sketch, target, classes, object_index)
    for name, group in groups.items():
        boxes = group.boxes_cxcywh[-1] if layer < 0 else group.reference_boxes[layer]
        xyxy = pixel_boxes(boxes[index].detach().numpy(), size)
        scores = group.logits[-1, index].sigmoid().amax(-1).detach().numpy()
        kind, owner = group.kind[index].numpy(), query_objects(group, -1 if layer < 0 else layer, index)
        _add_group(sketch, name, xyxy, scores, kind, owner, object_index)
        if selected is not None and selected[0] == name:
            if not 0 <= selected[1] < len(xyxy):
                raise ValueError(f"query {selected[1]}: the group {name!r} has {len(xyxy)} queries")
            add_boxes(sketch, xyxy[selected[1]][None], Marks(colors.SELECTED, 2.5), "chosen query", showlegend=True)
    return fit_legend(sketch)


def _add_group(
    sketch: Sketch, name: str, xyxy: np.ndarray, scores: np.ndarray, kind: np.ndarray, owner: np.ndarray,
    object_index: int | None,
) -> None:  # fmt: skip
    """One trace per kind of query in one group."""
    color, title = colors.head_color(name), colors.head_title(name)
    x, y = (xyxy[:, 0] + xyxy[:, 2]) / 2, (xyxy[:, 1] + xyxy[:, 3]) / 2
    rows = np.stack([np.arange(len(xyxy)), kind, scores, owner], 1).astype(np.float64)
    for this in np.unique(kind[kind != EMPTY]).tolist():
        plain = QUERY_KINDS[this] == "plain"
        for matched in (False, True) if plain else (True,):
            where = (kind == this) & ((owner >= 0) == matched if plain else True)
            if object_index is not None:
                where &= owner == object_index
            if not where.any():
                continue
            word = ("matched" if matched else "unmatched") if plain else QUERY_KINDS[this]
            symbol = _KIND_SYMBOLS.get(this, "circle" if matched else _ORIGINAL_NEGATIVE)
            thin = symbol in ("x-thin", _ORIGINAL_NEGATIVE)
            marker = {
                "symbol": symbol, "size": 8 if thin else 11, "color": color,
                "line": {"color": color if thin else "#FFFFFF", "width": 1.5}, "opacity": 0.8 if thin else 1,
            }  # fmt: skip
            sketch.add(
                "scatter", x=x[where], y=y[where], mode="markers", marker=marker, customdata=rows[where],
                meta={"group": name}, name=f"{title}: {word} · {int(where.sum())}",
                hovertemplate=f"<b>{title} query %{{customdata[0]:.0f}}</b> · {word}"
                "<br>object %{customdata[3]:.0f}<br>score %{customdata[2]:.3f}<extra></extra>",
            )  # fmt: skip


@drawing
def sampling_figure(
    image: np.ndarray,
    group: QueryGroup,
    query: int,
    layer: int,
    size: Size,
    padded: Size,
    *,
    index: int = 0,
    head: int | None = None,
    level: int | None = None,
    strides: Sequence[int] = (),
    target: Target | None = None,
    title: str = "",
) -> Sketch:
    """Where one query looks in one decoder layer: its reference box, its sampling points, the box that comes out.

    A point's area is its attention weight, its symbol the pyramid level, its shade the attention head. The legend says
    which share of the attention goes to each level.

    Args:
        image: (H,W,3) uint8 RGB, the valid part of the image that was traced.
        group: a traced group (with `sampling_locations` and `attention_weights`).
        query: which query.
        layer: which decoder layer.
        size: valid (height, width) of the image.
        padded: (height, width) of the batch, by which sampling locations are normalised.
        index: which image of the batch.
        head: one attention head alone.
        level: one level alone.
        strides: pixels per cell by level, for the legend.
        target: objects to outline.
        title: one line above the image.

    Raises:
        ValueError: the group was not traced, or there is no such query or layer.
    """
    where, weight = group.sampling_locations, group.attention_weights
    if where is None or weight is None:
        raise ValueError(f"the group {group.name!r} holds no sampling points; take it from model.trace(...)")
    layers, _, queries, heads, levels, _ = weight.shape
    if not (0 <= query < queries and 0 <= layer < layers):
        raise ValueError(f"query {query} of layer {layer}: the group has {queries} queries and {layers} layers")
    sketch = image_figure.sketch(image, title)
    if target is not None:
        add_ground_truth(sketch, target, labels=False)
    color = colors.head_color(group.name)
    before = pixel_boxes(group.reference_boxes[layer, index, query].detach().numpy(), size)
    after = pixel_boxes(group.boxes_cxcywh[layer, index, query].detach().numpy(), size)
    add_boxes(sketch, before[None], Marks(color, 2, "5px,4px"), "reference box", showlegend=True)
    add_boxes(sketch, after[None], Marks(colors.SELECTED, 2.5), "refined box", showlegend=True)
    points = where[layer, index, query].detach().numpy() * np.array([padded[1], padded[0]])
    shares = weight[layer, index, query].detach().numpy()
    shades = colors.level_shades(color, heads)
    for this in range(levels) if level is None else [level]:
        chosen = np.arange(heads) if head is None else np.array([head])
        xy, share = points[chosen, this].reshape(-1, 2), shares[chosen, this].ravel()
        owner = np.repeat(chosen, shares.shape[2])
        marker = {
            "symbol": colors.LEVEL_SYMBOLS[this % len(colors.LEVEL_SYMBOLS)], "sizemode": "area",
            "size": share, "sizeref": max(float(shares.max()), 1e-6) / 18**2, "sizemin": 2,
            "color": [shades[h] for h in owner], "line": {"color": "#FFFFFF", "width": 1}, "opacity": 0.9,
        }  # fmt: skip
        word = f"stride {strides[this]}" if strides else f"level {this}"
        sketch.add(
            "scatter", x=xy[:, 0], y=xy[:, 1], mode="markers", marker=marker,
            name=f"{word} · {share.sum() / len(chosen):.0%}", customdata=np.stack([owner, share], 1),
            hovertemplate=f"{word}, attention head %{{customdata[0]}}<br>weight %{{customdata[1]:.3f}}<extra></extra>",
        )  # fmt: skip
    return fit_legend(sketch)


def layers_figure(
    image: np.ndarray,
    group: QueryGroup,
    query: int,
    size: Size,
    padded: Size,
    *,
    index: int = 0,
    strides: Sequence[int] = (),
    target: Target | None = None,
) -> go.Figure:
    """Where one query looks in every decoder layer, from left to right; arguments as in `sampling_figure`."""
    panels = {}
    for layer in range(len(group.boxes_cxcywh)):
        panel = sampling_figure(image, group, query, layer, size, padded, index=index, strides=strides, target=target)
        for trace in panel.data:
            trace.name = trace.name.partition(" · ")[0]  # one legend for all: the shares differ from layer to layer
        panels[f"layer {layer + 1}"] = panel
    return side_by_side(panels)


def refinement(
    group: QueryGroup, query: int, size: Size, target: Target | None, index: int = 0
) -> list[dict[str, float]]:
    """How one query's box moves through the decoder, layer by layer.

    Returns:
        Per layer `score` (its best class's), `label`, `object` (matched in that layer, -1 for none) and `iou` with the
        object that the last layer overlaps most (NaN without objects).
    """
    after = np.stack([pixel_boxes(b.detach().numpy(), size) for b in group.boxes_cxcywh[:, index, query]])
    scores, labels = group.logits[:, index, query].sigmoid().max(-1)
    overlap = np.full(len(after), np.nan)
    if target is not None and len(target["boxes"]):
        table = box_ops.iou(target["boxes"].new_tensor(after)[:, None], target["boxes"])
        overlap = table[:, int(table[-1].argmax())].numpy()
    owners = [int(query_objects(group, layer, index)[query]) for layer in range(len(after))]
    return [
        {"score": float(s), "label": int(c), "object": o, "iou": float(i)}
        for s, c, o, i in zip(scores, labels, owners, overlap, strict=True)
    ]
