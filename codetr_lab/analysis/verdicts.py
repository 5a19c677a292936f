"""Which detections are right: each held against the image's objects, best score first, as COCO's evaluation does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from codetr_lab import boxes as box_ops
from codetr_lab.structures import IGNORED, NEGATIVE, Detections, Target


@dataclass(frozen=True)
class Verdicts:
    """What became of D detections and N objects of one image.

    Attributes:
        gt_index: (D,) long; the object that a detection found, `NEGATIVE` for a false one, `IGNORED` for one in a
            crowd region, which counts neither way.
        iou: (D,) with that object; for a false detection the best IoU with any object of its class, 0 without one.
        missed: (N,) bool; objects (crowds excepted) that nothing found.
    """

    gt_index: Tensor
    iou: Tensor
    missed: Tensor

    @property
    def right(self) -> Tensor:
        """(D,) bool: true positives."""
        return self.gt_index >= 0

    @property
    def false(self) -> Tensor:
        """(D,) bool: false positives, duplicates among them."""
        return self.gt_index == NEGATIVE


def verdicts(detections: Detections, target: Target, iou: float = 0.5) -> Verdicts:
    """Match detections to objects of their class with at least `iou`; an object is found once, by the best score.

    Args:
        detections: of one head in one image, best first, in the pixels of `target`.
        target: N objects; `iscrowd` marks regions in which detections count neither way.
        iou: in (0,1].
    """
    boxes, labels = target["boxes"], target["labels"]
    crowd = target["iscrowd"].bool() if "iscrowd" in target else torch.zeros(len(boxes), dtype=torch.bool)
    gt_index = torch.full((len(detections),), NEGATIVE)
    best = torch.zeros(len(detections))
    if not len(boxes) or not len(detections):
        return Verdicts(gt_index, best, ~crowd)
    same = detections.labels[:, None] == labels
    overlap = torch.where(same & ~crowd, box_ops.iou(detections.boxes[:, None], boxes), 0.0)
    taken = torch.zeros(len(boxes), dtype=torch.bool)
    order = detections.scores.argsort(descending=True, stable=True)
    for row in order.tolist():
        free = overlap[row].masked_fill(taken, -1)
        value, index = free.max(0)
        if float(value) >= iou:
            gt_index[row], best[row] = index, value
            taken[index] = True
        else:
            best[row] = overlap[row].max()
    if bool(crowd.any()):
        inside = _share_inside(detections.boxes, boxes[crowd])
        inside = torch.where(same[:, crowd], inside, 0.0).amax(1)
        gt_index = torch.where((gt_index == NEGATIVE) & (inside >= iou), IGNORED, gt_index)
    return Verdicts(gt_index, best, ~taken & ~crowd)


def _share_inside(boxes: Tensor, regions: Tensor) -> Tensor:
    """(D,R) share of each box's own area that lies inside each region."""
    corner = torch.maximum(boxes[:, None, :2], regions[:, :2])
    sides = (torch.minimum(boxes[:, None, 2:], regions[:, 2:]) - corner).clamp(min=0)
    return sides.prod(-1) / box_ops.area(boxes).clamp(min=1e-6)[:, None]
