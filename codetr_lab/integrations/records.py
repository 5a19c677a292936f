"""What label assignment did in every image of a data set, as plain records: what FiftyOne and the static page show.

A record holds, per model and head, detections, queries, maps and numbers. Whoever shows them computes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codetr_lab import boxes as box_ops
from codetr_lab.analysis import AnalysisError, IofIobCurve, discriminability, foreground_from_boxes, iof_iob_curve
from codetr_lab.analysis.attention import cross_attention
from codetr_lab.analysis.verdicts import verdicts
from codetr_lab.data.transforms import collate, evaluation_sample
from codetr_lab.structures import QUERY_KINDS, Assignment, Detections, QueryGroup, Target, Trace

if TYPE_CHECKING:
    from codetr_lab.data.dataset import DetectionDataset
    from codetr_lab.models.codetr import CoDETR

IOB_GRID = [step / 20 for step in range(21)]
"""The IoB at which every image's curve is read, so that curves of any selection of images can be averaged."""


class IntegrationError(ValueError):
    """Something outside cannot be used as asked; the message names it, says why and what to do."""


@dataclass(frozen=True)
class Mark:
    """One box or point of an image.

    Attributes:
        box: x, y, width, height as shares of the image, in [0,1] unless an anchor sticks out.
        label: class name.
        score: in [0,1], or None.
        values: whatever else is known of it (level, IoU, matched object ...).
    """

    box: tuple[float, float, float, float]
    label: str
    score: float | None = None
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageRecord:
    """One image and what the models did with it.

    Attributes:
        image_id: the data set's own.
        number: its place in the data set, from 0, by which the workbench knows it.
        path: the image file.
        size: (height, width) in pixels.
        truth: the objects, in the data set's order; `values["crowd"]` where it is a crowd.
        boxes: by field name; detections and queries of every model.
        maps: by field name, (H,W) uint8 in 1..255 (0 is transparent in FiftyOne).
        numbers: by field name.
        curves: by field name, IoF at `IOB_GRID`.
        built_from: fingerprint of the models and settings, by which a later build knows what it can keep.
    """

    image_id: int
    number: int
    path: Path
    size: tuple[int, int]
    truth: list[Mark]
    boxes: dict[str, list[Mark]]
    maps: dict[str, NDArray[np.uint8]]
    numbers: dict[str, float]
    curves: dict[str, list[float]]
    built_from: str


def field_prefixes(names: Sequence[str]) -> dict[str, str]:
    """Model name to what its fields begin with: nothing for the first model, `<model>_` for the others."""
    return {name: "" if index == 0 else f"{name}_" for index, name in enumerate(names)}


def fingerprint(models: Mapping[str, CoDETR], min_score: float) -> str:
    """Twelve hexadecimal digits of the models' configurations and weights and the settings."""
    digest = hashlib.sha256(f"records 2, {min_score!r}".encode())  # count up when records hold something new
    for name, model in models.items():
        digest.update(f"{name}{model.config}".encode())
        for key, tensor in model.state_dict().items():
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:12]


def records(
    models: Mapping[str, CoDETR],
    dataset: DetectionDataset,
    paths: Sequence[Path],
    *,
    indices: Sequence[int] | None = None,
    min_score: float = 0.2,
    built_from: str | None = None,
) -> Iterator[ImageRecord]:
    """The records of a data set's images, in order, one image at a time: losses and queries are then its own.

    Args:
        models: by name; the first one's fields carry no prefix.
        paths: the image file of every index of the data set.
        indices: which images; all if left out.
        min_score: detections with a lower score are left out.
        built_from: the models' `fingerprint`, if it is known already.

    Raises:
        IntegrationError: a model knows other classes than the data set.
    """
    for name, model in models.items():
        if model.config.num_classes != len(dataset.classes):
            raise IntegrationError(
                f"{name} knows {model.config.num_classes} classes, {dataset.name} has {len(dataset.classes)}; "
                "choose a model that was trained on these classes"
            )
    built_from = built_from or fingerprint(models, min_score)
    for index in range(len(dataset)) if indices is None else indices:
        views = [
            _View(models[name], dataset, index, prefix, min_score)
            for name, prefix in field_prefixes(list(models)).items()
        ]
        size, target = views[0].size, views[0].objects
        counts = [view.counts() for view in views]
        crowd = target.get("iscrowd", torch.zeros(len(target["boxes"]), dtype=torch.bool)).tolist()
        truth = [
            _mark(size, dataset.classes, box, label, object=number, crowd=bool(crowd[number]),
                  **{name: values[number] for part in counts for name, values in part.items() if number in values})
            for number, (box, label) in enumerate(zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True))
        ]  # fmt: skip
        record = ImageRecord(int(target["image_id"]), index, paths[index], size, truth, {}, {}, {}, {}, built_from)
        for view in views:
            record.boxes.update(view.boxes())
            record.maps.update(view.maps())
            record.numbers.update(view.numbers())
            record.curves.update(view.curves())
        yield record


