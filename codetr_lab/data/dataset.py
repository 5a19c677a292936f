"""What a data set is: one protocol for generated and stored images, and its export as a COCO-format folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from codetr_lab.structures import Target


class DataError(ValueError):
    """A data set cannot be used; the message names the file, the place and the mend."""


@runtime_checkable
class DetectionDataset(Protocol):
    """Images with boxes, by index.

    Attributes:
        name: for people and for the folder of a run.
        classes: the names of labels 0..C-1.
        category_ids: label to the data set's own id, which COCO results carry.
    """

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int: ...

    def image(self, index: int) -> NDArray[np.uint8]:
        """(H,W,3) uint8 RGB, the caller's own copy.

        Raises:
            IndexError: there is no such image.
        """
        ...

    def target(self, index: int, *, masks: bool = True) -> Target:
        """The objects of one image, in its own pixels.

        `boxes` (N,4) float32 xyxy, `labels` (N,) long, `iscrowd` (N,) bool, `area` (N,) float32 pixels, `image_id` ()
        long; and `masks` (N,H,W) bool where every object of the image has one, unless `masks=False` (they cost time).
        """
        ...

    def file_name(self, index: int) -> str:
        """The image's name in `to_coco`, relative to the image folder."""
        ...

    def to_coco(self) -> dict[str, Any]:
        """The ground truth as COCO's json dictionary, crowd included; annotation ids begin at 1 or above."""
        ...


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """(H,W) bool as COCO's compressed run-length encoding, ready for JSON."""
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def coco_categories(dataset: DetectionDataset) -> list[dict[str, Any]]:
    """The `categories` of a COCO dictionary."""
    return [{"id": i, "name": name} for i, name in zip(dataset.category_ids, dataset.classes, strict=True)]


def coco_annotations(target: Target, category_ids: tuple[int, ...], first_id: int) -> list[dict[str, Any]]:
    """The `annotations` of one image, with consecutive ids; masks as run-length encodings."""
    boxes: Tensor = target["boxes"].double()
    xywh = (boxes - boxes[:, [0, 1, 0, 1]] * boxes.new_tensor([0, 0, 1, 1])).tolist()
    annotations = [
        {"id": first_id + n, "image_id": int(target["image_id"]), "category_id": category_ids[label], "bbox": box,
         "area": area, "iscrowd": int(crowd)}
        for n, (label, box, area, crowd) in enumerate(
            zip(target["labels"].tolist(), xywh, target["area"].tolist(), target["iscrowd"].tolist(), strict=True)
        )
    ]  # fmt: skip
    if "masks" in target:
        for annotation, mask in zip(annotations, target["masks"].numpy(), strict=True):
            annotation["segmentation"] = encode_mask(mask)
    return annotations


def export(dataset: DetectionDataset, folder: str | Path) -> Path:
    """Write a data set as a COCO-format folder: `images/000000.png`, ... and `annotations.json` with masks.

    The same data set gives the same bytes. The folder appears under its name when it is complete.

    Returns:
        The folder.

    Raises:
        DataError: the folder exists and is not empty.
        OSError: it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists already; choose another folder or delete it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        work.chmod(0o755)  # mkdtemp's own mode shuts out everybody else
        (work / "images").mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in tqdm(range(len(dataset)), desc=f"export {dataset.name}", unit="image"):
            pixels, target = dataset.image(index), dataset.target(index)
            name = f"{index:06d}.png"
            Image.fromarray(pixels).save(work / "images" / name)
            height, width = pixels.shape[:2]
            images.append({"id": int(target["image_id"]), "file_name": name, "width": width, "height": height})
            annotations += coco_annotations(target, dataset.category_ids, len(annotations) + 1)
        content = {
            "info": {"description": dataset.name}, "images": images, "annotations": annotations,
            "categories": coco_categories(dataset),
        }  # fmt: skip
        (work / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
        if folder.exists():
            folder.rmdir()  # empty, as checked above; Windows would not rename onto it
        work.rename(folder)
    except BaseException:  # Ctrl-C too leaves nothing half written
        shutil.rmtree(work, ignore_errors=True)
        raise
    return folder
