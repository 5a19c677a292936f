"""COCO numbers of every head of a model, in one forward pass per batch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from codetr_lab.engine.checkpoint import write_atomically
from codetr_lab.engine.predict import predictions
from codetr_lab.engine.tta import TTA

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from codetr_lab.data.dataset import DetectionDataset
    from codetr_lab.models.codetr import CoDETR
    from codetr_lab.structures import Target

Record = dict[str, Any]
"""One COCO result: `image_id`, `category_id`, `bbox` (xywh, pixels of the file), `score`."""

METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The 12 numbers in COCO's order. AP and AR average IoU 0.50:0.95; s, m, l: areas below 32^2, to 96^2, above."""


class EvaluationError(ValueError):
    """Results and ground truth do not fit together; the message names the record and the mend."""


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's numbers in [0,1]; NaN where COCO says -1: there was no object to find.

    Attributes:
        stats: by the names of `METRIC_NAMES`; `metrics["AP"]` is short for `metrics.stats["AP"]`.
        per_class: AP by class name, in the data set's order of category ids.
        images: how many images were evaluated.
    """

    stats: dict[str, float]
    per_class: dict[str, float]
    images: int

    def __getitem__(self, name: str) -> float:
        return self.stats[name]

    @property
    def ap(self) -> float:
        """AP at IoU 0.50:0.95."""
        return self.stats["AP"]

    @property
    def ap50(self) -> float:
        """AP at IoU 0.50."""
        return self.stats["AP50"]

    def to_json(self) -> Record:
        """Plain values; None for NaN, which JSON does not have."""

        def plain(values: dict[str, float]) -> dict[str, float | None]:
            return {name: None if math.isnan(value) else value for name, value in values.items()}

        return {"stats": plain(self.stats), "per_class": plain(self.per_class), "images": self.images}


def _nan_if_absent(values: np.ndarray) -> float:
    """Mean of the entries that COCO defined; NaN if it defined none (all -1)."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")


def _checked(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], geometry: str) -> dict[str, Any]:
    """A copy of the ground truth that the evaluator may write into, annotations numbered from 1.

    (COCO's matching takes annotation id 0 for "no match"; numbering from 1 keeps files that start at 0 right.)
    """
    for key in ("images", "annotations", "categories"):
        if key not in ground_truth:
            raise EvaluationError(f"the ground truth has no {key!r}; it is not in COCO's detection format")
    images = {image["id"] for image in ground_truth["images"]}
    if not images:
        raise EvaluationError("the ground truth has no images; there is nothing to evaluate on")
    categories = {category["id"] for category in ground_truth["categories"]}
    annotations = []
    for number, annotation in enumerate(ground_truth["annotations"], 1):
        missing = [key for key in ("image_id", "category_id", "area", geometry) if key not in annotation]
        if missing:
            raise EvaluationError(f"annotation {annotation.get('id', number - 1)}: has no {missing[0]!r}; add it")
        annotations.append({"iscrowd": 0, **annotation, "id": number})
    for number, result in enumerate(results):
        missing = [key for key in ("image_id", "category_id", "score", geometry) if key not in result]
        if missing:
            raise EvaluationError(f"result {number}: has no {missing[0]!r}; each needs a {geometry} and a score")
        if result["image_id"] not in images:
            raise EvaluationError(
                f"result {number}: image_id {result['image_id']} is not in the ground truth; evaluate on the data set "
                "that the results were made from"
            )
        if result["category_id"] not in categories:
            raise EvaluationError(
                f"result {number}: category_id {result['category_id']} is not in the ground truth; map labels back "
                "with the data set's category_ids"
            )
    return {
        "images": [dict(image) for image in ground_truth["images"]],
        "annotations": annotations,
        "categories": [dict(category) for category in ground_truth["categories"]],
    }


