"""The FCOS head (Tian et al., 2019) with GIoU regression: every cell's middle is a point that may lie in an object."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr_lab.assign import fcos
from codetr_lab.losses import giou_loss
from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.heads.anchors import Anchors, square_anchors
from codetr_lab.models.heads.dense import Dense, DenseHead, Scale, centerness_target, flat, joined
from codetr_lab.structures import Assignment, ImageBatch, Target


class FCOSHead(DenseHead):
    """Class, distances to the four sides and centerness of the point in the middle of every cell.

    A point's candidate box, which becomes the customized query, is a square of `fcos.query_scale` strides around it
    (Table 1: 8). Losses: `classification` (focal), `box` (GIoU) and `centerness` (binary cross-entropy), all divided
    by the number of positives in the batch.
    """

    def __init__(self, config: CoDETRConfig, strides: Sequence[int], name: str = "fcos") -> None:
        super().__init__(config, strides, name, config.fcos)
        self.settings = config.fcos
        self.conv_cls = self.layer(config.num_classes, score=0.01)
        self.conv_reg = self.layer(4)
        self.conv_centerness = self.layer(1)
        self.scales = nn.ModuleList(Scale() for _ in self.strides)
        assert self.conv_reg.bias is not None
        nn.init.ones_(self.conv_reg.bias)  # sides of one stride, where the ReLU is alive

    def forward(self, pyramid: Sequence[Tensor]) -> Dense:
        """Class logits, distances to left, top, right and bottom in strides (R = 4), and centerness logits."""
        logits, distances, centerness = [], [], []
        for (cls, reg), scale in zip(self.towers(pyramid), self.scales, strict=True):
            box, centre = joined(reg, self.conv_reg, self.conv_centerness)
            logits.append(self.conv_cls(cls))
            distances.append(F.relu(scale(box)))
            centerness.append(centre)
        return Dense(flat(logits, self.config.num_classes), flat(distances, 4), flat(centerness, 1)[..., 0])

    def anchors(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> Anchors:
        return square_anchors(pyramid, self.strides, self.settings.query_scale, batch, offset=0.5)

    def assign(self, anchors: Anchors, targets: Sequence[Target], output: Dense | None) -> list[Assignment]:
        rule = {"radius": self.settings.radius, "reach": self.settings.reach}
        return [fcos(anchors.candidates(image), target, **rule) for image, target in enumerate(targets)]

    def losses(self, output: Dense, anchors: Anchors, assignments: list[Assignment]) -> dict[str, Tensor]:
        matched, settings = self.matched(anchors, assignments), self.settings
        prior, truth = matched.prior, matched.truth
        goal = centerness_target(prior, truth)
        box = giou_loss(self.boxes(output, anchors)[matched.at], truth).sum()
        centre = F.binary_cross_entropy_with_logits(output.quality[matched.at], goal, reduction="sum")
        return {
            "classification": settings.weight_classification * self.focal(output.logits, assignments) / matched.count,
            "box": settings.weight_box * box / matched.count,
            "centerness": settings.weight_centerness * centre / matched.count,
        }

    def boxes(self, output: Dense, anchors: Anchors) -> Tensor:
        return around(anchors, output.regression)

    def scores(self, output: Dense) -> Tensor:
        """Geometric mean of class score and centerness."""
        return (output.logits.sigmoid() * output.quality.sigmoid()[..., None]).sqrt()


def around(anchors: Anchors, distances: Tensor) -> Tensor:
    """Boxes (B,S,4) whose sides are (B,S,4) distances, in strides, from the candidates' centres."""
    centre = (anchors.boxes[:, :2] + anchors.boxes[:, 2:]) / 2
    distances = distances * anchors.stride[:, None]
    return torch.cat([centre - distances[..., :2], centre + distances[..., 2:]], -1)
