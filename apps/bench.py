"""What the workbench shows, computed once and remembered: no page state lives here, so that people are not mixed up."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from codetr_lab import assign
from codetr_lab.data.dataset import DetectionDataset
from codetr_lab.images import prepare, resize
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.heads.faster_rcnn import sample
from codetr_lab.structures import Assignment, Detections, ImageBatch, Target

T = TypeVar("T")
SHOWN_SIDE = 800
"""Pixels of the longer side to which a reader's image is reduced for the page; models read it as it came."""


@dataclass(frozen=True)
class Upload:
    """A reader's image, (H,W,3) uint8; `key` tells it from all others."""

    key: str
    image: NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """One image of the data set as a model reads it: (h,w,3) uint8 resized, and its objects in those pixels."""

    image: NDArray[np.uint8]
    target: Target
    batch: ImageBatch


@dataclass(frozen=True)
class Seen:
    """What one model made of one image, by head (`original` is the DETR decoder's last layer)."""

    scene: Scene
    assignments: dict[str, Assignment]
    detections: dict[str, Detections]


class Memory:
    """The `size` values that were asked for last; one computation at a time."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[object, object] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object, compute: Callable[[], T]) -> T:
        """The remembered value of `key`, or what `compute` gives."""
        with self._lock:
            if key not in self._values:
                self._values[key] = compute()
                if len(self._values) > self._size:
                    self._values.popitem(last=False)
            self._values.move_to_end(key)
            return self._values[key]  # type: ignore[return-value]


def titles(models: Mapping[str, CoDETR]) -> dict[str, str]:
    """What people call the models: "Co-DETR, K = 2"; with its name where two would be called the same."""
    plain = {}
    for name, model in models.items():
        k = len(model.config.aux_heads)
        plain[name] = f"{'Co-DETR' if k else 'Baseline'}, K = {k}"
    counts = Counter(plain.values())
    return {name: title if counts[title] == 1 else f"{title} ({name})" for name, title in plain.items()}


class Bench:
    """The loaded models and data set, and everything that has been computed with them.

    Args:
        models: by name, in evaluation mode.
        dataset: whose images are shown.
        remember: how many (model, image) pairs to keep.
    """

    def __init__(self, models: Mapping[str, CoDETR], dataset: DetectionDataset, remember: int = 200) -> None:
        if not models:
            raise ValueError("the workbench needs at least one model")
        if not len(dataset):
            raise ValueError(f"the workbench needs at least one image, but {dataset.name} is empty")
        self.models, self.dataset = dict(models), dataset
        self.titles = titles(self.models)
        self._memory = Memory(remember)

    def heads(self, model: str) -> list[str]:
        """The heads of a model, the DETR decoder (`original`) first."""
        return ["original", *self.models[model].heads]

    def seen(self, model: str, index: int) -> Seen:
        """The traced flow of `model` on image `index`."""
        return self._memory.get((model, index), lambda: self._look(model, index))

    def _scene(self, model: str, index: int) -> Scene:
        image, target = self.dataset.image(index), self.dataset.target(index, masks=False)
        ready = prepare(image, self.models[model].config.image)
        size = (ready.pixels.shape[1], ready.pixels.shape[2])
        scaled = {"boxes": target["boxes"] * torch.tensor([*ready.scale, *ready.scale]), "labels": target["labels"]}
        if "iscrowd" in target:
            scaled["iscrowd"] = target["iscrowd"]
        divisor = self.models[model].config.image.divisor
        batch = ImageBatch.from_images(
            [ready.pixels], divisor=divisor, original_sizes=[ready.original_size], scales=[ready.scale]
        )
        return Scene(resize(image, size), scaled, batch)

    def _look(self, model: str, index: int) -> Seen:
        scene = self._scene(model, index)
        trace = self.models[model].trace(scene.batch, [scene.target])
        assignments = {"original": trace.groups["original"].assignments[-1][0]}
        assignments |= {name: head.assignments[0] for name, head in trace.heads.items()}
        detections = {"original": trace.detections[0]}
        detections |= {name: head.detections[0] for name, head in trace.heads.items()}
        return Seen(scene, assignments, detections)

    def assignments(self, model: str, index: int, top_k: int, iou: float) -> dict[str, Assignment]:
        """Every head's assignment of the same candidates; ATSS with `top_k`, Faster R-CNN's RoIs from IoU `iou` on.

        Where a parameter is the model's own, the assignment is the one that the trace holds.
        """
        seen = self.seen(model, index)
        return {name: self._reassign(model, a, top_k, iou) for name, a in seen.assignments.items()}

    def _reassign(self, model: str, assignment: Assignment, top_k: int, iou: float) -> Assignment:
        candidates, target, own = assignment.candidates, assignment.target, assignment.parameters
        if "top_k" in own and own["top_k"] != top_k:
            return assign.atss(candidates, target, top_k=top_k)
        if "positive" in own and own["positive"] != iou:
            rule = own | {"positive": iou, "negative": iou}
            changed = assign.max_iou(candidates, target, name=assignment.rule, **rule)
            settings = self.models[model].config.faster_rcnn
            generator = torch.Generator().manual_seed(0)
            return sample(changed, settings.roi_samples, settings.roi_positive_fraction, generator)[1]
        return assignment

    def detect(self, model: str, upload: Upload) -> tuple[NDArray[np.uint8], dict[str, Detections]]:
        """A reader's image, reduced to at most `SHOWN_SIDE` pixels, and every head's detections in those pixels."""
        return self._memory.get((model, upload.key), lambda: self._detect(model, upload.image))

    def _detect(self, model: str, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], dict[str, Detections]]:
        heads = self.heads(model)
        found = self.models[model].predict([image], heads=["detr", *heads[1:]])[0]
        height, width = image.shape[:2]
        ratio = min(1.0, SHOWN_SIDE / max(height, width))
        size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
        enlarged = (width / size[1], height / size[0])
        shown = [found["detr"], *(found[name] for name in heads[1:])]
        return resize(image, size), {
            name: detections.to_original(enlarged, size) for name, detections in zip(heads, shown, strict=True)
        }