def coco_metrics(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: str = "bbox"
) -> CocoMetrics:
    """The 12 COCO numbers and the AP of every class; equal to pycocotools'.

    Args:
        ground_truth: a COCO detection file's content; annotations need `area`. Crowd regions neither count as objects
            nor as false positives when they are found.
        results: COCO result records: `image_id`, `category_id`, `bbox` (xywh) or `segmentation`, `score`.
        iou_type: `bbox` or `segm`.

    Raises:
        EvaluationError: a record lacks something or names an image or class that the ground truth does not have.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if iou_type not in ("bbox", "segm"):
        raise EvaluationError(f"unknown iou_type {iou_type!r}; choose from bbox, segm")
    checked = _checked(ground_truth, results, "bbox" if iou_type == "bbox" else "segmentation")
    names = {category["id"]: category["name"] for category in checked["categories"]}
    truth = COCO(checked)
    evaluator = COCOeval_faster(truth, truth.loadRes([dict(result) for result in results]), iou_type)
    evaluator.run()
    # precision: (IoU thresholds, recalls, classes, areas, detection limits)
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    return CocoMetrics(
        stats={
            name: _nan_if_absent(np.array(value)) for name, value in zip(METRIC_NAMES, evaluator.stats, strict=True)
        },
        per_class={names[key]: _nan_if_absent(precision[:, :, k]) for k, key in enumerate(evaluator.params.catIds)},
        images=len(checked["images"]),
    )


class FirstImages:
    """The first `count` images of a data set, as a data set."""

    def __init__(self, dataset: DetectionDataset, count: int) -> None:
        if count < 1:
            raise EvaluationError(f"cannot evaluate on {count} images; give a limit of at least 1")
        self.dataset, self.count = dataset, min(count, len(dataset))
        self.name, self.classes, self.category_ids = dataset.name, dataset.classes, dataset.category_ids

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> NDArray[np.uint8]:
        return self.dataset.image(self._inside(index))

    def target(self, index: int, *, masks: bool = True) -> Target:
        return self.dataset.target(self._inside(index), masks=masks)

    def file_name(self, index: int) -> str:
        return self.dataset.file_name(self._inside(index))

    def to_coco(self) -> Record:
        truth = self.dataset.to_coco()
        kept = {int(self.dataset.target(index, masks=False)["image_id"]) for index in range(self.count)}
        return {
            **truth,
            "images": [image for image in truth["images"] if image["id"] in kept],
            "annotations": [annotation for annotation in truth["annotations"] if annotation["image_id"] in kept],
        }

    def _inside(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"image {index}: these are the first {self.count} images of {self.name}")
        return index


@torch.no_grad()
def detect_all(
    model: CoDETR,
    dataset: DetectionDataset,
    *,
    heads: Sequence[str] | None = None,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    progress: bool = True,
    tta: TTA | None = None,
) -> dict[str, list[Record]]:
    """COCO result records of every image by head, one forward pass per batch, boxes in the pixels of the file.

    Args:
        heads: of the model's `detectors`; by default the main head.
        batch_size: at most so many images at once; only those of one size share a batch (see `predictions`).
        tta: look at several sizes and mirrored, and merge.
        device: where the model is moved to and stays; by default it is used where it is.
        progress: show a bar.

    Raises:
        EvaluationError: no images, no heads, or the model has another number of classes than the data set.
        ConfigError: the model has no such head.
    """
    if not len(dataset):
        raise EvaluationError(f"{dataset.name}: has no images to evaluate on")
    heads = model.detectors[:1] if heads is None else heads
    if not heads:
        raise EvaluationError(f"no head to evaluate; name at least one of {', '.join(model.detectors)}")
    if model.config.num_classes != len(dataset.classes):
        raise EvaluationError(
            f"{dataset.name}: has {len(dataset.classes)} classes, the model knows {model.config.num_classes}; "
            "evaluate a model that was trained on these classes"
        )
    if device is not None:
        model.to(device)
    found: dict[str, list[Record]] = {head: [] for head in heads}
    images = (dataset.image(index) for index in range(len(dataset)))
    with tqdm(total=len(dataset), desc=f"evaluate {dataset.name}", unit="image", disable=not progress) as bar:
        for index, by_head in predictions(model, images, heads, batch_size=batch_size, tta=tta):
            image_id = int(dataset.target(index, masks=False)["image_id"])
            for head in heads:
                found[head] += by_head[head].to_coco(image_id, dataset.category_ids)
            bar.update()
    return found


def evaluate(
    model: CoDETR,
    dataset: DetectionDataset,
    *,
    heads: Sequence[str] | None = None,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    progress: bool = True,
    limit: int | None = None,
    export: str | Path | None = None,
    tta: TTA | None = None,
) -> dict[str, CocoMetrics]:
    """The COCO numbers of every head on a data set, heads in the order asked for.

    Args:
        heads, batch_size, device, progress, tta: as in `detect_all`.
        limit: evaluate on the first images only.
        export: a folder that gets one COCO results file per head, `results_<head>.json`.

    Raises:
        EvaluationError, ConfigError: as in `detect_all`.
        OSError: the results cannot be written.
    """
    if limit is not None:
        dataset = FirstImages(dataset, limit)
    found = detect_all(model, dataset, heads=heads, batch_size=batch_size, device=device, progress=progress, tta=tta)
    if export is not None:
        for head, records in found.items():
            write_results(Path(export) / f"results_{head}.json", records)
    truth = dataset.to_coco()
    return {head: coco_metrics(truth, records) for head, records in found.items()}


def write_results(path: str | Path, records: Sequence[Record]) -> None:
    """Write result records as COCO's results file, atomically; pycocotools' `loadRes` reads it.

    Raises:
        CheckpointError: the file cannot be written.
    """
    write_atomically(Path(path), json.dumps(list(records)).encode())


def _cells(values: Sequence[float]) -> str:
    return "".join(f"{'-' if math.isnan(value) else f'{value:.3f}':>7}" for value in values)


def format_metrics(results: Mapping[str, CocoMetrics]) -> str:
    """Two tables as text: the 12 numbers per head, and AP per class and head. `-` where there was no object to find."""
    width = max(len(name) for name in ("class", *results, *(c for m in results.values() for c in m.per_class))) + 1
    lines = ["head".ljust(width) + "".join(f"{name:>7}" for name in METRIC_NAMES)]
    lines += [head.ljust(width) + _cells([m[name] for name in METRIC_NAMES]) for head, m in results.items()]
    classes = dict.fromkeys(name for metrics in results.values() for name in metrics.per_class)
    columns = [max(len(head) + 2, 7) for head in results]
    lines += ["", "AP by class".ljust(width) + "".join(f"{h:>{n}}" for h, n in zip(results, columns, strict=True))]
    for name in classes:
        values = [metrics.per_class.get(name, math.nan) for metrics in results.values()]
        cells = ["-" if math.isnan(value) else f"{value:.3f}" for value in values]
        lines.append(name.ljust(width) + "".join(f"{c:>{n}}" for c, n in zip(cells, columns, strict=True)))
    images = {metrics.images for metrics in results.values()}
    return "\n".join([*lines, "", f"{', '.join(map(str, sorted(images)))} images"])
