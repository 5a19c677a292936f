"""Losses that several heads share. None of them reduces to a mean: the caller divides by its own normaliser."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from codetr_lab import boxes as box_ops


def sigmoid_focal_loss(logits: Tensor, one_hot: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al., 2017), element by element; `one_hot` has the shape of `logits`, zeros = background."""
    probability = logits.sigmoid()
    miss = probability * (1 - one_hot) + (1 - probability) * one_hot
    weight = (alpha * one_hot + (1 - alpha) * (1 - one_hot)) * miss.pow(gamma)
    return F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none") * weight


def quality_focal_loss(logits: Tensor, one_hot: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal loss (Li et al., 2020) by element: where `one_hot` is 1, the IoU `quality` is the target."""
    target = one_hot * quality
    distance = (target - logits.sigmoid()).abs()
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none") * distance.pow(beta)


def giou_loss(boxes: Tensor, target_boxes: Tensor, eps: float = 1e-6) -> Tensor:
    """1 - GIoU of paired (...,4) xyxy boxes, in [0,2]. `eps` floors areas (release: 1e-6, in the heads too)."""
    return 1 - box_ops.giou(boxes, target_boxes, eps)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(...) labels to (...,C) float; any label outside 0..C-1 gives a row of zeros."""
    return (labels[..., None] == torch.arange(num_classes, device=labels.device)).float()


def average_over_ranks(count: Tensor | float, minimum: float = 1.0) -> Tensor:
    """A loss normaliser averaged over the processes of a distributed run, at least `minimum`."""
    value = torch.as_tensor(count, dtype=torch.float32)
    if dist.is_available() and dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value.clamp(min=minimum)
