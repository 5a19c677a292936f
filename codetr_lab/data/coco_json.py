"""Reads and checks COCO annotation files. Every problem is one line that names the place and the mend."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codetr_lab.data.dataset import DataError

NUMBERS = {int, float}
ROUNDING = 1.0
"""Pixels by which annotation tools commonly overshoot the border; clipping less is not worth a warning."""


def refusal(where: Path, problems: list[str], mend: str, shown: int = 10) -> DataError:
    """The error for a file with problems: the first ten, so that a user mends more than one at a time, on one line."""
    more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
    return DataError(f"{where}: {'; '.join(problems[:shown])}{more}; {mend}")


@dataclass(frozen=True)
class Ground:
    """A checked annotation file.

    Attributes:
        images: by position, as in the file; `width` and `height` are whole numbers.
        annotations: per image, the valid ones, as in the file, with `iscrowd` and `area` filled in.
        categories: sorted by id.
        clipped: how many boxes stick out of their image by more than a pixel.
    """

    images: list[dict[str, Any]]
    annotations: list[list[dict[str, Any]]]
    categories: list[dict[str, Any]]
    clipped: int


def read_json(path: Path) -> dict[str, Any]:
    """The dictionary in an annotation file.

    Raises:
        DataError: not JSON, or not a COCO dictionary.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not JSON but some binary file; give a COCO annotation file") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: is not JSON (line {error.lineno}: {error.msg}); export it again") from error
    if isinstance(content, list):
        raise DataError(f"{path}: is a list, as COCO results are; give the ground truth, a dictionary with images")
    if not isinstance(content, dict):
        raise DataError(f"{path}: is JSON but no COCO dictionary; give a file with images, annotations, categories")
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise DataError(f"{path}: has no {key!r}; a COCO file needs images, annotations and categories")
        if not isinstance(content[key], list) or not all(isinstance(item, dict) for item in content[key]):
            raise DataError(f"{path}: {key!r} must be a list of objects; export the file again")
    return content


def check(content: dict[str, Any]) -> tuple[Ground, list[str], list[str]]:
    """Check a COCO dictionary.

    Returns:
        What is valid, the problems of annotations (which `drop_invalid` may leave out), and all others.
    """
    fatal: list[str] = []
    categories = sorted(_unique(content["categories"], "category", ("id", "name"), fatal), key=lambda item: item["id"])
    images = _unique(content["images"], "image", ("id", "file_name"), fatal)
    for image in images:
        _check_size(image, fatal)
    invalid: list[str] = []
    position = {image["id"]: number for number, image in enumerate(images)}
    known = {category["id"] for category in categories}
    per_image: list[list[dict[str, Any]]] = [[] for _ in images]
    clipped = 0
    for annotation in _unique(content["annotations"], "annotation", ("id", "image_id", "category_id", "bbox"), invalid):
        number = position.get(annotation["image_id"]) if isinstance(annotation["image_id"], int) else None
        if number is None:
            invalid.append(f"annotation {annotation['id']}: there is no image {annotation['image_id']!r}")
            continue
        problem = _annotation_problem(annotation, images[number], known)
        if problem:
            invalid.append(f"annotation {annotation['id']}: {problem}")
            continue
        x, y, w, h = annotation["bbox"]
        width, height = images[number]["width"], images[number]["height"]
        clipped += x < -ROUNDING or y < -ROUNDING or x + w > width + ROUNDING or y + h > height + ROUNDING
        filled = {**annotation, "iscrowd": int(annotation.get("iscrowd") or 0)}
        if filled.get("area") is None:
            filled["area"] = w * h
        per_image[number].append(filled)
    return Ground(images, per_image, categories, int(clipped)), invalid, fatal


def _unique(
    items: Iterable[dict[str, Any]], kind: str, keys: tuple[str, ...], problems: list[str]
) -> list[dict[str, Any]]:
    """The items that have all keys and an id of their own."""
    seen: set[int] = set()
    kept = []
    for number, item in enumerate(items):
        missing = [key for key in keys if item.get(key) is None]
        name = f"{kind} {item['id']}" if item.get("id") is not None else f"{kind} number {number + 1}"
        if missing:
            problems.append(f"{name}: has no {missing[0]!r}")
        elif not isinstance(item.get("file_name", ""), str):
            problems.append(f"{name}: its file_name must be text, got {item['file_name']!r}")
        elif not isinstance(item["id"], int):
            problems.append(f"{name}: its id must be a whole number, got {item['id']!r}")
        elif item["id"] in seen:
            problems.append(f"{name}: this id occurs twice")
        else:
            seen.add(item["id"])
            kept.append(item)
    return kept


def _check_size(image: dict[str, Any], problems: list[str]) -> None:
    """Width and height must be there, as numbers of pixels."""
    for side in ("width", "height"):
        value = image.get(side)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value != int(value):
            problems.append(
                f"image {image['id']} ({image['file_name']}): {side} must be a number of pixels, got {value!r}"
            )
            image[side] = 1  # so that checking goes on; the file is refused anyway
        image[side] = int(image[side])


def _annotation_problem(annotation: dict[str, Any], image: dict[str, Any], categories: set[int]) -> str | None:
    """What is wrong with an annotation, in words."""
    if not isinstance(annotation["category_id"], int) or annotation["category_id"] not in categories:
        return f"there is no category {annotation['category_id']!r}"
    box = annotation["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return f"box must be four numbers [x, y, width, height], got {box!r}"
    x, y, w, h = box
    for name, value in (("width", w), ("height", h)):
        if value <= 0:
            return f"box has {name} {value:g}"
    if x >= image["width"] or y >= image["height"] or x + w <= 0 or y + h <= 0:
        return f"box {box} lies outside its image of {image['width']} x {image['height']} pixels"
    if annotation.get("area") is not None and not _is_number(annotation["area"]):
        return f"area must be a number, got {annotation['area']!r}"
    return _segmentation_problem(annotation.get("segmentation"), image)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _segmentation_problem(segmentation: Any, image: dict[str, Any]) -> str | None:
    """What is wrong with a mask; none at all is fine."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        if not isinstance(segmentation.get("counts"), list | str):
            return "segmentation is a run-length encoding without 'counts'"
        if segmentation.get("size") != [image["height"], image["width"]]:
            return f"segmentation has size {segmentation.get('size')}, its image {[image['height'], image['width']]}"
        return None
    if not isinstance(segmentation, list):
        return "segmentation is neither polygons nor a run-length encoding"
    for polygon in segmentation:
        if (
            not isinstance(polygon, list)
            or len(polygon) < 6
            or len(polygon) % 2
            or not set(map(type, polygon)) <= NUMBERS
        ):
            return "segmentation has a polygon that is not three or more points as [x, y, x, y, ...]"
    return None


def decode_mask(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """(height,width) bool from COCO polygons or a run-length encoding."""
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = coco_mask.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    return coco_mask.decode(encoded).astype(bool)
