"""The ATSS head (Zhang et al., 2020) as Co-DETR's first-stage auxiliary head: one anchor per pyramid cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr_lab import boxes as box_ops
from codetr_lab.assign import atss
from codetr_lab.losses import average_over_ranks, giou_loss
from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.heads.anchors import Anchors, square_anchors
from codetr_lab.models.heads.dense import Dense, DenseHead, Scale, centerness_target, flat, joined
from codetr_lab.structures import Assignment, ImageBatch, Target

STDS = (0.1, 0.1, 0.2, 0.2)
"""What the predicted deltas are multiplied by."""


class ATSSHead(DenseHead):
    """Classification, box and centerness of one square anchor per cell of every pyramid level.

    Losses: `classification` (focal), `box` (GIoU weighted by centerness) and `centerness` (binary cross-entropy).
    """

    def __init__(self, config: CoDETRConfig, strides: Sequence[int], name: str = "atss") -> None:
        super().__init__(config, strides, name, config.atss)
        self.settings = config.atss
        self.atss_cls = self.layer(config.num_classes, score=0.01)
        self.atss_reg = self.layer(4)
        self.atss_centerness = self.layer(1)
        self.scales = nn.ModuleList(Scale() for _ in self.strides)

    def forward(self, pyramid: Sequence[Tensor]) -> Dense:
        """Class logits, box deltas (R = 4) and centerness logits."""
        logits, deltas, centerness = [], [], []
        for (cls, reg), scale in zip(self.towers(pyramid), self.scales, strict=True):
            box, centre = joined(reg, self.atss_reg, self.atss_centerness)
            logits.append(self.atss_cls(cls))
            deltas.append(scale(box))
            centerness.append(centre)
        return Dense(flat(logits, self.config.num_classes), flat(deltas, 4), flat(centerness, 1)[..., 0])

    def anchors(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> Anchors:
        return square_anchors(pyramid, self.strides, self.settings.anchor_scale, batch)

    def assign(self, anchors: Anchors, targets: Sequence[Target], output: Dense | None) -> list[Assignment]:
        return [
            atss(anchors.candidates(image), target, top_k=self.settings.top_k) for image, target in enumerate(targets)
        ]

    def losses(self, output: Dense, anchors: Anchors, assignments: list[Assignment]) -> dict[str, Tensor]:
        matched, settings = self.matched(anchors, assignments), self.settings
        # An image without positives counts as one, as in the release.
        count = average_over_ranks(torch.stack([a.positive.sum() for a in assignments]).clamp(min=1).sum())
        prior, truth = matched.prior, matched.truth
        goal = centerness_target(prior, truth)
        box = giou_loss(box_ops.decode_deltas(prior, output.regression[matched.at], STDS), truth)
        centre = F.binary_cross_entropy_with_logits(output.quality[matched.at], goal, reduction="sum")
        return {
            "classification": settings.weight_classification * self.focal(output.logits, assignments) / count,
            "box": settings.weight_box * (box * goal).sum() / average_over_ranks(goal.sum()),
            "centerness": settings.weight_centerness * centre / count,
        }

    def boxes(self, output: Dense, anchors: Anchors) -> Tensor:
        return box_ops.decode_deltas(anchors.boxes, output.regression, STDS)

    def rate(self, scores: Tensor, source: Tensor, output: Dense) -> Tensor:
        """Times the centerness, which has no say in what goes into the NMS (release)."""
        return scores * output.quality.sigmoid().gather(1, source)
