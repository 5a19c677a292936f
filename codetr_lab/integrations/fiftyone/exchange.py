"""FiftyOne datasets in, to train on; predictions out as COCO results, and back, with nothing lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from codetr_lab.data.dataset import DataError, coco_annotations, coco_categories
from codetr_lab.images import load_image
from codetr_lab.integrations.fiftyone.database import open_fiftyone
from codetr_lab.integrations.records import IntegrationError
from codetr_lab.structures import Target

if TYPE_CHECKING:
    import fiftyone as fo


class FiftyOneData:
    """A FiftyOne dataset or view as a data set to train and evaluate on.

    Args:
        samples: the dataset or view, or a dataset's name.
        split: samples with this tag, if any sample carries it; all samples otherwise.
        field: the field with the objects, `fo.Detections`.

    Raises:
        IntegrationError: no such dataset or field.
        DataError: no sample, or a label that is not among the dataset's classes.
    """

    def __init__(
        self, samples: str | fo.Dataset | fo.DatasetView, split: str | None = None, field: str = "ground_truth"
    ) -> None:
        open_fiftyone()
        import fiftyone as fo

        if isinstance(samples, str):
            if not fo.dataset_exists(samples):
                known = ", ".join(fo.list_datasets()) or "none"
                raise IntegrationError(f"FiftyOne has no dataset {samples!r}; it has {known}")
            samples = fo.load_dataset(samples)
        if field not in samples.get_field_schema():
            raise IntegrationError(f"{samples.name} has no field {field!r} with the objects")
        chosen = samples.match_tags(split) if split and split in samples.distinct("tags") else samples
        if not len(chosen):
            raise DataError(f"fiftyone:{samples.name}: has no samples")
        found = samples.distinct(f"{field}.detections.label")
        self.name = f"fiftyone:{samples.name}"
        self.classes = tuple(samples.default_classes or found)
        self.category_ids = tuple(range(1, len(self.classes) + 1))
        if unknown := sorted(set(found) - set(self.classes)):
            raise DataError(f"{self.name}: label {unknown[0]!r} is not among the dataset's classes")
        labels = {name: label for label, name in enumerate(self.classes)}
        chosen.compute_metadata(progress=False)
        self.sample_ids: list[str] = chosen.values("id")
        paths, sizes, objects = chosen.values(["filepath", "metadata", f"{field}.detections"], missing_value=None)
        numbers = chosen.values("image_id") if "image_id" in samples.get_field_schema() else [None] * len(paths)
        self._paths = [Path(path) for path in paths]
        self._sizes = [(size.height, size.width) if size is not None else None for size in sizes]
        self._ids = [row + 1 if number is None else int(number) for row, number in enumerate(numbers)]
        self._objects = [
            [(labels[item.label], item.bounding_box, _is_crowd(item)) for item in items or []] for items in objects
        ]

    def __len__(self) -> int:
        return len(self._paths)

    def image(self, index: int) -> NDArray[np.uint8]:
        """See `DetectionDataset.image`."""
        return load_image(self._paths[self._inside(index)])

    def target(self, index: int, *, masks: bool = True) -> Target:
        """See `DetectionDataset.target`; boxes only."""
        height, width = self._size(self._inside(index))
        rows = self._objects[index]
        share = torch.tensor([box for _, box, _ in rows], dtype=torch.float64).reshape(-1, 4)
        xywh = share * torch.tensor([width, height, width, height], dtype=torch.float64)
        boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        limit = boxes.new_tensor([width, height, width, height])
        return {
            "boxes": torch.minimum(boxes.clamp(min=0), limit).float(),
            "labels": torch.tensor([label for label, _, _ in rows], dtype=torch.long),
            "iscrowd": torch.tensor([crowd for _, _, crowd in rows], dtype=torch.bool),
            "area": (xywh[:, 2] * xywh[:, 3]).float(),
            "image_id": torch.tensor(self._ids[index]),
        }

    def file_name(self, index: int) -> str:
        """The image's path."""
        return str(self._paths[self._inside(index)])

    def to_coco(self) -> dict[str, Any]:
        """The ground truth as COCO's json dictionary."""
        images, annotations = [], list[dict[str, Any]]()
        for index in range(len(self)):
            height, width = self._size(index)
            images.append(
                {"id": self._ids[index], "file_name": self.file_name(index), "width": width, "height": height}
            )
            annotations += coco_annotations(self.target(index), self.category_ids, len(annotations) + 1)
        return {
            "info": {"description": self.name}, "images": images, "annotations": annotations,
            "categories": coco_categories(self),
        }  # fmt: skip

    def _size(self, index: int) -> tuple[int, int]:
        size = self._sizes[index]
        if size is None:  # the file was not there when its size was asked for
            height, width = self.image(index).shape[:2]
            size = self._sizes[index] = (height, width)
        return size

    def _inside(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index}: {self.name} has images 0..{len(self) - 1}")
        return index


