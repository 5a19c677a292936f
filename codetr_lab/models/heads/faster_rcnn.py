"""Faster R-CNN (Ren et al., 2015) as an auxiliary head: an RPN and a RoI head with GIoU regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from codetr_lab import boxes as box_ops
from codetr_lab.assign import max_iou
from codetr_lab.assign.objects import matchable
from codetr_lab.draws import choose
from codetr_lab.losses import giou_loss
from codetr_lab.models.config import CoDETRConfig, ConfigError
from codetr_lab.models.head_configs import FasterRCNNConfig
from codetr_lab.models.heads.anchors import Anchors, anchor_sides, make_anchors, tokens
from codetr_lab.models.heads.nms import class_nms
from codetr_lab.models.heads.roi_align import roi_align
from codetr_lab.models.neck import ConvNorm
from codetr_lab.structures import (
    GROUND_TRUTH,
    POSITIVE,
    Assignment,
    Candidates,
    Detections,
    HeadOutput,
    ImageBatch,
    Positives,
    Target,
)


@dataclass(frozen=True)
class Sample:
    """What one image's sampler drew: (P,) and (R,) indices of positives and negatives, ascending."""

    positive: Tensor
    negative: Tensor

    def both(self) -> Tensor:
        """Positives, then negatives."""
        return torch.cat([self.positive, self.negative])


def sample(
    assignment: Assignment, count: int, fraction: float, generator: torch.Generator | None
) -> tuple[Sample, Assignment]:
    """Draw at most `count` valid candidates, at most `fraction` of them positive; the rest negatives.

    Returns:
        The draw, and the assignment with `used` telling it.
    """
    valid = assignment.candidates.valid
    positive = (assignment.positive & valid).nonzero()[:, 0]
    positive = choose(positive, int(count * fraction), generator).sort().values
    negative = (assignment.negative & valid).nonzero()[:, 0]
    negative = choose(negative, count - len(positive), generator).sort().values
    drawn = Sample(positive, negative)
    used = torch.zeros_like(valid)
    used[drawn.both()] = True
    return drawn, replace(assignment, used=used)


