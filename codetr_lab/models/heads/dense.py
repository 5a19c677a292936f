"""What one-stage heads share: two towers over the pyramid, positives as queries, detection with NMS."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codetr_lab import boxes as box_ops
from codetr_lab.draws import choose
from codetr_lab.losses import average_over_ranks, one_hot, sigmoid_focal_loss
from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.head_configs import DenseConfig
from codetr_lab.models.heads.anchors import Anchors, tokens
from codetr_lab.models.heads.nms import class_nms
from codetr_lab.structures import POSITIVE, Assignment, Detections, HeadOutput, ImageBatch, Positives, Target


class Dense(NamedTuple):
    """What a one-stage head says about the S candidates of every image.

    Attributes:
        logits: (B,S,C) of the classes. `regression`: (B,S,R), whatever the head makes boxes from.
        quality: (B,S) logits of centerness or IoU; empty where the head has no such branch.
    """

    logits: Tensor
    regression: Tensor
    quality: Tensor = torch.empty(0)


@dataclass(frozen=True)
class Matched:
    """The P positive candidates of a batch.

    Attributes:
        at: their images and their indices among an image's candidates, (P,) each; picks rows of (B,S,...) tensors.
        prior: (P,4) xyxy pixels, the candidates. `truth`: (P,4) their objects.
        count: the usual normaliser: P averaged over processes, at least 1.
    """

    at: tuple[Tensor, Tensor]
    prior: Tensor
    truth: Tensor
    count: Tensor


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


class DenseHead(nn.Module):
    """A one-stage head. A kind of head adds its prediction layers and says

    - `forward`: pyramid to `Dense`,
    - `anchors`: what its candidates are,
    - `assign`: which of them are positive, per image,
    - `losses`: by name, weighted, without `config.aux_loss_factor`,
    - `boxes`: what it predicts, (B,S,4) xyxy pixels.

    Args:
        config: the detector's.
        strides: pixels per cell of every pyramid level, finest first.
        name: the head's name in the model.
        settings: the head's own part of `config`.
    """

    positives_need_training: ClassVar[bool] = False
    shapes = 1
    """Candidates per cell."""

    def __init__(self, config: CoDETRConfig, strides: Sequence[int], name: str, settings: DenseConfig) -> None:
        super().__init__()
        self.config, self.strides, self.name, self.picking = config, tuple(strides), name, settings
        self.dim, groups = config.transformer.hidden_dim, config.transformer.norm_groups
        self.cls_convs = nn.ModuleList(ConvNormReLU(self.dim, groups) for _ in range(settings.stacked_convs))
        self.reg_convs = nn.ModuleList(ConvNormReLU(self.dim, groups) for _ in range(settings.stacked_convs))

    def layer(self, channels: int, score: float | None = None) -> nn.Conv2d:
        """A 3x3 prediction layer, small weights; with `score` its sigmoid starts there."""
        conv = nn.Conv2d(self.dim, channels, 3, padding=1)
        nn.init.normal_(conv.weight, std=0.01)
        assert conv.bias is not None
        nn.init.constant_(conv.bias, 0 if score is None else math.log(score / (1 - score)))
        return conv

    def towers(self, pyramid: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Per level, the maps that classes and boxes are read from."""
        for feature in pyramid:
            cls, reg = feature, feature
            for conv in self.cls_convs:
                cls = conv(cls)
            for conv in self.reg_convs:
                reg = conv(reg)
            yield cls, reg

    def forward(self, pyramid: Sequence[Tensor]) -> Dense:
        raise NotImplementedError

    def anchors(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> Anchors:
        raise NotImplementedError

    def assign(self, anchors: Anchors, targets: Sequence[Target], output: Dense | None) -> list[Assignment]:
        """`output` is None where `config.aux_losses` is off: then the head's network is not run."""
        raise NotImplementedError

    def losses(self, output: Dense, anchors: Anchors, assignments: list[Assignment]) -> dict[str, Tensor]:
        raise NotImplementedError

    def boxes(self, output: Dense, anchors: Anchors) -> Tensor:
        raise NotImplementedError

    def supervise(
        self,
        pyramid: Sequence[Tensor],
        batch: ImageBatch,
        targets: Sequence[Target],
        generator: torch.Generator | None = None,
    ) -> HeadOutput:
        """Assign labels, compute the losses and hand out the positives: all positive candidates, their features the
        pyramid's own at the candidates' cells."""
        anchors = self.anchors(pyramid, batch)
        output = self(pyramid) if self.config.aux_losses else None
        assignments = self.assign(anchors, targets, output)
        losses = {} if output is None else self.losses(output, anchors, assignments)
        wanted = self.config.customized_queries
        read = () if output is None else zip(output.logits, assignments, strict=True)
        return HeadOutput(
            self.name, assignments, positives=self._positives(pyramid, assignments, generator) if wanted else [],
            losses={name: self.config.aux_loss_factor * value for name, value in losses.items()},
            positive_logits=[logits[a.positive, a.labels[a.positive]] for logits, a in read],
        )  # fmt: skip

    @torch.no_grad()
    def predict(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> list[Detections]:
        """Detections per image after this head's NMS; `source_index` is the candidate."""
        settings, output = self.picking, self(pyramid)
        boxes, scores = self.boxes(output, self.anchors(pyramid, batch)), self.scores(output)
        best, start, classes = [], 0, scores.shape[-1]
        for feature in pyramid:
            count = feature.shape[-2] * feature.shape[-1] * self.shapes
            level = scores[:, start : start + count].flatten(1)
            best.append(level.topk(min(settings.nms_pre, level.shape[1]), dim=1).indices + start * classes)
            start += count
        picked = torch.cat(best, 1)
        source, label = picked // classes, picked % classes
        final = self.rate(scores.flatten(1).gather(1, picked), source, output)
        found = []
        for image, size in enumerate(batch.valid_sizes):
            every = Detections(
                box_ops.clip(boxes[image, source[image]], size), final[image], label[image], source[image]
            )
            keep, score = class_nms(every.boxes, every.scores, every.labels, settings.nms_iou, settings.soft_nms)
            keep, score = keep[: settings.max_detections], score[: settings.max_detections]
            kept = self.correct(replace(every.select(keep), scores=score), every)
            found.append(replace(kept, boxes=box_ops.clip(kept.boxes, size)))
        return found

    def scores(self, output: Dense) -> Tensor:
        """(B,S,C) in [0,1]: what picks the candidates that go into the NMS."""
        return output.logits.sigmoid()

    def rate(self, scores: Tensor, source: Tensor, output: Dense) -> Tensor:
        """(B,P) scores of picked candidates `source` (B,P) to the scores of detections."""
        return scores

    def correct(self, kept: Detections, every: Detections) -> Detections:
        """The detections after the NMS, given what went into it."""
        return kept

    # --- what the heads' losses are made of

    def matched(self, anchors: Anchors, assignments: list[Assignment]) -> Matched:
        image, index = torch.stack([a.positive for a in assignments]).nonzero(as_tuple=True)
        truth = torch.cat([a.target["boxes"][a.gt_index[a.positive]] for a in assignments])
        return Matched((image, index), anchors.boxes[index], truth, average_over_ranks(len(index)))

    def focal(self, logits: Tensor, assignments: list[Assignment]) -> Tensor:
        """The focal loss of all candidates that are neither ignored nor padding, summed."""
        labels = torch.stack([a.labels for a in assignments])
        used = torch.stack([a.used for a in assignments])
        return (sigmoid_focal_loss(logits, one_hot(labels, logits.shape[-1])) * used[..., None]).sum()

    def _positives(
        self, pyramid: Sequence[Tensor], assignments: list[Assignment], generator: torch.Generator | None
    ) -> list[Positives]:
        """Paper vs. release: anchors in the padding can fill up the queries too, as boxes of zeros (a slip)."""
        features, result = tokens(pyramid), []
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
                    features=features[image, positive // self.shapes],
                    kind=torch.full_like(positive, POSITIVE),
                    negative_boxes=candidates.boxes[spare] * candidates.valid[spare, None],
                    negative_features=features[image, spare // self.shapes],
                )
            )
        return result


def flat(levels: list[Tensor], width: int) -> Tensor:
    """Maps (B,A*width,H_j,W_j) to (B,S,width) float32, S candidates: levels, rows, columns, then the A of a cell."""
    cells = tokens(levels)
    return cells.reshape(len(cells), -1, width).float()


def joined(x: Tensor, *layers: nn.Conv2d) -> list[Tensor]:
    """The outputs of prediction layers that read the same map, by one convolution."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers if layer.bias is not None])
    return list(F.conv2d(x, weight, bias, padding=1).split([layer.out_channels for layer in layers], 1))


def centerness_target(candidates: Tensor, boxes: Tensor) -> Tensor:
    """(P,) in [0,1]: how central the centres of (P,4) candidates lie in their (P,4) objects; 1 in the middle."""
    centre = (candidates[:, :2] + candidates[:, 2:]) / 2
    before, after = centre - boxes[:, :2], boxes[:, 2:] - centre
    return (torch.minimum(before, after) / torch.maximum(before, after)).prod(-1).sqrt()