def _is_crowd(item: fo.Detection) -> bool:
    return any(item.has_field(name) and bool(item[name]) for name in ("crowd", "iscrowd"))


def to_coco_results(
    dataset: fo.Dataset, field: str, category_ids: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """A field of detections as COCO result records, boxes in pixels; extra attributes travel under `attributes`.

    Args:
        category_ids: class name to id; 1, 2, ... in the order of the dataset's classes if left out.

    Raises:
        IntegrationError: no such field.
    """
    if field not in dataset.get_field_schema():
        raise IntegrationError(f"{dataset.name} has no field {field!r}; choose one that holds detections")
    ids = category_ids or {name: number for number, name in enumerate(dataset.default_classes, 1)}
    found = []
    for sample in dataset.iter_samples(progress=False):
        width, height = sample.metadata.width, sample.metadata.height
        for item in sample[field].detections if sample[field] is not None else []:
            x, y, w, h = item.bounding_box
            extra = {name: value for name, value in item.iter_fields() if name not in _OWN and value is not None}
            record = {
                "image_id": int(sample.image_id), "category_id": ids[item.label], "score": item.confidence,
                "bbox": [x * width, y * height, w * width, h * height],
            }  # fmt: skip
            found.append(record | ({"attributes": extra} if extra else {}))
    return found


_OWN = ("id", "label", "bounding_box", "confidence", "tags", "attributes", "mask", "mask_path", "index")


def from_coco_results(
    dataset: fo.Dataset, results: Sequence[Mapping[str, Any]], field: str,
    category_ids: Mapping[str, int] | None = None,
) -> None:  # fmt: skip
    """Write COCO result records into a field of detections, the reverse of `to_coco_results`.

    Raises:
        IntegrationError: a record names an image or a category that the dataset does not have.
    """
    import fiftyone as fo

    ids = category_ids or {name: number for number, name in enumerate(dataset.default_classes, 1)}
    names = {number: name for name, number in ids.items()}
    by_image: dict[int, list[Mapping[str, Any]]] = {int(image): [] for image in dataset.values("image_id")}
    for row, record in enumerate(results):
        if record["image_id"] not in by_image:
            raise IntegrationError(f"record {row}: {dataset.name} has no image {record['image_id']}")
        if record["category_id"] not in names:
            raise IntegrationError(f"record {row}: {dataset.name} has no category {record['category_id']}")
        by_image[record["image_id"]].append(record)
    for sample in dataset.iter_samples(autosave=True, progress=False):
        width, height = sample.metadata.width, sample.metadata.height
        detections = []
        for record in by_image[int(sample.image_id)]:
            x, y, w, h = record["bbox"]
            detections.append(
                fo.Detection(
                    label=names[record["category_id"]],
                    confidence=record["score"],
                    bounding_box=[x / width, y / height, w / width, h / height],
                    **record.get("attributes", {}),
                )
            )
        sample[field] = fo.Detections(detections=detections)
