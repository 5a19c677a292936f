"""The heads' NMS, class by class: hard, or soft as in the released ViT configurations."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from codetr_lab.ops.soft_nms import soft_nms

SPLIT = 10_000
"""From so many boxes on, each class has a soft-NMS of its own (release), which then keeps its best box at any score."""


def class_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, soft: bool) -> tuple[Tensor, Tensor]:
    """What stays of (N,4) boxes, as indices (M,) with their scores (M,), best first.

    Args:
        soft: lower scores of boxes that overlap by `iou` or more, instead of dropping the boxes.
    """
    if not soft:
        keep = batched_nms(boxes, scores, labels, iou)
        return keep, scores[keep]
    if len(boxes) < SPLIT:
        return soft_nms(boxes, scores, labels, iou)
    kept, lowered = [], []
    for label in labels.unique():
        own = (labels == label).nonzero()[:, 0]
        index, score = soft_nms(boxes[own], scores[own], torch.zeros_like(own), iou)
        kept.append(own[index])
        lowered.append(score)
    score, order = torch.cat(lowered).sort(descending=True, stable=True)
    return torch.cat(kept)[order], score
