"""A reader's files, read with suspicion: images, and annotations in COCO's format that belong to them.

Only the uploaded files themselves are opened. A file name inside an annotation file is compared with the uploads'
names and never used as a path.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from apps.picture import Upload
from codetr_lab.data import coco_json
from codetr_lab.data.dataset import DataError
from codetr_lab.images import ImageError, load_image
from codetr_lab.structures import Target

MAX_PIXELS = 25_000_000
MAX_IMAGES = 5
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ENDINGS = [*IMAGE_ENDINGS, ".json"]


class UploadError(ValueError):
    """A file cannot be used; the message names it by the name that the reader knows."""


def read_uploads(paths: Sequence[str], classes: Sequence[str]) -> tuple[list[Upload], str]:
    """Images, with their objects where a COCO file came along.

    Args:
        paths: where the server has put the files.
        classes: the names that the models know; objects of others are left out.

    Returns:
        The images, and what is to be told about them.

    Raises:
        UploadError: nothing of it can be used.
    """
    files = [Path(path) for path in paths]
    pictures = [file for file in files if file.suffix.lower() != ".json"]
    annotations = [file for file in files if file.suffix.lower() == ".json"]
    if len(annotations) > 1:
        raise UploadError(f"{len(annotations)} annotation files; give one, with the images that it is about")
    if not pictures:
        raise UploadError("no image; choose the images together with their annotation file")
    if len(pictures) > MAX_IMAGES:
        raise UploadError(f"{len(pictures)} images; give at most {MAX_IMAGES} at a time")
    images = {file.name: _read_image(file) for file in pictures}
    told = []
    targets: dict[str, Target] = {}
    if annotations:
        targets, left_out = _read_annotations(annotations[0], images, classes)
        without = len(images) - len(targets)
        if without:
            told.append(f"{annotations[0].name} says nothing about {without} of {len(images)} images")
        if left_out:
            told.append(f"{left_out} objects are of classes that the models do not know, and are left out")
    uploads = [Upload(uuid.uuid4().hex, name, image, targets.get(name)) for name, image in images.items()]
    shape = f"{images[uploads[0].name].shape[1]} x {images[uploads[0].name].shape[0]} pixels"
    what = f"Your image, {shape}" if len(uploads) == 1 else f"{len(uploads)} images of yours"
    return uploads, ". ".join([what, *told, "They stay" if len(uploads) > 1 else "It stays"]) + (
        " on the machine that serves this page."
    )


def _read_image(file: Path) -> np.ndarray:
    try:
        return load_image(file, max_pixels=MAX_PIXELS)
    except ImageError as error:
        raise UploadError(_without_folder(error, file)) from error


def _read_annotations(
    file: Path, images: dict[str, np.ndarray], classes: Sequence[str]
) -> tuple[dict[str, Target], int]:
    """The objects by image name, and how many were left out."""
    try:
        ground, invalid, fatal = coco_json.check(coco_json.read_json(file))
    except DataError as error:
        raise UploadError(_without_folder(error, file)) from error
    except RecursionError as error:
        raise UploadError(f"{file.name}: is nested too deeply for an annotation file") from error
    problems = [*fatal, *invalid]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UploadError(f"{file.name}: {problems[0]}{more}; mend the file")
    labels = {c["id"]: classes.index(c["name"]) for c in ground.categories if c["name"] in classes}
    targets: dict[str, Target] = {}
    left_out = 0
    for entry, items in zip(ground.images, ground.annotations, strict=True):
        name = entry["file_name"].replace("\\", "/").rpartition("/")[2]
        if name not in images:
            continue
        height, width = images[name].shape[:2]
        if (entry["width"], entry["height"]) != (width, height):
            raise UploadError(
                f"{name} is {width} x {height} pixels, but {file.name} says {entry['width']} x {entry['height']}"
            )
        known = [item for item in items if item["category_id"] in labels]
        left_out += len(items) - len(known)
        boxes = torch.tensor([item["bbox"] for item in known], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        targets[name] = {
            "boxes": torch.minimum(boxes.clamp(min=0), torch.tensor([width, height] * 2)),
            "labels": torch.tensor([labels[item["category_id"]] for item in known], dtype=torch.long),
            "iscrowd": torch.tensor([bool(item["iscrowd"]) for item in known], dtype=torch.bool),
        }
    if not targets:
        raise UploadError(f"{file.name}: is not about any of the images; its first image is {_first(ground.images)}")
    return targets, left_out


def _first(images: Sequence[dict[str, object]]) -> str:
    return str(images[0]["file_name"]) if images else "missing: it holds none"


def _without_folder(error: Exception, file: Path) -> str:
    """The reader knows the file's name, not the folder it was stored in."""
    return str(error).replace(str(file), file.name).replace(str(file.parent), "")
