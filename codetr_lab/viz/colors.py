"""One colour per head, everywhere: figures, bars, curves, tables, annotated images.

The first head colours are those of Okabe and Ito (2008); all are told apart with any kind of colour vision (tested).
Lines on photographs get a halo (`HALO`), so that they read on dark and on bright pixels; the ground truth is white on
black.
"""

from __future__ import annotations

import re

HEAD_COLORS: dict[str, str] = {
    "original": "#0072B2",
    "atss": "#E69F00",
    "faster_rcnn": "#009E73",
    "fcos": "#CC79A7",
    "paa": "#56B4E9",
    "retinanet": "#D55E00",
    "gfl": "#4C4C00",
    "mask_rcnn": "#7C20D8",
    "denoising": "#7A5C3E",
    "group": "#1B2A6B",
    "one_to_many": "#8A1538",
}
HEAD_TITLES: dict[str, str] = {
    "original": "DETR decoder",
    "atss": "ATSS",
    "faster_rcnn": "Faster R-CNN",
    "fcos": "FCOS",
    "paa": "PAA",
    "retinanet": "RetinaNet",
    "gfl": "GFL",
    "mask_rcnn": "Mask R-CNN",
    "denoising": "Denoising queries",
    "group": "Group",
    "one_to_many": "One-to-many queries",
}
EXTRA_GROUPS = ("denoising", "group", "one_to_many")
"""Groups of queries that belong to no head; `group_2`, `group_3` are Group-DETR's."""
GROUND_TRUTH = "#FFFFFF"
GROUND_TRUTH_HALO = "#111111"
HALO = "rgba(255,255,255,0.85)"
NEGATIVE = "#9AA0A6"
IGNORED = "#4D4D4D"
PADDING = "#C9CCD1"
SELECTED = "#FF2D87"
"""The one candidate that the reader picked."""
TEXT = "#7A828E"
"""A grey that reads on white and on near-black pages."""
GRID = "rgba(128,134,145,0.25)"

LEVEL_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star")
"""Marker per pyramid level, finest first."""


def _base(name: str) -> tuple[str, int]:
    """`atss_2` is the second `atss`; `detr` is how predictions call the original queries' head; stages do not count."""
    name = name.partition(".")[0]
    match = re.fullmatch(r"(.+)_(\d+)", name)
    base, count = (match[1], int(match[2])) if match else (name, 1)
    return ("original" if base == "detr" else base), count


def head_color(name: str) -> str:
    """The `#RRGGBB` colour of a head; repeats (`atss_2`) and stages (`faster_rcnn.rpn`) share it.

    Raises:
        ValueError: no such head.
    """
    base, _ = _base(name)
    if base not in HEAD_COLORS:
        raise ValueError(f"no colour for head {name!r}; known heads are {', '.join(HEAD_COLORS)}")
    return HEAD_COLORS[base]


def head_title(name: str) -> str:
    """What people call a head: `faster_rcnn` is "Faster R-CNN", its `faster_rcnn.rpn` "Faster R-CNN: RPN".

    `atss_2` is "ATSS (2)".

    Raises:
        ValueError: no such head.
    """
    base, count = _base(name)
    if base not in HEAD_TITLES:
        raise ValueError(f"no title for head {name!r}; known heads are {', '.join(HEAD_TITLES)}")
    stage = name.partition(".")[2]
    return HEAD_TITLES[base] + (f" ({count})" if count > 1 else "") + (f": {stage.upper()}" if stage else "")


def rgb(color: str) -> tuple[int, int, int]:
    """The three 0..255 values of a `#RRGGBB` colour."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def shade(color: str, amount: float) -> str:
    """Mix `#RRGGBB` with white (`amount` in [0,1]) or black (`amount` in [-1,0])."""
    end = 255 if amount > 0 else 0
    return "#{:02X}{:02X}{:02X}".format(*(round(v + (end - v) * abs(amount)) for v in rgb(color)))


def level_shades(color: str, levels: int) -> list[str]:
    """One shade of `color` per pyramid level, light (finest) to dark (coarsest)."""
    if levels == 1:
        return [color]
    return [shade(color, 0.55 - 0.95 * i / (levels - 1)) for i in range(levels)]


def text_on(color: str) -> str:
    """Black or white, whichever reads better on `color` (relative luminance, WCAG 2)."""
    linear = [(v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4) for v in (c / 255 for c in rgb(color))]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#FFFFFF"
