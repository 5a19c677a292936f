"""Any COCO-format folder as a data set, and its check."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from codetr_lab.data import coco_json
from codetr_lab.data.coco_json import decode_mask, refusal
from codetr_lab.data.dataset import DataError
from codetr_lab.images import ImageError, load_image
from codetr_lab.structures import Target

logger = logging.getLogger(__name__)

SPLIT_NAMES = {"val": ("val", "valid", "validation"), "train": ("train", "training")}
WHOLE = ("annotations.json", "_annotations.coco.json")
"""Annotation files without a split in their name."""


class CocoFolder:
    """Images and boxes of a COCO-format folder, checked when opened.

    Category ids may be sparse: labels count the categories in the order of their ids. Boxes are clipped to their
    images. Crowd regions are kept and marked; images without objects are kept.

    Args:
        path: an annotation file, or a folder with one of the usual layouts: `train.json`, `train/annotations.json`,
            `annotations/instances_train2017.json`, `annotations/train.json`, Roboflow's
            `train/_annotations.coco.json`, or one `annotations.json` for all splits.
        images_dir: where the images are, if that is not one of the usual places beside the annotations.
        split: `train`, `val` or another name that the files use; of no importance when `path` is a file.
        drop_invalid: leave invalid annotations out, with one warning, instead of refusing the file.

    Raises:
        DataError: no annotations found, or the file is invalid; up to ten problems are named.
    """

    def __init__(
        self,
        path: str | Path,
        images_dir: str | Path | None = None,
        *,
        split: str = "train",
        drop_invalid: bool = False,
    ) -> None:
        where = self.annotations_path = find_annotations(Path(path), split)
        ground, invalid, fatal = coco_json.check(coco_json.read_json(where))
        if fatal:
            raise refusal(where, fatal, "mend the file")
        if invalid and not drop_invalid:
            raise refusal(where, invalid, "fix or pass --drop-invalid")
        if invalid:
            logger.warning("%s: %d invalid annotations are left out, the first: %s", where, len(invalid), invalid[0])
        if not ground.images:
            raise DataError(f"{where}: holds no images; an empty data set cannot be used")
        if not any(ground.annotations):
            raise DataError(f"{where}: holds no valid annotations; an empty data set cannot be used")
        if ground.clipped:
            logger.warning("%s: %d boxes stick out of their images and are clipped", where, ground.clipped)
        names = [image["file_name"] for image in ground.images]
        self.images_dir = find_images(where, names, None if images_dir is None else Path(images_dir))
        if missing := missing_files(self.images_dir, names):
            problems = [f"image file {name} is missing" for name in missing]
            raise refusal(where, problems, f"put it into {self.images_dir} or remove it from the annotations")
        self._ground = ground
        folder = where.resolve().parent
        self.name = folder.parent.name if folder.name == "annotations" else folder.name
        self.classes = tuple(str(category["name"]) for category in ground.categories)
        self.category_ids = tuple(category["id"] for category in ground.categories)
        self._has_masks = any(item.get("segmentation") for image in ground.annotations for item in image)
        self._labels = {category_id: label for label, category_id in enumerate(self.category_ids)}

    def __len__(self) -> int:
        return len(self._ground.images)

    def image(self, index: int) -> NDArray[np.uint8]:
        """(H,W,3) uint8 RGB, upright.

        Raises:
            IndexError: there is no such image.
            ImageError: the file cannot be read.
            DataError: its size is not the one that the annotations give.
        """
        entry = self._entry(index)
        path = self.images_dir / entry["file_name"]
        image = load_image(path)
        height, width = image.shape[:2]
        if (width, height) != (entry["width"], entry["height"]):
            raise DataError(
                f"{path}: is {width} x {height} pixels, but {self.annotations_path.name} says {entry['width']} x "
                f"{entry['height']}; correct width and height, or the file's EXIF orientation"
            )
        return image

    def target(self, index: int, *, masks: bool = True) -> Target:
        """See `DetectionDataset.target`."""
        entry = self._entry(index)
        height, width = entry["height"], entry["width"]
        annotations = self._ground.annotations[index]
        boxes = torch.tensor([item["bbox"] for item in annotations], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        limit = boxes.new_tensor([width, height, width, height])
        target = {
            "boxes": torch.minimum(boxes.clamp(min=0), limit).float(),
            "labels": torch.tensor([self._labels[item["category_id"]] for item in annotations], dtype=torch.long),
            "iscrowd": torch.tensor([bool(item["iscrowd"]) for item in annotations], dtype=torch.bool),
            "area": torch.tensor([item["area"] for item in annotations], dtype=torch.float32),
            "image_id": torch.tensor(entry["id"]),
        }
        if masks and self._has_masks and all(item.get("segmentation") for item in annotations):
            target["masks"] = torch.zeros(len(annotations), height, width, dtype=torch.bool)
            for mask, item in zip(target["masks"], annotations, strict=True):
                mask.copy_(torch.from_numpy(decode_mask(item["segmentation"], height, width)))
        return target

    def file_name(self, index: int) -> str:
        """The image's name, relative to `images_dir`."""
        return str(self._entry(index)["file_name"])

    def to_coco(self) -> dict[str, Any]:
        """The valid ground truth as in the file, boxes unclipped, so that official numbers are met.

        Where the file has an annotation 0, all ids are raised by one: pycocotools takes a match with 0 for none.
        """
        annotations = [item for image in self._ground.annotations for item in image]
        if any(item["id"] == 0 for item in annotations):
            annotations = [{**item, "id": item["id"] + 1} for item in annotations]
        return {
            "info": {"description": self.name}, "images": self._ground.images, "annotations": annotations,
            "categories": self._ground.categories,
        }  # fmt: skip

    def _entry(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index}: {self.name} has images 0..{len(self) - 1}")
        return self._ground.images[index]


