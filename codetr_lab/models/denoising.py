"""Contrastive denoising queries (DINO, Zhang et al., 2022, Sec. 3.2): objects with noise, which need no matching."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codetr_lab import boxes as box_ops
from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.decoder import QueryInput
from codetr_lab.models.queries import AssignedGroup
from codetr_lab.models.set_loss import PaddedTargets
from codetr_lab.structures import DENOISING, NEGATIVE


@dataclass(frozen=True)
class Noise:
    """The random draws of a batch, for B images, G subgroups, two kinds (positive, negative) and N objects.

    Attributes:
        flip: (B,G,2,N) in [0,1); a label is replaced where this is below half of `denoising.label_noise`.
        label: (B,G,2,N) long; by what.
        sign: (B,G,2,N,4) -1 or 1, and `size`: (B,G,2,N,4) in [0,1): where a box's corners move, in halves of its sides.
    """

    flip: Tensor
    label: Tensor
    sign: Tensor
    size: Tensor

    @classmethod
    def draw(cls, shape: tuple[int, ...], num_classes: int, generator: torch.Generator | None) -> Noise:
        """On the CPU, so that a seed gives the same noise on every device."""
        return cls(
            torch.rand(shape, generator=generator),
            torch.randint(num_classes, shape, generator=generator),
            torch.randint(2, (*shape, 4), generator=generator) * 2.0 - 1,
            torch.rand((*shape, 4), generator=generator),
        )


class Denoising(nn.Module):
    """Every object becomes one pair of queries per subgroup: with little noise to find it, with more to be background.

    Source: `dn_cfg` of the release's `co_dino_5scale_r50_1x_coco`.
    """

    def __init__(self, config: CoDETRConfig) -> None:
        super().__init__()
        self.config = config
        self.label_embedding = nn.Embedding(config.num_classes, config.transformer.hidden_dim)

    def forward(self, truth: PaddedTargets, generator: torch.Generator | None = None) -> AssignedGroup:
        """The group `denoising`: G subgroups of 2 N queries, N positives and then N negatives, for at most N objects.

        Each subgroup sees itself and the original queries. Images with fewer objects get queries without content in
        the middle of the image, which learn to be background (as released).
        """
        batch, objects = len(truth.counts), max(truth.counts)
        subgroups = max(1, self.config.denoising.queries // objects) if objects else 1
        shape = (batch, subgroups, 2, objects)
        noise = self.noise(shape, generator)
        count = torch.tensor(truth.counts, device=truth.boxes.device)
        real = (torch.arange(objects, device=count.device) < count[:, None])[:, None, None].expand(shape)
        labels, boxes = self.disturb(
            truth.labels[:, None, None, :objects].expand(shape),
            box_ops.xyxy_to_cxcywh(truth.boxes / truth.whwh[:, None])[:, None, None, :objects], noise,
        )  # fmt: skip
        boxes = torch.where(real[..., None], boxes, 0.5).flatten(1, 3)
        content = (self.label_embedding(labels) * real[..., None]).flatten(1, 3)
        gt_index = torch.arange(objects, device=count.device).expand(shape)
        positive = real & (torch.arange(2, device=count.device) == 0)[:, None]
        kind = torch.full(content.shape[:2], DENOISING, device=count.device)
        query = QueryInput("denoising", content, None, boxes, kind, sees=("original",), subgroup=2 * objects)
        return AssignedGroup(
            query, torch.where(positive, gt_index, NEGATIVE).flatten(1),
            box_ops.cxcywh_to_xyxy(boxes) * truth.whwh[:, None], torch.ones_like(boxes[..., 0]),
            sum(truth.counts) * subgroups,
        )  # fmt: skip

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Noise:
        """The draws for (B,G,2,N) queries."""
        return Noise.draw(shape, self.config.num_classes, generator)

    def disturb(self, labels: Tensor, boxes_cxcywh: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """(B,G,2,N) labels and (B,1,1,N,4) boxes to noisy ones; a negative's corners move by more than half a side."""
        settings = self.config.denoising
        labels = torch.where(noise.flip.to(labels.device) < settings.label_noise / 2, noise.label.to(labels), labels)
        corners = box_ops.cxcywh_to_xyxy(boxes_cxcywh)
        half = boxes_cxcywh[..., [2, 3, 2, 3]] / 2
        negative = torch.arange(2, device=half.device)[:, None, None]
        shift = noise.sign.to(half) * (noise.size.to(half) + negative) * half * settings.box_noise
        noisy = box_ops.xyxy_to_cxcywh((corners + shift).clamp(0, 1))
        return labels, box_ops.inverse_sigmoid(noisy, self.config.decoder.inverse_sigmoid_eps).sigmoid()
