"""The ATSS head (Zhang et al., 2020) as Co-DETR's first-stage auxiliary head: one anchor per pyramid cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from codetr_lab import boxes as box_ops
from codetr_lab.assign import atss
from codetr_lab.draws import choose
from codetr_lab.losses import average_over_ranks, giou_loss, one_hot, sigmoid_focal_loss
from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.heads.anchors import Anchors, make_anchors, tokens
from codetr_lab.structures import POSITIVE, Assignment, Detections, HeadOutput, ImageBatch, Positives, Target

STDS = (0.1, 0.1, 0.2, 0.2)
"""What the predicted deltas are multiplied by."""


class ConvNormReLU(nn.Module):
    """3x3 convolution without bias, group normalisation, ReLU."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.gn = nn.GroupNorm(groups, dim)
        nn.init.normal_(self.conv.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.gn(self.conv(x)), inplace=True)


class Scale(nn.Module):
    """One learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class ATSSHead(nn.Module):
    """Classification, box and centerness of one square anchor per cell of every pyramid level.

    Args:
        config: the detector's; `config.atss` describes this head.
        strides: pixels per cell of every pyramid level, finest first.
        name: the head's name in the model.
    """

    positives_need_training = False

    def __init__(self, config: CoDETRConfig, strides: Sequence[int], name: str = "atss") -> None:
        super().__init__()
        self.config, self.strides, self.name = config, tuple(strides), name
        dim, groups = config.transformer.hidden_dim, config.transformer.norm_groups
        self.cls_convs = nn.ModuleList(ConvNormReLU(dim, groups) for _ in range(config.atss.stacked_convs))
        self.reg_convs = nn.ModuleList(ConvNormReLU(dim, groups) for _ in range(config.atss.stacked_convs))
        self.atss_cls = nn.Conv2d(dim, config.num_classes, 3, padding=1)
        self.atss_reg = nn.Conv2d(dim, 4, 3, padding=1)
        self.atss_centerness = nn.Conv2d(dim, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in self.strides)
        for conv in (self.atss_cls, self.atss_reg, self.atss_centerness):
            weight, bias = conv.parameters()
            nn.init.normal_(weight, std=0.01)
            nn.init.constant_(bias, -4.59511985013459 if conv is self.atss_cls else 0)  # a class score of 0.01

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (B,S,C), box deltas (B,S,4) and centerness logits (B,S) of the S cells of all levels."""
        # Box and centerness read the same map: one convolution for both.
        pairs = zip(self.atss_reg.parameters(), self.atss_centerness.parameters(), strict=True)
        weight, bias = (torch.cat(pair) for pair in pairs)
        logits, deltas, centerness = [], [], []
        for feature, scale in zip(pyramid, self.scales, strict=True):
            cls, reg = feature, feature
            for conv in self.cls_convs:
                cls = conv(cls)
            for conv in self.reg_convs:
                reg = conv(reg)
            logits.append(self.atss_cls(cls))
            both = F.conv2d(reg, weight, bias, padding=1)
            deltas.append(scale(both[:, :4]))
            centerness.append(both[:, 4:])
        return tokens(logits).float(), tokens(deltas).float(), tokens(centerness)[..., 0].float()

    def supervise(
        self,
        pyramid: Sequence[Tensor],
        batch: ImageBatch,
        targets: Sequence[Target],
        generator: torch.Generator | None = None,
    ) -> HeadOutput:
        """Assign labels, compute the losses and hand out the positives.

        Returns:
            Losses `classification` (focal), `box` (GIoU weighted by centerness) and `centerness` (binary
            cross-entropy), weighted; the positives are all positive anchors, their features the pyramid's own at the
            anchors' cells.
        """
        anchors = self.anchors(pyramid, batch)
        assignments = [
            atss(anchors.candidates(image), target, top_k=self.config.atss.top_k)
            for image, target in enumerate(targets)
        ]
        outputs = self(pyramid) if self.config.aux_losses else None
        losses = self._losses(outputs, anchors, assignments) if outputs else {}
        wanted = self.config.customized_queries
        positives = self._positives(tokens(pyramid), assignments, generator) if wanted else []
        logits = (
            [x[a.positive, a.labels[a.positive]] for x, a in zip(outputs[0], assignments, strict=True)]
            if outputs else []
        )  # fmt: skip
        return HeadOutput(self.name, assignments, positives=positives, losses=losses, positive_logits=logits)

    @torch.no_grad()
    def predict(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> list[Detections]:
        """Detections per image after this head's NMS; `source_index` is the anchor.

        The best `nms_pre` class scores of every level are multiplied by their centerness before the NMS.
        """
        settings, counts = self.config.atss, [level.shape[-2] * level.shape[-1] for level in pyramid]
        logits, deltas, centerness = self(pyramid)
        boxes = box_ops.decode_deltas(self.anchors(pyramid, batch).boxes, deltas, STDS)
        scores, factor, classes = logits.sigmoid(), centerness.sigmoid(), logits.shape[-1]
        best, start = [], 0
        for count in counts:
            level = scores[:, start : start + count].flatten(1)
            best.append(level.topk(min(settings.nms_pre, level.shape[1]), dim=1).indices + start * classes)
            start += count
        picked = torch.cat(best, 1)
        source, label = picked // classes, picked % classes
        final = scores.flatten(1).gather(1, picked) * factor.gather(1, source)
        found = []
        for image, size in enumerate(batch.valid_sizes):
            box = box_ops.clip(boxes[image, source[image]], size)
            keep = batched_nms(box, final[image], label[image], settings.nms_iou)[: settings.max_detections]
            found.append(Detections(box[keep], final[image, keep], label[image, keep], source[image, keep]))
        return found

    def anchors(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> Anchors:
        sides = pyramid[0].new_full((1, 2), self.config.atss.anchor_scale, dtype=torch.float32)
        return make_anchors(pyramid, self.strides, sides, batch)

    def _losses(
        self, outputs: tuple[Tensor, Tensor, Tensor], anchors: Anchors, assignments: list[Assignment]
    ) -> dict[str, Tensor]:
        logits, deltas, centerness = outputs
        settings, factor = self.config.atss, self.config.aux_loss_factor
        positive = torch.stack([a.positive for a in assignments])
        labels = torch.stack([a.labels for a in assignments])
        # An image without positives counts as one, as in the release.
        count = average_over_ranks(positive.sum(1).clamp(min=1).sum())
        focal = sigmoid_focal_loss(logits, one_hot(labels, logits.shape[-1]))
        image, index = positive.nonzero(as_tuple=True)
        prior = anchors.boxes[index]
        truth = torch.cat([a.target["boxes"][a.gt_index[a.positive]] for a in assignments])
        goal = centerness_target(prior, truth)
        box = giou_loss(box_ops.decode_deltas(prior, deltas[image, index], STDS), truth)
        centre = F.binary_cross_entropy_with_logits(centerness[image, index], goal, reduction="sum")
        return {
            "classification": factor
            * settings.weight_classification
            * (focal * anchors.valid[..., None]).sum()
            / count,
            "box": factor * settings.weight_box * (box * goal).sum() / average_over_ranks(goal.sum()),
            "centerness": factor * settings.weight_centerness * centre / count,
        }

    def _positives(
        self, features: Tensor, assignments: list[Assignment], generator: torch.Generator | None
    ) -> list[Positives]:
        """Paper vs. release: anchors in the padding can fill up the queries too, as boxes of zeros (a slip)."""
        result = []
        for image, assignment in enumerate(assignments):
            positive = assignment.positive.nonzero()[:, 0]
            spare = choose(assignment.negative.nonzero()[:, 0], self.config.queries.maximum, generator)
            candidates, gt_index = assignment.candidates, assignment.gt_index[positive]
            result.append(
                Positives(
                    boxes=candidates.boxes[positive],
                    labels=assignment.target["labels"][gt_index],
                    target_boxes=assignment.target["boxes"][gt_index],
                    gt_index=gt_index,
                    level=candidates.level[positive],
                    features=features[image, positive],
                    kind=torch.full_like(positive, POSITIVE),
                    negative_boxes=candidates.boxes[spare] * candidates.valid[spare, None],
                    negative_features=features[image, spare],
                )
            )
        return result


def centerness_target(anchors: Tensor, boxes: Tensor) -> Tensor:
    """(P,) in [0,1]: how central the centres of (P,4) anchors lie in their (P,4) objects; 1 in the middle."""
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    before, after = centre - boxes[:, :2], boxes[:, 2:] - centre
    return (torch.minimum(before, after) / torch.maximum(before, after)).prod(-1).sqrt()