def find_annotations(path: Path, split: str) -> Path:
    """The annotation file of a split; see `CocoFolder` for the layouts.

    Raises:
        DataError: the path does not exist, or nothing in it is a known layout.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; give a COCO annotation file or a folder that holds one")
    for name in SPLIT_NAMES.get(split, (split,)):
        for candidate in (
            path / f"{name}.json",
            path / name / "annotations.json",
            path / name / "_annotations.coco.json",
            path / "annotations" / f"{name}.json",
            *sorted((path / "annotations").glob(f"instances_{name}*.json")),
            *sorted(path.glob(f"instances_{name}*.json")),
        ):
            if candidate.is_file():
                return candidate
    for name in WHOLE:
        if (path / name).is_file():
            if split != "train":
                logger.warning("%s: has no splits; all of it is used as %s", path / name, split)
            return path / name
    found = sorted(str(file.relative_to(path)) for pattern in ("*.json", "*/*.json") for file in path.glob(pattern))[:5]
    hint = f"it holds {', '.join(found)}: give that file" if found else "it holds no .json file"
    raise DataError(f"{path}: no annotations of split {split!r} (looked for {split}.json and the like); {hint}")


def find_images(annotations: Path, names: list[str], images_dir: Path | None) -> Path:
    """The folder in which the images are.

    Raises:
        DataError: there is no such folder, or no usual place holds any of the first images.
    """
    if images_dir is not None:
        if not images_dir.is_dir():
            raise DataError(f"{images_dir}: no such image folder")
        return images_dir
    beside = annotations.parent
    stem = annotations.stem.removeprefix("instances_")
    roots = (beside, beside.parent) if beside.name == "annotations" else (beside,)
    places = [root / sub for root in roots for sub in ("images", f"images/{stem}", stem, ".")]
    for place in places:
        if any((place / name).is_file() for name in names[:20]):
            return place
    looked = ", ".join(str(place) for place in dict.fromkeys(places) if place.is_dir())
    raise DataError(f"{annotations}: image files such as {names[0]} are missing; looked in {looked}; give images_dir")


def missing_files(folder: Path, names: list[str]) -> list[str]:
    """Names that are no files in the folder. Each folder is listed once, which is much faster than asking for each."""
    listed: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, base = os.path.split(name)
        if parent not in listed:
            place = folder / parent
            listed[parent] = {entry.name for entry in os.scandir(place)} if place.is_dir() else set()
        if base not in listed[parent]:
            missing.append(name)
    return missing


@dataclass(frozen=True)
class Report:
    """What `check` found in an annotation file.

    Attributes:
        path: the annotation file. `images_dir`: where its images are; None if that was not found.
        images, empty_images, objects, crowds: how many.
        per_class: objects by class name and id.
        small, medium, large: objects by COCO's areas (below 32 x 32, below 96 x 96, above).
        clipped: boxes that stick out of their images and will be clipped.
        problems: all that is wrong; `CocoFolder` opens the folder only if there are none.
    """

    path: Path
    images_dir: Path | None
    images: int
    empty_images: int
    objects: int
    crowds: int
    per_class: dict[str, int]
    small: int
    medium: int
    large: int
    clipped: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the data set can be used as it is."""
        return not self.problems

    def __str__(self) -> str:
        """The report for people, with the first twenty problems."""
        shown = 20
        lines = [
            f"annotations  {self.path}",
            f"image folder {self.images_dir or 'not found'}",
            f"images       {self.images} ({self.empty_images} without objects)",
            f"objects      {self.objects} ({self.crowds} crowd regions beside them)",
            f"sizes        {self.small} small, {self.medium} medium, {self.large} large",
            *(f"  {name}: {count}" for name, count in self.per_class.items()),
        ]
        if self.clipped:
            lines.append(f"{self.clipped} boxes stick out of their images and will be clipped")
        lines += [f"problem: {problem}" for problem in self.problems[:shown]]
        if len(self.problems) > shown:
            lines.append(f"... and {len(self.problems) - shown} more problems")
        count = len(self.problems)
        lines.append("usable as it is" if self.ok else f"{count} problem{'s' if count > 1 else ''}")
        return "\n".join(lines)


