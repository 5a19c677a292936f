"""The RetinaNet head (Lin et al., 2017) with GIoU regression: several anchors per cell, assigned by their best IoU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from codetr_lab import boxes as box_ops
from codetr_lab.assign import max_iou
from codetr_lab.losses import giou_loss
from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.heads.anchors import Anchors, anchor_sides, make_anchors
from codetr_lab.models.heads.dense import Dense, DenseHead, flat
from codetr_lab.structures import Assignment, ImageBatch, Target


class RetinaNetHead(DenseHead):
    """Class and box of anchors of three sizes and three ratios per cell of every pyramid level.

    Losses: `classification` (focal) and `box` (GIoU), both divided by the number of positives in the batch.
    """

    def __init__(self, config: CoDETRConfig, strides: Sequence[int], name: str = "retinanet") -> None:
        super().__init__(config, strides, name, config.retinanet)
        self.settings = settings = config.retinanet
        self.sides = anchor_sides(settings.anchor_scale, settings.anchor_scales_per_octave, settings.anchor_ratios)
        self.shapes = len(self.sides)
        self.retina_cls = self.layer(self.shapes * config.num_classes, score=0.01)
        self.retina_reg = self.layer(self.shapes * 4)

    def forward(self, pyramid: Sequence[Tensor]) -> Dense:
        """Class logits and box deltas (R = 4)."""
        logits, deltas = [], []
        for cls, reg in self.towers(pyramid):
            logits.append(self.retina_cls(cls))
            deltas.append(self.retina_reg(reg))
        return Dense(flat(logits, self.config.num_classes), flat(deltas, 4))

    def anchors(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> Anchors:
        return make_anchors(pyramid, self.strides, self.sides.to(pyramid[0].device), batch)

    def assign(self, anchors: Anchors, targets: Sequence[Target], output: Dense | None) -> list[Assignment]:
        settings = self.settings
        return [
            max_iou(
                anchors.candidates(image), target, positive=settings.positive_iou, negative=settings.negative_iou,
                name="RetinaNet (max IoU)",
            )
            for image, target in enumerate(targets)
        ]  # fmt: skip

    def losses(self, output: Dense, anchors: Anchors, assignments: list[Assignment]) -> dict[str, Tensor]:
        matched, settings = self.matched(anchors, assignments), self.settings
        deltas = output.regression[matched.at]
        box = giou_loss(box_ops.decode_deltas(matched.prior, deltas), matched.truth).sum()
        return {
            "classification": settings.weight_classification * self.focal(output.logits, assignments) / matched.count,
            "box": settings.weight_box * box / matched.count,
        }

    def boxes(self, output: Dense, anchors: Anchors) -> Tensor:
        return box_ops.decode_deltas(anchors.boxes, output.regression)