class FasterRCNNHead(nn.Module):
    """Region proposals from all pyramid levels, then class and box of each proposal from the finest `roi_levels`.

    Args:
        config: the detector's.
        strides: pixels per cell of every pyramid level, finest first.
        name: the head's name in the model.
        settings: the head's own; by default `config.faster_rcnn`.

    Raises:
        ConfigError: `roi_levels` exceeds the pyramid.
    """

    positives_need_training = True

    def __init__(
        self,
        config: CoDETRConfig,
        strides: Sequence[int],
        name: str = "faster_rcnn",
        settings: FasterRCNNConfig | None = None,
    ) -> None:
        super().__init__()
        self.config, self.strides, self.name = config, tuple(strides), name
        settings = self.settings = settings or config.faster_rcnn
        dim = config.transformer.hidden_dim
        if not 1 <= settings.roi_levels <= len(self.strides):
            raise ConfigError(
                f"{name}: roi_levels is {settings.roi_levels}, but the pyramid has {len(self.strides)} levels"
            )
        shapes = settings.anchor_scales_per_octave * len(settings.anchor_ratios)
        self.rpn_conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.rpn_cls = nn.Conv2d(dim, shapes, 1)
        self.rpn_reg = nn.Conv2d(dim, shapes * 4, 1)
        convs = [ConvNorm(dim, dim, config.transformer.norm_groups, kernel=3) for _ in range(settings.roi_convs)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.conv.weight, mode="fan_out", nonlinearity="relu")
        self.shared_convs = nn.ModuleList(convs)
        self.shared_fcs = nn.ModuleList(
            nn.Linear(settings.roi_hidden if i else dim * settings.roi_size**2, settings.roi_hidden)
            for i in range(settings.roi_fcs)
        )
        self.fc_cls = nn.Linear(settings.roi_hidden, config.num_classes + 1)
        self.fc_reg = nn.Linear(settings.roi_hidden, 4 if settings.class_agnostic else config.num_classes * 4)
        stds = {self.rpn_conv: 0.01, self.rpn_cls: 0.01, self.rpn_reg: 0.01, self.fc_cls: 0.01, self.fc_reg: 0.001}
        for layer in (*stds, *self.shared_fcs):
            weight, bias = layer.parameters()
            if layer in stds:
                nn.init.normal_(weight, std=stds[layer])
            else:
                nn.init.xavier_uniform_(weight)
            nn.init.zeros_(bias)

    def supervise(
        self,
        pyramid: Sequence[Tensor],
        batch: ImageBatch,
        targets: Sequence[Target],
        generator: torch.Generator | None = None,
    ) -> HeadOutput:
        """Assign labels to anchors and proposals, sample, compute the losses and hand out the RoI head's positives.

        Returns:
            Losses `rpn_classification` (binary cross-entropy), `rpn_box` (L1), `roi_classification` (softmax
            cross-entropy) and `roi_box` (GIoU), weighted. `assignments` are the RoI head's, over the image's own
            object boxes followed by its proposals; `stages["rpn"]` are the anchors'.
        """
        settings = self.settings
        objectness, deltas = self.rpn(pyramid)
        anchors = self.anchors(pyramid, batch)
        rpn, losses = self._supervise_rpn(objectness, deltas, anchors, targets, generator)
        proposals = self.propose(objectness, deltas, anchors, batch)
        drawn, assignments = [], []
        for (boxes, scores), target in zip(proposals, targets, strict=True):
            draw, assignment = sample(
                self.assign_rois(boxes, scores, target),
                settings.roi_samples,
                settings.roi_positive_fraction,
                generator,
            )
            drawn.append(draw)
            assignments.append(assignment)
        rois = [a.candidates.boxes[draw.both()] for a, draw in zip(assignments, drawn, strict=True)]
        features = self.roi_features(pyramid, rois)
        outputs = self.roi(features)
        losses |= self._roi_losses(*outputs, torch.cat(rois), drawn, assignments)
        wanted = self.config.customized_queries
        positives = self._positives(features.mean((2, 3)), drawn, assignments, generator) if wanted else []
        logits = [
            x[torch.arange(len(draw.positive)), a.labels[draw.positive]]
            for x, draw, a in zip(outputs[0].split([len(roi) for roi in rois]), drawn, assignments, strict=True)
        ]
        return HeadOutput(self.name, assignments, {"rpn": rpn}, positives, losses, positive_logits=logits)

    @torch.no_grad()
    def predict(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> list[Detections]:
        """Detections per image after NMS per class; `source_index` is the proposal, best proposal first."""
        settings, classes = self.settings, self.config.num_classes
        anchors = self.anchors(pyramid, batch)
        proposals = self.propose(*self.rpn(pyramid), anchors, batch, test=True)
        rois = [boxes for boxes, _ in proposals]
        logits, deltas = self.roi(self.roi_features(pyramid, rois))
        scores = logits.softmax(-1)[:, :classes]
        boxes = box_ops.decode_deltas(torch.cat(rois)[:, None], deltas, settings.roi_stds).expand(-1, classes, -1)
        counts = [len(roi) for roi in rois]
        found = []
        for box, score, size in zip(boxes.split(counts), scores.split(counts), batch.valid_sizes, strict=True):
            box, score = box_ops.clip(box, size).flatten(0, 1), score.flatten()
            index = torch.arange(len(score), device=score.device)
            keep, score = class_nms(box, score, index % classes, settings.nms_iou, settings.soft_nms)
            keep, score = keep[: settings.max_detections], score[: settings.max_detections]
            found.append(Detections(box[keep], score, keep % classes, keep // classes))
        return found

    # --- the RPN

    def rpn(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Objectness logits (B,S) and deltas (B,S,4) of the S anchors of all levels."""
        # The 1x1 convolutions of all levels at once, as linear layers on tokens.
        hidden = tokens([F.relu(self.rpn_conv(level), inplace=True) for level in pyramid])
        objectness = F.linear(hidden, self.rpn_cls.weight.flatten(1), self.rpn_cls.bias)
        deltas = F.linear(hidden, self.rpn_reg.weight.flatten(1), self.rpn_reg.bias)
        return objectness.flatten(1).float(), deltas.reshape(len(hidden), -1, 4).float()

    @torch.no_grad()
    def propose(
        self, objectness: Tensor, deltas: Tensor, anchors: Anchors, batch: ImageBatch, test: bool = False
    ) -> list[tuple[Tensor, Tensor]]:
        """Per image, boxes (P,4), clipped to its valid size, and their scores (P,), best first.

        Of every level, the best anchors go through an NMS of their own; `test` takes the settings for detection.
        """
        settings = self.settings
        per_level, count, iou = settings.proposals_per_level, settings.proposals, settings.proposal_nms_iou
        if test:
            per_level = settings.test_proposals_per_level
            count, iou = settings.test_proposals or count, settings.test_proposal_nms_iou or iou
        scores = objectness.sigmoid()
        best, start = [], 0
        for size in torch.bincount(anchors.level).tolist():
            best.append(scores[:, start : start + size].topk(min(per_level, size), dim=1).indices + start)
            start += size
        counts = [index.shape[1] for index in best]
        index = torch.cat(best, 1)
        scores = scores.gather(1, index)
        boxes = box_ops.decode_deltas(anchors.boxes[index], deltas.gather(1, index[..., None].expand(-1, -1, 4)))
        boxes = torch.minimum(boxes.clamp(min=0), batch.whwh().to(boxes)[:, None])
        result = []
        for box, score in zip(boxes, scores, strict=True):
            keep, start = [], 0
            for part, rank in zip(box.split(counts), score.split(counts), strict=True):
                keep.append(nms(part, rank, iou) + start)
                start += len(part)
            kept = torch.cat(keep)
            # What clipping left empty goes; it never suppressed anything, having no area.
            kept = kept[(box[kept, 2:] > box[kept, :2]).all(-1)]
            kept = kept[score[kept].topk(min(count, len(kept))).indices]
            result.append((box[kept], score[kept]))
        return result

    def _supervise_rpn(
        self,
        objectness: Tensor,
        deltas: Tensor,
        anchors: Anchors,
        targets: Sequence[Target],
        generator: torch.Generator | None,
    ) -> tuple[list[Assignment], dict[str, Tensor]]:
        settings = self.settings
        assignments, positive, drawn, truth, count = [], [], [], [], 0
        for image, target in enumerate(targets):
            assignment = max_iou(
                anchors.candidates(image), target, positive=settings.rpn_positive_iou,
                negative=settings.rpn_negative_iou, low_quality=True, min_positive=settings.rpn_negative_iou,
                name="RPN (max IoU)",
            )  # fmt: skip
            draw, assignment = sample(assignment, settings.rpn_samples, settings.rpn_positive_fraction, generator)
            assignments.append(assignment)
            positive.append(draw.positive + image * len(anchors.boxes))
            drawn.append(draw.both() + image * len(anchors.boxes))
            truth.append(target["boxes"][assignment.gt_index[draw.positive]])
            # Each kind counts at least one per image; not averaged over processes (release).
            count += max(len(draw.positive), 1) + max(len(draw.negative), 1)
        chosen, every = torch.cat(positive), torch.cat(drawn)
        goal = torch.zeros_like(objectness).flatten()
        goal[chosen] = 1
        classification = F.binary_cross_entropy_with_logits(objectness.flatten()[every], goal[every], reduction="sum")
        expected = box_ops.encode_deltas(anchors.boxes[chosen % len(anchors.boxes)], torch.cat(truth))
        box = F.l1_loss(deltas.flatten(0, 1)[chosen], expected, reduction="sum")
        weight = self.config.aux_loss_factor * settings.weight_rpn / count
        return assignments, {"rpn_classification": weight * classification, "rpn_box": weight * box}

    def anchors(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> Anchors:
        settings = self.settings
        sides = anchor_sides(settings.anchor_scale, settings.anchor_scales_per_octave, settings.anchor_ratios)
        return make_anchors(pyramid, self.strides, sides.to(pyramid[0].device), batch)

    # --- the RoI head

    def roi_features(self, pyramid: Sequence[Tensor], rois: Sequence[Tensor], size: int | None = None) -> Tensor:
        """(R,D,size,size) features of the (R_i,4) boxes of every image, image after image, each from its own level.

        `size` is `roi_size` (7) by default.
        """
        settings = self.settings
        boxes = torch.cat(list(rois))
        counts = torch.tensor([len(group) for group in rois], device=boxes.device)
        image = torch.arange(len(rois), device=boxes.device).repeat_interleave(counts)
        level = self.roi_level(boxes)
        rows, pooled = [], []
        for index, stride in enumerate(self.strides[: settings.roi_levels]):
            row = (level == index).nonzero()[:, 0]
            if not len(row) and index:
                continue  # the finest level is kept, for batches without any box
            rows.append(row)
            pooled.append(roi_align(pyramid[index], boxes[row], image[row], size or settings.roi_size, 1 / stride))
        return torch.cat(pooled)[torch.cat(rows).argsort()]

    def roi_level(self, boxes: Tensor) -> Tensor:
        """(R,) the pyramid level that (R,4) boxes are pooled from: 0 up to twice `roi_finest_scale`, and so on."""
        settings = self.settings
        scale = box_ops.area(boxes).sqrt() / settings.roi_finest_scale
        return (scale + 1e-6).log2().floor().clamp(0, settings.roi_levels - 1).long()

    def roi(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (R,C+1), background last, and deltas (R,C,4) or (R,1,4) of pooled features."""
        for conv in self.shared_convs:
            features = F.relu(conv(features), inplace=True)
        hidden = features.flatten(1)
        for layer in self.shared_fcs:
            hidden = F.relu(layer(hidden), inplace=True)
        return self.fc_cls(hidden).float(), self.fc_reg(hidden).unflatten(1, (-1, 4)).float()

    def assign_rois(self, boxes: Tensor, scores: Tensor, target: Target) -> Assignment:
        """Objects' own boxes go first and belong to themselves; crowds give none."""
        settings, strides = self.settings, boxes.new_tensor(self.strides)
        own = matchable(target)
        rois = torch.cat([target["boxes"][own], boxes])
        level = self.roi_level(rois)
        valid = torch.ones_like(level, dtype=torch.bool)
        ranked = torch.cat([scores.new_ones(len(own)), scores])
        assignment = max_iou(
            Candidates(rois, level, strides[level], valid, scores=ranked), target,
            positive=settings.roi_positive_iou, negative=settings.roi_positive_iou, low_quality=False,
            name="RoI head (max IoU)",
        )  # fmt: skip
        return replace(assignment, gt_index=torch.cat([own, assignment.gt_index[len(own) :]]))

    def _roi_losses(
        self, logits: Tensor, deltas: Tensor, rois: Tensor, drawn: list[Sample], assignments: list[Assignment]
    ) -> dict[str, Tensor]:
        """Both terms are divided by the number of sampled RoIs, negatives included; not averaged over processes."""
        settings, count, start = self.settings, max(1, len(rois)), 0
        labels = torch.full((len(rois),), self.config.num_classes, device=rois.device)
        positive, truth = [], []
        for draw, assignment in zip(drawn, assignments, strict=True):
            gt_index = assignment.gt_index[draw.positive]
            positive.append(torch.arange(start, start + len(gt_index), device=rois.device))
            labels[start : start + len(gt_index)] = assignment.target["labels"][gt_index]
            truth.append(assignment.target["boxes"][gt_index])
            start += len(draw.positive) + len(draw.negative)
        chosen = torch.cat(positive)
        of_class = deltas[chosen, 0 if settings.class_agnostic else labels[chosen]]
        boxes = box_ops.decode_deltas(rois[chosen], of_class, settings.roi_stds)
        factor = self.config.aux_loss_factor / count
        return {
            "roi_classification": factor * settings.weight_classification
            * F.cross_entropy(logits, labels, reduction="sum"),
            "roi_box": factor * settings.weight_box * giou_loss(boxes, torch.cat(truth)).sum(),
        }  # fmt: skip

    def _positives(
        self,
        features: Tensor,
        drawn: list[Sample],
        assignments: list[Assignment],
        generator: torch.Generator | None,
    ) -> list[Positives]:
        """Paper vs. release: the release cuts every image to the smallest sample of the batch; here none is cut."""
        result, start = [], 0
        for draw, assignment in zip(drawn, assignments, strict=True):
            positive = draw.positive
            spare = torch.arange(len(draw.negative), device=positive.device)
            spare = choose(spare, self.config.queries.maximum, generator)
            candidates, gt_index = assignment.candidates, assignment.gt_index[positive]
            middle = start + len(positive)
            result.append(
                Positives(
                    boxes=candidates.boxes[positive],
                    labels=assignment.target["labels"][gt_index],
                    target_boxes=assignment.target["boxes"][gt_index],
                    gt_index=gt_index,
                    level=candidates.level[positive],
                    features=features[start:middle],
                    kind=torch.where(positive < len(matchable(assignment.target)), GROUND_TRUTH, POSITIVE),
                    negative_boxes=candidates.boxes[draw.negative[spare]],
                    negative_features=features[middle + spare],
                )
            )
            start = middle + len(draw.negative)
        return result
