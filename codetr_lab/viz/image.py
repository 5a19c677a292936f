"""An image as a Plotly figure, boxes on it, and several such figures side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from codetr_lab.structures import Target
from codetr_lab.viz import colors
from codetr_lab.viz.sketch import Sketch, checked_image, drawing

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
WEBGL_FROM = 2000
"""Points from which a trace is drawn by WebGL; fewer are crisper as SVG."""
_LEGEND_SPACE = 64
_LEGEND_ROW, _LEGEND_ENTRY, _LEGEND_LETTER = 27, 42, 7.0
"""Pixels of a legend: one row, one entry without its words, one letter."""
_TITLE_SPACE = 34
_PANEL_WIDTH, _ROW_WIDTH = 380, 860


@dataclass(frozen=True)
class Marks:
    """Where boxes are drawn and how: line `width` in pixels, `dash` as in Plotly, `halo` colour behind the line."""

    color: str
    width: float = 2.0
    dash: str = "solid"
    halo: str = colors.HALO
    opacity: float = 1.0


GROUND_TRUTH_MARKS = Marks(colors.GROUND_TRUTH, 1.6, "4px,3px", colors.GROUND_TRUTH_HALO)


@drawing
def image_figure(image: np.ndarray, title: str = "") -> Sketch:
    """The figure that all others on an image start from: axes in pixels, y downwards, equal aspect, no ticks.

    Args:
        image: (H,W,3) uint8 RGB.
        title: one line above the image.

    Raises:
        ValueError: the image has another shape or type.
    """
    height, width = checked_image(image).shape[:2]
    top = _TITLE_SPACE if title else 4
    hidden = {"showgrid": False, "zeroline": False, "showticklabels": False, "ticks": "", "constrain": "domain"}
    picture = {
        "xref": "x", "yref": "y", "x": 0, "y": 0, "sizex": width, "sizey": height,
        "sizing": "stretch", "layer": "below",
    }  # fmt: skip
    legend = {
        "orientation": "h", "x": 0, "y": -0.015, "yanchor": "top", "font": {"size": 12}, "itemsizing": "constant",
        "bgcolor": "rgba(0,0,0,0)",
    }  # fmt: skip
    layout = {
        "images": [picture],
        "xaxis": {"range": [0, width], **hidden},
        "yaxis": {"range": [height, 0], "scaleanchor": "x", "constraintoward": "top", **hidden},
        "title": {"text": title, "x": 0, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 8},
                  "font": {"size": 16}},
        "font": {"family": FONT, "size": 13, "color": colors.TEXT},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 0, "r": 0, "t": top, "b": _LEGEND_SPACE},
        "legend": legend,
        "hoverlabel": {"font": {"family": FONT, "size": 13}, "align": "left"},
        "dragmode": "pan",
        "width": _PANEL_WIDTH,
        "height": round(_PANEL_WIDTH * height / width) + top + _LEGEND_SPACE,
        "meta": {"aspect": height / width},
    }  # fmt: skip
    return Sketch(layout=layout, image=image)


def fit_legend(sketch: Sketch) -> Sketch:
    """Make room below an image for as many rows as its legend will take, so that the image keeps its size."""
    names = [t["name"] for t in sketch.traces if t.get("showlegend") is not False and t.get("name")]
    layout, rows, used = sketch.layout, 1, 0.0
    width = layout["width"]
    for name in names:
        needed = _LEGEND_ENTRY + _LEGEND_LETTER * len(name)
        if used and used + needed > width:
            rows, used = rows + 1, 0.0
        used += needed
    bottom = _LEGEND_ROW * rows + 10
    layout["height"] += bottom - layout["margin"]["b"]
    layout["margin"]["b"] = bottom
    return sketch


def outline(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the rectangles of (M,4) xyxy boxes as one line with gaps: (6M,) each, NaN between rectangles."""
    x0, y0, x1, y1 = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T
    gap = np.full_like(x0, np.nan)
    return np.stack([x0, x1, x1, x0, x0, gap], 1).ravel(), np.stack([y0, y0, y1, y1, y0, gap], 1).ravel()


