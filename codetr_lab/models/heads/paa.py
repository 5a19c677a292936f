"""The PAA head (Kim & Lee, 2020): ATSS' anchors, assigned by what the head itself loses on them; IoU branch, voting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr_lab import boxes as box_ops
from codetr_lab.assign.max_iou import max_iou
from codetr_lab.assign.paa import paa_batch
from codetr_lab.losses import average_over_ranks, giou_loss, one_hot, sigmoid_focal_loss
from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.heads.anchors import Anchors, square_anchors
from codetr_lab.models.heads.atss import STDS
from codetr_lab.models.heads.dense import Dense, DenseHead, Scale, flat, joined
from codetr_lab.structures import Assignment, Candidates, Detections, ImageBatch, Target

VOTING_SIGMA = 0.025
VOTING_IOU = 0.01


class PAAHead(DenseHead):
    """Class, box and IoU of one square anchor per cell of every pyramid level.

    Losses: `classification` (focal) and `iou` (binary cross-entropy of the predicted with the actual IoU), divided by
    the number of positives, and `box` (GIoU weighted by that IoU), divided by the sum of the weights.
    """

    positives_need_training = True

    def __init__(self, config: CoDETRConfig, strides: Sequence[int], name: str = "paa") -> None:
        super().__init__(config, strides, name, config.paa)
        self.settings = config.paa
        self.paa_cls = self.layer(config.num_classes, score=0.01)
        self.paa_reg = self.layer(4)
        self.paa_iou = self.layer(1)
        self.scales = nn.ModuleList(Scale() for _ in self.strides)

    def forward(self, pyramid: Sequence[Tensor]) -> Dense:
        """Class logits, box deltas (R = 4) and IoU logits."""
        logits, deltas, overlap = [], [], []
        for (cls, reg), scale in zip(self.towers(pyramid), self.scales, strict=True):
            box, iou = joined(reg, self.paa_reg, self.paa_iou)
            logits.append(self.paa_cls(cls))
            deltas.append(scale(box))
            overlap.append(iou)
        return Dense(flat(logits, self.config.num_classes), flat(deltas, 4), flat(overlap, 1)[..., 0])

    def anchors(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> Anchors:
        return square_anchors(pyramid, self.strides, self.settings.anchor_scale, batch)

    def assign(self, anchors: Anchors, targets: Sequence[Target], output: Dense | None) -> list[Assignment]:
        assert output is not None, "PAA's label assignment needs the head's predictions"
        settings = self.settings
        candidates = [self.priced(anchors, output, image, target) for image, target in enumerate(targets)]
        return paa_batch(candidates, targets, top_k=settings.top_k, min_iou=settings.min_iou)

    @torch.no_grad()
    def priced(self, anchors: Anchors, output: Dense, image: int, target: Target) -> Candidates:
        """An image's candidates with their costs: focal plus GIoU loss for the object that each overlaps most."""
        candidates, limit = anchors.candidates(image), self.settings.min_iou
        near = max_iou(candidates, target, positive=limit, negative=limit)
        row = near.positive.nonzero()[:, 0]
        truth = target["boxes"][near.gt_index[row]]
        focal = sigmoid_focal_loss(output.logits[image, row], one_hot(near.labels[row], self.config.num_classes))
        box = giou_loss(box_ops.decode_deltas(anchors.boxes[row], output.regression[image, row], STDS), truth)
        costs = torch.zeros_like(anchors.stride)
        costs[row] = focal.sum(-1) + box
        return replace(candidates, costs=costs)

    def losses(self, output: Dense, anchors: Anchors, assignments: list[Assignment]) -> dict[str, Tensor]:
        matched, settings = self.matched(anchors, assignments), self.settings
        prior, truth = matched.prior, matched.truth
        predicted = box_ops.decode_deltas(prior, output.regression[matched.at], STDS)
        overlap = box_ops.iou(predicted.detach(), truth)
        iou = F.binary_cross_entropy_with_logits(output.quality[matched.at], overlap, reduction="sum")
        box = (giou_loss(predicted, truth) * overlap).sum() / average_over_ranks(overlap.sum())
        return {
            "classification": settings.weight_classification * self.focal(output.logits, assignments) / matched.count,
            "box": settings.weight_box * box,
            "iou": settings.weight_iou * iou / matched.count,
        }

    def boxes(self, output: Dense, anchors: Anchors) -> Tensor:
        return box_ops.decode_deltas(anchors.boxes, output.regression, STDS)

    def scores(self, output: Dense) -> Tensor:
        """Geometric mean of class score and predicted IoU."""
        return (output.logits.sigmoid() * output.quality.sigmoid()[..., None]).sqrt()

    def correct(self, kept: Detections, every: Detections) -> Detections:
        return vote(kept, every) if self.settings.voting else kept


def vote(kept: Detections, every: Detections) -> Detections:
    """Score voting: each kept box becomes the mean of all boxes of its class that overlap it.

    A box counts by its score times exp(-(1 - IoU)^2 / sigma).
    """
    overlap = box_ops.iou(kept.boxes[:, None], every.boxes)
    counts = (kept.labels[:, None] == every.labels) & (overlap > VOTING_IOU)
    weight = every.scores * torch.exp(-((1 - overlap) ** 2) / VOTING_SIGMA) * counts
    total = weight.sum(1, keepdim=True)
    # An empty box overlaps nothing, not even itself: it stays.
    return replace(kept, boxes=torch.where(total > 0, weight @ every.boxes / total.clamp(min=1e-12), kept.boxes))