def check(path: str | Path, images_dir: str | Path | None = None, *, split: str = "train") -> Report:
    """Look at everything in a COCO-format folder, every image's pixels included.

    Raises:
        DataError: no annotation file found, or it is no COCO file at all.
    """
    annotations_path = find_annotations(Path(path), split)
    ground, invalid, fatal = coco_json.check(coco_json.read_json(annotations_path))
    problems = [*fatal, *invalid]
    names = [str(image["file_name"]) for image in ground.images]
    folder: Path | None = None
    if not names:
        problems.append("there are no images")
    else:
        try:
            folder = find_images(annotations_path, names, None if images_dir is None else Path(images_dir))
        except DataError as error:
            problems.append(str(error))
    if folder is not None:
        problems += _image_problems(folder, ground.images)
    items = [item for image in ground.annotations for item in image]
    objects = [item for item in items if not item["iscrowd"]]
    counts = Counter(item["category_id"] for item in objects)
    area = np.array([item["area"] for item in objects], float)
    return Report(
        path=annotations_path,
        images_dir=folder,
        images=len(names),
        empty_images=sum(not image for image in ground.annotations),
        objects=len(objects),
        crowds=len(items) - len(objects),
        per_class={f"{category['name']} ({category['id']})": counts[category["id"]] for category in ground.categories},
        small=int((area < 32**2).sum()),
        medium=int(((area >= 32**2) & (area < 96**2)).sum()),
        large=int((area >= 96**2).sum()),
        clipped=ground.clipped,
        problems=tuple(problems),
    )


def _image_problems(folder: Path, images: list[dict[str, Any]]) -> list[str]:
    """Decode every image and compare its size with the annotations'."""
    problems = []
    for entry in tqdm(images, desc="images", unit="image"):
        try:
            height, width = load_image(folder / entry["file_name"]).shape[:2]
        except ImageError as error:
            problems.append(str(error))
            continue
        if (width, height) != (entry["width"], entry["height"]):
            problems.append(
                f"{entry['file_name']}: is {width} x {height} pixels, the annotations say {entry['width']} x "
                f"{entry['height']}"
            )
    return problems
