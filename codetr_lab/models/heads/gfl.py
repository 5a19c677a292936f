"""The GFL head (Li et al., 2020): a class score that is the IoU, and sides that are distributions of distances."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codetr_lab import boxes as box_ops
from codetr_lab.assign import atss
from codetr_lab.losses import average_over_ranks, giou_loss, one_hot, quality_focal_loss
from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.heads.anchors import Anchors, square_anchors
from codetr_lab.models.heads.dense import Dense, DenseHead, Scale, flat
from codetr_lab.models.heads.fcos import around
from codetr_lab.structures import Assignment, ImageBatch, Target


class GFLHead(DenseHead):
    """Class and four distributions of one square anchor per cell of every pyramid level; assignment is ATSS'.

    Losses: `classification` (quality focal), `box` (GIoU) and `distribution` (distribution focal); the last two are
    weighted by the positive's best class score and divided by the sum of the weights.
    """

    def __init__(self, config: CoDETRConfig, strides: Sequence[int], name: str = "gfl") -> None:
        super().__init__(config, strides, name, config.gfl)
        self.settings = config.gfl
        self.gfl_cls = self.layer(config.num_classes, score=0.01)
        self.gfl_reg = self.layer(4 * (self.settings.bins + 1))
        self.scales = nn.ModuleList(Scale() for _ in self.strides)

    def forward(self, pyramid: Sequence[Tensor]) -> Dense:
        """Class logits, and logits of left, top, right and bottom over 0..`bins` strides (R = 4 * (bins + 1))."""
        logits, sides = [], []
        for (cls, reg), scale in zip(self.towers(pyramid), self.scales, strict=True):
            logits.append(self.gfl_cls(cls))
            sides.append(scale(self.gfl_reg(reg)))
        return Dense(flat(logits, self.config.num_classes), flat(sides, 4 * (self.settings.bins + 1)))

    def anchors(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> Anchors:
        return square_anchors(pyramid, self.strides, self.settings.anchor_scale, batch)

    def assign(self, anchors: Anchors, targets: Sequence[Target], output: Dense | None) -> list[Assignment]:
        return [
            atss(anchors.candidates(image), target, top_k=self.settings.top_k) for image, target in enumerate(targets)
        ]

    def losses(self, output: Dense, anchors: Anchors, assignments: list[Assignment]) -> dict[str, Tensor]:
        matched, settings = self.matched(anchors, assignments), self.settings
        prior, truth = matched.prior, matched.truth
        stride = anchors.stride[matched.at[1], None]
        centre = (prior[:, :2] + prior[:, 2:]) / 2
        sides = output.regression[matched.at].unflatten(-1, (4, -1))
        distance = expectation(sides) * stride
        predicted = torch.cat([centre - distance[:, :2], centre + distance[:, 2:]], -1)
        overlap = box_ops.iou(predicted.detach(), truth)

        classes = self.config.num_classes
        quality = torch.zeros_like(output.logits[..., :1]).index_put(matched.at, overlap[:, None])
        labels = torch.stack([a.labels for a in assignments])
        used = torch.stack([a.used for a in assignments])
        focal = quality_focal_loss(output.logits, one_hot(labels, classes), quality) * used[..., None]

        weight = output.logits[matched.at].detach().sigmoid().amax(-1)
        total = average_over_ranks(weight.sum(), minimum=1e-6)
        goal = torch.cat([centre - truth[:, :2], truth[:, 2:] - centre], -1) / stride
        distribution = distribution_focal_loss(sides, goal).mean(-1)
        return {
            "classification": settings.weight_classification * focal.sum() / matched.count,
            "box": settings.weight_box * (giou_loss(predicted, truth) * weight).sum() / total,
            "distribution": settings.weight_distribution * (distribution * weight).sum() / total,
        }

    def boxes(self, output: Dense, anchors: Anchors) -> Tensor:
        return around(anchors, expectation(output.regression.unflatten(-1, (4, -1))))


def expectation(sides: Tensor) -> Tensor:
    """(...,4,bins+1) logits to the (...,4) expected distances, in strides."""
    steps = torch.arange(sides.shape[-1], dtype=sides.dtype, device=sides.device)
    return sides.softmax(-1) @ steps


def distribution_focal_loss(sides: Tensor, distance: Tensor) -> Tensor:
    """(...,4): cross-entropy with the two bins beside the true distance, the nearer the more (DFL).

    Args:
        sides: (...,4,bins+1) logits. `distance`: (...,4) in strides; clamped into the bins.
    """
    distance = distance.clamp(0, sides.shape[-1] - 1 - 0.1)
    left = distance.floor()
    share = distance - left
    log = sides.log_softmax(-1)
    near, far = (log.gather(-1, (left + step).long()[..., None])[..., 0] for step in (0, 1))
    return -(1 - share) * near - share * far
