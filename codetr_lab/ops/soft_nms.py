"""Soft-NMS (Bodla et al., 2017), linear, class by class, as the release runs it on DINO's queries."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from codetr_lab import boxes as box_ops


def soft_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou: float = 0.8, min_score: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Lower a box's score by the factor 1 - IoU for every better box of its class that it overlaps by `iou` or more.

    A box is better that has the higher score after all lowering so far. Boxes that end below `min_score` go, except
    the best of all.

    Args:
        boxes: (N,4) xyxy pixels. `scores`: (N,) in [0,1]. `labels`: (N,) long.

    Returns:
        Indices (M,) of what stays, best first, and their new scores (M,).
    """
    if not len(boxes):
        return labels, scores
    box, score, label = (tensor.detach().float().cpu() for tensor in (boxes, scores, labels))
    # Classes lie side by side, as in the release, whose rounding this keeps.
    apart = box + (label * (box.max() + 1))[:, None]
    # What is below `min_score` already goes before it can lower anything.
    enough = (score >= min_score).index_fill_(0, score.argmax(), True).nonzero()[:, 0]
    apart, score, label = apart[enough], score[enough], label[enough]
    one, two = (label[:, None] == label).triu(1).nonzero(as_tuple=True)
    overlap = box_ops.iou(apart[one], apart[two])
    near = overlap >= iou
    pair = torch.stack([one[near], two[near]])
    crowd, place = pair.unique(return_inverse=True)  # the other boxes neither lower a score nor are lowered
    factors = np.ones((len(crowd), len(crowd)), dtype=np.float32)
    row, column = place.numpy()
    factors[row, column] = factors[column, row] = 1 - overlap[near].numpy()
    lowered = score.clone()
    left = lowered[crowd].numpy()
    final = left.copy()
    for _ in crowd:
        best = int(left.argmax())
        final[best], left[best] = left[best], -1
        left = np.where(left >= 0, left * factors[best], left)
    lowered[crowd] = torch.from_numpy(final)
    kept, order = lowered.sort(descending=True, stable=True)
    stays = kept >= min_score
    stays[0] = True
    return enough[order[stays]].to(labels.device), kept[stays].to(scores)