def centres(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the centres of (M,4) xyxy boxes."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2


def add_boxes(sketch: Sketch, boxes: np.ndarray, marks: Marks, name: str, **trace: Any) -> None:
    """Draw (M,4) xyxy boxes, all in one trace (two with the halo); `trace` goes to Plotly (`legendgroup`, ...)."""
    if not len(boxes):
        return
    x, y = outline(boxes)
    kind = "scattergl" if len(boxes) * 6 >= WEBGL_FROM else "scatter"
    halo = {"color": marks.halo, "width": marks.width + 2}
    common = {"x": x, "y": y, "mode": "lines", "hoverinfo": "skip", "opacity": marks.opacity}
    group = trace.get("legendgroup", name)
    sketch.add(kind, **common, line=halo, showlegend=False, legendgroup=group, name=name)
    dash = "dash" if kind == "scattergl" and "px" in marks.dash else marks.dash  # WebGL knows names alone
    line = {"color": marks.color, "width": marks.width, "dash": dash}
    sketch.add(kind, **common, line=line, name=name, **{"legendgroup": group, **trace})


def add_labels(sketch: Sketch, boxes: np.ndarray, texts: Sequence[str], background: str) -> None:
    """A small label at each xyxy box's upper left corner, or its right one near the image's right edge."""
    picture = sketch.layout["images"][0]
    right, top = picture["sizex"], 0.08 * picture["sizey"]
    look = {
        "showarrow": False, "bgcolor": background, "borderpad": 1, "opacity": 0.92,
        "font": {"size": 10, "color": colors.text_on(background)},
    }  # fmt: skip
    notes = sketch.layout.setdefault("annotations", [])
    for (x0, y0, x1, _), text in zip(np.asarray(boxes).tolist(), texts, strict=True):
        corner = {"x": min(x1, right), "xanchor": "right"} if x0 > 0.7 * right else {"x": max(x0, 0), "xanchor": "left"}
        notes.append({"text": text, "y": max(y0, 0), "yanchor": "bottom" if y0 > top else "top", **corner, **look})


def object_names(target: Target, classes: Sequence[str] = ()) -> list[str]:
    """What people call the objects of an image: "0 star", "1 ring"; the number is the object's index."""
    labels = target["labels"].tolist()
    return [f"{i} {classes[label]}" if classes else f"{i} (class {label})" for i, label in enumerate(labels)]


def add_ground_truth(
    sketch: Sketch, target: Target, classes: Sequence[str] = (), chosen: int | None = None, labels: bool = True
) -> None:
    """Draw an image's objects in white on black; with `chosen`, that object boldly and the others faintly."""
    boxes = target["boxes"].numpy()
    if not len(boxes):
        return
    bold = np.ones(len(boxes), dtype=bool) if chosen is None else np.arange(len(boxes)) == chosen
    faint = Marks(colors.GROUND_TRUTH, 1.0, "2px,3px", "rgba(17,17,17,0.5)", 0.55)
    add_boxes(sketch, boxes[~bold], faint, "ground truth", showlegend=False)
    add_boxes(sketch, boxes[bold], GROUND_TRUTH_MARKS, "ground truth", showlegend=False)
    outlined = {"symbol": "square", "color": colors.GROUND_TRUTH, "line": {"color": colors.TEXT, "width": 2}, "size": 9}
    sketch.add(
        "scatter", x=[None], y=[None], mode="markers", marker=outlined, name="ground truth",
        legendgroup="ground truth", legendrank=1500,
    )  # fmt: skip
    if labels:
        names = object_names(target, classes)
        shown = np.flatnonzero(bold)
        add_labels(sketch, boxes[shown], [names[i] for i in shown], colors.GROUND_TRUTH_HALO)


def side_by_side(figures: Mapping[str, go.Figure]) -> go.Figure:
    """Several image figures in one row, each under its own title; one legend for all.

    Raises:
        ValueError: no figure.
    """
    if not figures:
        raise ValueError("side_by_side needs at least one figure")
    gap = 0.03 if len(figures) > 1 else 0.0
    share = (1 - gap * (len(figures) - 1)) / len(figures)
    seen: set[str] = set()
    traces: list[Any] = []
    layout: dict[str, Any] = {"images": [], "annotations": []}
    for i, (title, figure) in enumerate(figures.items()):
        suffix = "" if i == 0 else str(i + 1)
        left = i * (share + gap)
        panel = figure.to_plotly_json()
        for trace in panel["data"]:
            shown = trace.get("showlegend") is not False and bool(trace.get("name"))
            trace |= {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": shown and trace["name"] not in seen}
            if "colorbar" in trace:
                trace["colorbar"] |= {"x": left + share / 2, "len": share * trace["colorbar"]["len"]}
            if shown:
                seen.add(trace["name"])
            traces.append(trace)
        own = panel["layout"]
        layout[f"xaxis{suffix}"] = own["xaxis"] | {"domain": [left, left + share], "anchor": f"y{suffix}"}
        layout[f"yaxis{suffix}"] = own["yaxis"] | {
            "domain": [0, 1],
            "anchor": f"x{suffix}",
            "scaleanchor": f"x{suffix}",
        }
        here = {"xref": f"x{suffix}", "yref": f"y{suffix}"}
        layout["images"] += [picture | here for picture in own["images"]]
        layout["annotations"] += [note | here for note in own.get("annotations", ())]
        layout["annotations"].append(
            {"text": f"<b>{title}</b>", "x": left, "y": 1, "xref": "paper", "yref": "paper", "xanchor": "left",
             "yanchor": "bottom", "showarrow": False, "font": {"size": 14}}
        )  # fmt: skip
    first = next(iter(figures.values())).layout.to_plotly_json()
    layout |= {key: first[key] for key in ("font", "legend", "hoverlabel", "paper_bgcolor", "plot_bgcolor")}
    bars = any("bottom" in figure.layout.meta for figure in figures.values())
    bottom = max(figure.layout.margin.b for figure in figures.values()) if bars else _LEGEND_SPACE if seen else 4
    width = min(_PANEL_WIDTH, _ROW_WIDTH // len(figures))
    layout |= {
        "dragmode": "pan", "margin": {"l": 0, "r": 0, "t": 28, "b": bottom}, "width": width * len(figures),
        "height": round(width * max(f.layout.meta["aspect"] for f in figures.values())) + 28 + bottom,
    }  # fmt: skip
    if all(figure.layout.showlegend is False for figure in figures.values()):
        layout["showlegend"] = False
    return go.Figure(traces, layout)
