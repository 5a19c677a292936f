"""The losses of the decoder's groups and of the encoder's proposals: L_dec of Eq. 5 and 6, per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codetr_lab import boxes as box_ops
from codetr_lab import losses
from codetr_lab.assign.grouped import as_repeated
from codetr_lab.assign.hungarian import hungarian_assignment, match_batch
from codetr_lab.models.config import CoDETRConfig, MatchConfig
from codetr_lab.structures import Assignment, Candidates, ImageBatch, Quality, Target


@dataclass(frozen=True)
class PaddedTargets:
    """The ground truth of a batch in rectangular tensors.

    Attributes:
        labels: (B,N) and `boxes`: (B,N,4) xyxy pixels, padded with zeros to the largest number of objects (at least 1).
        counts: objects per image.
        whwh: (B,4) valid width, height, width, height.
    """

    labels: Tensor
    boxes: Tensor
    counts: list[int]
    whwh: Tensor

    @classmethod
    def of(cls, targets: Sequence[Target], batch: ImageBatch) -> PaddedTargets:
        counts = [len(target["labels"]) for target in targets]
        labels = torch.zeros(len(targets), max(1, *counts, 1), dtype=torch.long, device=batch.pixels.device)
        boxes = batch.pixels.new_zeros(*labels.shape, 4)
        for index, target in enumerate(targets):
            labels[index, : counts[index]] = target["labels"]
            boxes[index, : counts[index]] = target["boxes"]
        return cls(labels, boxes, counts, batch.whwh())

    def as_objects(self) -> PaddedTargets:
        """The same boxes with every label 0: what the release's encoder loss learns."""
        return PaddedTargets(torch.zeros_like(self.labels), self.boxes, self.counts, self.whwh)

    def match(self, logits: Tensor, boxes_cxcywh: Tensor, config: MatchConfig, repeats: int = 1) -> Tensor:
        """(L,B,Q) object of every prediction by Hungarian matching, `NEGATIVE` for the rest.

        `repeats`: how many predictions an object gets, where there are enough (H-DETR).
        """
        return match_batch(
            logits, boxes_cxcywh, self.labels, self.boxes, self.counts, self.whwh,
            classification=config.classification, l1=config.l1, giou=config.giou,
            focal_alpha=config.focal_alpha, focal_gamma=config.focal_gamma, repeats=repeats,
        )  # fmt: skip


def set_losses(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    gt_index: Tensor,
    truth: PaddedTargets,
    config: CoDETRConfig,
    *,
    weight: Tensor | None = None,
    positives: Tensor | float | None = None,
) -> dict[str, Tensor]:
    """Classification, L1 and GIoU loss of every layer, given which object each prediction must become.

    Args:
        logits: (L,B,Q,C). `boxes_cxcywh`: (L,B,Q,4). `gt_index`: (L,B,Q).
        weight: (B,Q) of the classification loss; zero for empty slots.
        positives: the normaliser, by default the number of matched queries per layer; averaged over ranks, at least 1.

    Returns:
        `classification`, `l1`, `giou`, each (L,).
    """
    settings, match = config.decoder, config.match
    matched = gt_index >= 0
    safe = gt_index.clamp(min=0)
    image = torch.arange(logits.shape[1], device=logits.device)[None, :, None]
    labels = torch.where(matched, truth.labels[image, safe], -1)
    target_boxes = truth.boxes[image, safe]
    whwh = truth.whwh[None, :, None]
    normaliser = losses.average_over_ranks(matched.sum((1, 2)) if positives is None else positives)

    target_cxcywh = box_ops.xyxy_to_cxcywh(target_boxes / whwh)
    wanted = losses.one_hot(labels, logits.shape[-1])
    if settings.classification_loss == "focal":
        classification = losses.sigmoid_focal_loss(logits, wanted, match.focal_alpha, match.focal_gamma).sum(-1)
    else:
        found, wished = (box_ops.cxcywh_to_xyxy(boxes) for boxes in (boxes_cxcywh.detach(), target_cxcywh))
        quality = box_ops.iou(found, wished)
        classification = losses.quality_focal_loss(logits, wanted, quality[..., None]).sum(-1)
    if weight is not None:
        classification = classification * weight
    l1 = (boxes_cxcywh - target_cxcywh).abs().sum(-1)
    giou = losses.giou_loss(box_ops.cxcywh_to_xyxy(boxes_cxcywh) * whwh, target_boxes)
    return {
        "classification": settings.weight_classification * classification.sum((1, 2)) / normaliser,
        # masked, not multiplied: an unmatched box may be anything
        "l1": settings.weight_l1 * torch.where(matched, l1, 0).sum((1, 2)) / normaliser,
        "giou": settings.weight_giou * torch.where(matched, giou, 0).sum((1, 2)) / normaliser,
    }


def group_assignments(
    logits: Tensor, boxes_cxcywh: Tensor, gt_index: Tensor, targets: Sequence[Target], batch: ImageBatch,
    config: CoDETRConfig, repeats: int = 1,
) -> list[list[Assignment]]:  # fmt: skip
    """`[layer][image]` records of matches made by `PaddedTargets.match`, for people."""
    match = config.match
    pixels = box_ops.cxcywh_to_xyxy(boxes_cxcywh) * batch.whwh()[None, :, None]
    weights = {"classification": match.classification, "l1": match.l1, "giou": match.giou}

    def record(layer: int, image: int) -> Assignment:
        candidates = Candidates.of_boxes(pixels[layer, image], scores=logits[layer, image])
        settings = {"image_size": batch.valid_sizes[image], **weights}
        found = hungarian_assignment(candidates, targets[image], gt_index[layer, image], settings)
        return found if repeats == 1 else as_repeated(found, repeats)

    return [[record(layer, image) for image in range(len(targets))] for layer in range(len(logits))]


def given_assignments(
    boxes: Tensor, gt_index: Tensor, weight: Tensor, targets: Sequence[Target], head: str, layers: int
) -> list[list[Assignment]]:
    """`[layer][image]` records of queries whose objects are fixed for all layers: a head's (Eq. 5), or denoising's."""

    def explain(assignment: Assignment, index: int) -> str:
        matched = int(assignment.gt_index[index])
        if head == "denoising":
            made = f"object {matched} with noise, and must find it" if matched >= 0 else "an object with much noise"
            return f"Query {index} was made from {made}{'' if matched >= 0 else '; it learns to be background'}."
        if matched >= 0:
            return f"Query {index} was made from a positive of {head} and keeps its object {matched} in every layer."
        return f"Query {index} fills the group up with a negative of {head}; it learns to be background."

    per_image = []
    for image, target in enumerate(targets):
        taken = weight[image] > 0
        count = len(target["labels"])
        threshold = boxes.new_full((count,), float("nan"))
        per_image.append(
            Assignment(
                Candidates.of_boxes(boxes[image]), target, gt_index[image], taken,
                Quality("assigned by the head", higher_is_better=True), threshold, f"given by {head}", {}, explain,
            )
        )  # fmt: skip
    return [per_image] * layers
