"""Score maps (Eq. 7) over their image, what a threshold keeps of them, and the IoF-IoB curve (Eq. 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from codetr_lab.analysis.discriminability import IofIobCurve
from codetr_lab.structures import Target
from codetr_lab.viz import colors
from codetr_lab.viz.charts import chart_layout
from codetr_lab.viz.image import add_ground_truth, fit_legend, image_figure
from codetr_lab.viz.sketch import Sketch, drawing

_CELLS, _SMOOTH_CELLS = 160, 96
"""Cells of the longer side to which a mask and a map are thinned out for the page; the numbers are of the whole map.
A map is drawn smoothly between its cells."""
_CURVE_POINTS = 200
_BAR_SPACE = 52
"""Pixels below a map that its colour bar takes."""
KEPT, LOST, LEAKED, REMOVED = range(4)
"""What a threshold does to a pixel: object above it, object below it, background above it, background below it."""
MASK_NAMES = ("object above S", "object below S", "background above S", "background below S")
_MASK_COLORS = ("rgba(0,0,0,0)", "rgba(204,121,167,0.85)", "rgba(230,159,0,0.80)", "rgba(17,17,17,0.72)")


def decimals(low: float, high: float) -> int:
    """Decimals that tell a hundredth of the range from `low` to `high`; three at least, nine at most."""
    return min(9, max(3, 2 - math.floor(math.log10(high - low)))) if high > low else 3


def thinned(array: np.ndarray, most: int = _CELLS) -> np.ndarray:
    """Every n-th row and column of (H,W), so that the longer side has at most `most` cells."""
    step = -(-max(array.shape) // most)
    return array[step // 2 :: step, step // 2 :: step]


def _grid(shape: tuple[int, int], cells: tuple[int, int]) -> dict[str, float]:
    """Where Plotly puts the cells of a map that covers an image of `shape`."""
    dy, dx = shape[0] / cells[0], shape[1] / cells[1]
    return {"x0": dx / 2, "dx": dx, "y0": dy / 2, "dy": dy}


@drawing
def score_map_figure(
    image: np.ndarray,
    score_map: np.ndarray,
    *,
    score: str = "D(F)",
    valid: np.ndarray | None = None,
    target: Target | None = None,
    title: str = "",
) -> Sketch:
    """A score map in colours over its image; the colours span the map's own range, which may be narrow.

    Args:
        image: (H,W,3) uint8 RGB.
        score_map: (H,W), the image's size.
        score: what the scores are called.
        valid: (H,W) bool; False = leave out (padding).
        target: objects to outline.
        title: one line above the image.

    Raises:
        ValueError: the map is not of the image's size.
    """
    shape = _checked(image, score_map)
    sketch = image_figure.sketch(image, title)
    values = np.asarray(score_map, dtype=np.float32)
    if valid is not None:
        values = np.where(valid, values, np.nan)
    cells = thinned(values, _SMOOTH_CELLS)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    ticks, digits = (low, (low + high) / 2, high), decimals(low, high)
    bar = {
        "orientation": "h", "x": 0.5, "y": -0.02, "yanchor": "top", "thickness": 10, "xpad": 0,
        "len": 0.84 if digits < 7 else 0.68,  # the outer labels must fit beside it
        "tickvals": ticks, "ticktext": [f"{value:.{digits}f}" for value in ticks],
        "ticklabelposition": "outside", "outlinewidth": 0, "tickfont": {"size": 11}, "ticklabeloverflow": "allow",
        "title": {"text": score, "side": "bottom", "font": {"size": 12}},
    }  # fmt: skip
    sketch.add(
        "heatmap", z=cells, zmin=low, zmax=high, colorscale="Viridis", opacity=0.78, colorbar=bar, name=score,
        zsmooth="best" if len(finite) == values.size else False,  # Plotly smooths no map with gaps
        hovertemplate=f"{score} %{{z:.{digits + 1}f}}<extra></extra>", **_grid(shape, cells.shape),
    )  # fmt: skip
    if target is not None:
        add_ground_truth(sketch, target, labels=False)
    layout = sketch.layout
    layout |= {"showlegend": False, "height": layout["height"] - layout["margin"]["b"] + _BAR_SPACE}
    layout["meta"]["bottom"] = layout["margin"]["b"] = _BAR_SPACE
    return sketch


def mask_kinds(score_map: np.ndarray, foreground: np.ndarray, threshold: float) -> np.ndarray:
    """(H,W) uint8: what the threshold S does to every pixel, one of `KEPT`, `LOST`, `LEAKED`, `REMOVED` (Eq. 8)."""
    above, inside = np.asarray(score_map, dtype=np.float64) > threshold, np.asarray(foreground, dtype=bool)
    return np.where(inside, np.where(above, KEPT, LOST), np.where(above, LEAKED, REMOVED)).astype(np.uint8)


@drawing
def mask_figure(
    image: np.ndarray,
    score_map: np.ndarray,
    foreground: np.ndarray,
    threshold: float,
    *,
    valid: np.ndarray | None = None,
    target: Target | None = None,
    title: str = "",
) -> Sketch:
    """What the threshold S keeps of an image: clear where an object is kept, dark where background is removed.

    The two mistakes are in colour: objects below S, background above S. The legend holds IoF and IoB.

    Args:
        image: (H,W,3) uint8 RGB.
        score_map: (H,W), the image's size.
        foreground: (H,W) bool.
        threshold: S; a pixel is kept where its score is above.
        valid: (H,W) bool; False = counted in neither (padding).
        target: objects to outline.
        title: one line above the image.

    Raises:
        ValueError: the map is not of the image's size.
    """
    shape = _checked(image, score_map)
    sketch = image_figure.sketch(image, title)
    kinds = mask_kinds(score_map, foreground, threshold)
    counted = kinds if valid is None else kinds[np.asarray(valid, dtype=bool)]
    areas = np.bincount(counted.ravel(), minlength=4)
    scale = [[edge / 4, color] for i, color in enumerate(_MASK_COLORS) for edge in (i, i + 1)]
    cells = thinned(kinds)
    sketch.add(
        "heatmap", z=cells, zmin=-0.5, zmax=3.5, colorscale=scale, showscale=False, hoverinfo="skip", name="mask",
        **_grid(shape, cells.shape),
    )  # fmt: skip
    if target is not None:
        add_ground_truth(sketch, target, labels=False)
    for kind in (LOST, LEAKED):
        whole = areas[[KEPT, LOST]].sum() if kind == LOST else areas[[LEAKED, REMOVED]].sum()
        share = f" · {areas[kind] / whole:.0%}" if whole else ""
        marker = {"symbol": "square", "size": 12, "color": _MASK_COLORS[kind], "line": {"width": 0}}
        name = MASK_NAMES[kind] + share
        sketch.add("scatter", x=[None], y=[None], mode="markers", marker=marker, name=name, legendrank=900)
    return fit_legend(sketch)


def _checked(image: np.ndarray, score_map: np.ndarray) -> tuple[int, int]:
    shape = (int(image.shape[0]), int(image.shape[1]))
    if np.shape(score_map) != shape:
        raise ValueError(f"score_map has shape {np.shape(score_map)}, the image {shape}; they must be equal")
    return shape


def point_at(curve: IofIobCurve, threshold: float) -> tuple[float, float]:
    """IoF and IoB of a curve at the threshold S, as Eq. 8 defines them."""
    index = int(np.searchsorted(curve.thresholds.numpy(), threshold, side="right")) - 1
    if threshold > curve.thresholds[index] and index + 1 < len(curve.thresholds) and index % 2:
        index += 1  # S lies in the gap above a score: there, pixels with that score are below S
    return float(curve.iof[index]), float(curve.iob[index])


@drawing
def iof_iob_figure(
    curves: Mapping[str, IofIobCurve],
    *,
    thresholds: Mapping[str, float] | None = None,
    line_colors: Mapping[str, str] | None = None,
    title: str = "",
) -> Sketch:
    """IoF over IoB for several models (Fig. 2); the further up and right, the better objects stand out.

    Args:
        curves: by the models' names.
        thresholds: S per name, where a point is put on its curve.
        line_colors: `#RRGGBB` per name; the palette in order for the names it leaves out.
        title: one line above.
    """
    palette = list(colors.HEAD_COLORS.values())
    x, y = "IoB: background below S", "IoF: object above S"
    sketch = Sketch(layout=chart_layout(x, y, title, 340))
    sketch.layout["xaxis"] |= {"range": [-0.02, 1.02], "constrain": "domain"}
    sketch.layout["yaxis"] |= {"range": [-0.02, 1.04]}
    for i, (name, curve) in enumerate(curves.items()):
        color = (line_colors or {}).get(name, palette[i % len(palette)])
        step = max(1, len(curve.iob) // _CURVE_POINTS)
        index = np.unique([*range(0, len(curve.iob), step), len(curve.iob) - 1])
        s = curve.thresholds.numpy()[index]
        label, finite = f"{name} · area {curve.area():.2f}", s[np.isfinite(s)]
        digits = decimals(float(finite.min()), float(finite.max()))
        sketch.add(
            "scatter", x=curve.iob.numpy()[index], y=curve.iof.numpy()[index], customdata=s[:, None], mode="lines",
            line={"color": color, "width": 2.5}, name=label, legendgroup=name,
            hovertemplate=f"S %{{customdata[0]:.{digits}f}}<br>IoB %{{x:.3f}}<br>IoF %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
        if thresholds and name in thresholds:
            iof, iob = point_at(curve, thresholds[name])
            marker = {"size": 13, "color": color, "line": {"color": "#FFFFFF", "width": 2}}
            sketch.add(
                "scatter", x=[iob], y=[iof], mode="markers", marker=marker, name=f"{name} at S", legendgroup=name,
                showlegend=False,
                hovertemplate=f"S {thresholds[name]:.{digits}f}<br>IoB {iob:.3f}<br>IoF {iof:.3f}<extra></extra>",
            )  # fmt: skip
    return sketch