def _mark(
    size: tuple[int, int], classes: Sequence[str], box: Sequence[float], label: int, score: float | None = None,
    **values: Any,
) -> Mark:  # fmt: skip
    """A mark from an xyxy box in the file's pixels."""
    height, width = size
    x0, y0, x1, y1 = box
    share = (x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height)
    return Mark(share, classes[label] if label >= 0 else "none", score, values)


class _View:
    """One model's trace of one image, read out field by field."""

    def __init__(self, model: CoDETR, dataset: DetectionDataset, index: int, prefix: str, min_score: float) -> None:
        self.prefix, self.min_score, self.classes = prefix, min_score, dataset.classes
        sample = evaluation_sample(_Numbered(dataset), index, model.config.image)
        batch, targets = collate([sample], model.config.image.divisor)
        self.objects = dataset.target(index, masks=False)
        self.numbers_of_objects: list[int] = targets[0]["number"].tolist()
        given = {name: targets[0][name] for name in ("boxes", "labels")}
        device = next(model.parameters()).device
        on_device = {name: value.to(device) for name, value in given.items()}
        self.trace: Trace = model.trace(batch.to(device), [on_device]).detach().to("cpu")
        self.size = sample.original_size
        self.scale, self.valid_size = batch.scales[0], batch.valid_sizes[0]
        score_map = discriminability(self.trace.memory, _size(batch.pad_mask), batch.pad_mask)[0, 0]
        self.score_map = score_map[: self.valid_size[0], : self.valid_size[1]]
        try:
            inside = foreground_from_boxes(given["boxes"], _size(self.score_map))
            self.curve: IofIobCurve | None = iof_iob_curve(self.score_map, inside)
        except AnalysisError:
            self.curve = None

    def assignments(self) -> dict[str, Assignment]:
        """By head: the original queries' last layer, then what makes each head's queries."""
        own = {name: head.assignments[0] for name, head in self.trace.heads.items() if head.assignments}
        original = self.trace.groups.get("original")
        return own if original is None else {"original": original.assignments[-1][0], **own}

    def counts(self) -> dict[str, dict[int, int]]:
        """Positives of every object, by field name and the object's number in the data set."""
        return {
            f"{self.prefix}positives_{name}": dict(
                zip(self.numbers_of_objects, assignment.count_per_object().tolist(), strict=True)
            )
            for name, assignment in self.assignments().items()
        }

    def detections(self) -> dict[str, Detections]:
        """By head, the decoder's first: what scores at least `min_score`, in the file's pixels."""
        found = {name: head.detections[0] for name, head in self.trace.heads.items() if head.detections}
        if self.trace.detections and "original" in self.trace.groups:
            found = {"detr": self.trace.detections[0], **found}
        return {
            head: detections.select(detections.scores >= self.min_score).to_original(self.scale, self.size)
            for head, detections in found.items()
        }

    def boxes(self) -> dict[str, list[Mark]]:
        """Detections of every head; original queries and their matches; each head's customized queries."""
        fields = {self.prefix + head: self._detections(detections) for head, detections in self.detections().items()}
        for name, group in self.trace.groups.items():
            if name == "original":
                queries = fields[f"{self.prefix}queries"] = self._queries(group, last=True)
                fields[f"{self.prefix}matched_queries"] = [m for m in queries if m.values["object"] >= 0]
            elif name in self.trace.heads:
                fields[f"{self.prefix}queries_{name}"] = self._queries(group, last=False)
        return fields

    def maps(self) -> dict[str, NDArray[np.uint8]]:
        """D(F) of the encoder, and where the last decoder layer's matched queries look."""
        maps = {f"{self.prefix}encoder_map": _quantised(self.score_map)}
        group = self.trace.groups.get("original")
        if group is not None and group.attention_weights is not None:
            attention = cross_attention(self.trace)[0, 0]
            maps[f"{self.prefix}decoder_map"] = _quantised(attention[: self.valid_size[0], : self.valid_size[1]])
        return maps

    def numbers(self) -> dict[str, float]:
        """Positives per object, losses by part, detections right and false, objects missed, and separation."""
        numbers = {
            f"{self.prefix}positives_per_object_{name}": float(assignment.count_per_object().float().mean())
            for name, assignment in self.assignments().items()
            if self.numbers_of_objects
        }
        for key, value in self.trace.losses.items():
            part, *rest = key.split(".")
            name = f"{self.prefix}loss_{part if part == 'encoder' else f'{part}_{rest[0]}'}"
            numbers[name] = numbers.get(name, 0.0) + float(value)
        for head, found in self.detections().items():
            judged = verdicts(found, self.objects)
            for word, value in (("right", judged.right), ("false", judged.false), ("missed", judged.missed)):
                numbers[f"{self.prefix}{head}_{word}"] = float(value.sum())
        if self.curve is not None:
            numbers[f"{self.prefix}iof_at_iob_20"] = self._iof(0.2)
            numbers[f"{self.prefix}iof_iob_area"] = self.curve.area()
        return numbers

    def curves(self) -> dict[str, list[float]]:
        """The IoF-IoB curve at `IOB_GRID`; nothing where all is object, or all background."""
        if self.curve is None:
            return {}
        return {f"{self.prefix}iof_curve": [self._iof(iob) for iob in IOB_GRID]}

    def _iof(self, iob: float) -> float:
        """IoF at the lowest threshold whose IoB is at least `iob`."""
        assert self.curve is not None
        return float(self.curve.iof[min(int(torch.searchsorted(self.curve.iob, iob)), len(self.curve.iob) - 1)])

    def _detections(self, found: Detections) -> list[Mark]:
        rows = zip(
            found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), found.source_index.tolist(), strict=True
        )
        return [_mark(self.size, self.classes, box, label, score, source=source) for box, label, score, source in rows]

    def _queries(self, group: QueryGroup, *, last: bool) -> list[Mark]:
        """One group's queries: final boxes (`last`), or the reference boxes that the first layer reads."""
        assignment = group.assignments[-1][0]
        cxcywh = group.boxes_cxcywh[-1, 0] if last else group.reference_boxes[0, 0]
        if cxcywh.shape[-1] == 2:  # a decoder of points: its references have no size
            cxcywh = torch.cat([cxcywh, torch.zeros_like(cxcywh)], -1)
        boxes = box_ops.cxcywh_to_xyxy(cxcywh) * self.trace.batch.whwh()[0]
        own = assignment.positive
        overlap = box_ops.iou(boxes, assignment.target_boxes)
        iou = torch.where(own, overlap, 0)
        scores, labels = group.logits[-1, 0].sigmoid().max(-1)
        original = (boxes / boxes.new_tensor([*self.scale] * 2)).tolist()
        levels = self._levels(group)
        return [
            _mark(
                self.size, self.classes, original[i], int(labels[i]), float(scores[i]), query=i,
                kind=QUERY_KINDS[int(group.kind[0, i])], layer=len(group.logits) if last else 0, level=levels[i],
                object=self.numbers_of_objects[int(assignment.gt_index[i])] if own[i] else -1, iou=float(iou[i]),
            )
            for i in range(len(boxes))
            if QUERY_KINDS[int(group.kind[0, i])] != "empty"
        ]  # fmt: skip

    def _levels(self, group: QueryGroup) -> list[int]:
        """The level that each query came from, finest 0; -1 where it came from none or was drawn from many."""
        levels = [-1] * group.kind.shape[1]
        head = self.trace.heads.get(group.name)
        own: list[int] = []
        if head is not None and head.positives:
            own = head.positives[0].level.tolist()
        elif group.name == "original" and self.trace.proposals is not None:
            cells = torch.tensor([level.shape[2] * level.shape[3] for level in self.trace.memory])
            own = torch.bucketize(self.trace.proposals.index[0], cells.cumsum(0), right=True).tolist()
        if len(own) <= len(levels):  # positives come first, in order, unless there were too many
            levels[: len(own)] = own
        return levels


class _Numbered:
    """A data set whose targets say which object is which, so that dropped ones do not shift the count."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self._dataset = dataset

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def target(self, index: int, *, masks: bool = False) -> Target:
        target = self._dataset.target(index, masks=masks)
        return {**target, "number": torch.arange(len(target["boxes"]))}


def _quantised(score_map: Tensor) -> NDArray[np.uint8]:
    """Scores stretched between their own extremes to 1..255: the encoder's LayerNorm leaves little contrast."""
    low, high = score_map.min(), score_map.max()
    share = (score_map - low) / torch.where(high > low, high - low, 1)
    return (1 + (share * 254).round()).to(torch.uint8).numpy()


def _size(plane: Tensor) -> tuple[int, int]:
    return (int(plane.shape[-2]), int(plane.shape[-1]))
