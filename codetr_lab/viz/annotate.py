"""Detections drawn into an image with Pillow: a picture file for `codetr predict`, where no browser is at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from codetr_lab.structures import Detections
from codetr_lab.viz.colors import head_color, head_title

_SHORTEST = 480
"""Pixels of the short side below which an image is enlarged, so that labels stay readable."""


def annotate(
    image: NDArray[np.uint8], detections: Mapping[str, Detections], classes: Sequence[str], threshold: float = 0.3
) -> Image.Image:
    """One panel per head, side by side, with boxes and labels in the head's colour.

    Args:
        image: (H,W,3) uint8 RGB. An image with a short side below 480 pixels is enlarged by a whole factor.
        detections: by head, boxes in the image's pixels.
        classes: names of the labels; empty shows numbers.
        threshold: detections with a lower score are left out.

    Raises:
        ValueError: no head, or one without a colour.
    """
    if not detections:
        raise ValueError("annotate needs the detections of at least one head")
    factor = max(1, ceil(_SHORTEST / min(image.shape[:2])))
    height, width = image.shape[0] * factor, image.shape[1] * factor
    size = max(13, min(height, width) // 40)
    font, gap, caption = ImageFont.load_default(size), max(4, size // 3), size * 2
    canvas = Image.new("RGB", (len(detections) * (width + gap) - gap, height + caption), "white")
    large = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
    for panel, (head, found) in enumerate(detections.items()):
        shown = found.select(found.scores >= threshold)
        picture = large.copy()
        _draw(picture, shown, classes, head_color(head), font, factor)
        left = panel * (width + gap)
        canvas.paste(picture, (left, caption))
        text = f"{head_title(head)}: {len(shown)} above {threshold:g}"
        ImageDraw.Draw(canvas).text((left + gap, caption // 2), text, fill="#222222", font=font, anchor="lm")
    return canvas


def _draw(
    picture: Image.Image,
    found: Detections,
    classes: Sequence[str],
    color: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    factor: int,
) -> None:
    """Worst first, so that the best box lies on top."""
    draw = ImageDraw.Draw(picture)
    line = max(3, min(picture.size) // 240)
    boxes = (found.boxes * factor).tolist()
    for box, score, label in reversed(
        list(zip(boxes, found.scores.tolist(), found.labels.tolist(), strict=True))
    ):  # best first in `Detections`
        outer = (box[0] - line, box[1] - line, max(box[2], box[0]) + line, max(box[3], box[1]) + line)
        draw.rectangle(outer, outline="white", width=line + 1)
        draw.rectangle((box[0], box[1], max(box[2], box[0]), max(box[3], box[1])), outline=color, width=line)
        text = f"{classes[label] if classes else label} {score:.2f}"
        x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)
        left = min(max(0.0, box[0]), max(0, picture.width - (x1 - x0) - 2 * line))
        top = box[1] - (y1 - y0) - 3 * line
        top = top if top >= 0 else box[1] + line
        draw.rectangle((left, top, left + x1 - x0 + 2 * line, top + y1 - y0 + 2 * line), fill=color)
        draw.text((left + line - x0, top + line - y0), text, fill="white", font=font)
