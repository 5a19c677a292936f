"""Mask R-CNN (He et al., 2017) as an auxiliary head: Faster R-CNN with a branch that paints the object in its box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.heads.faster_rcnn import FasterRCNNHead
from codetr_lab.models.targets import TargetError
from codetr_lab.structures import Assignment, Detections, HeadOutput, ImageBatch, Target


class MaskRCNNHead(FasterRCNNHead):
    """The box branch is Faster R-CNN's; the mask branch sees the sampled positives and the targets' `masks` (N,h,w)."""

    def __init__(self, config: CoDETRConfig, strides: Sequence[int], name: str = "mask_rcnn") -> None:
        super().__init__(config, strides, name, config.mask_rcnn)
        self.masking = settings = config.mask_rcnn
        dim = config.transformer.hidden_dim
        self.mask_convs = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(settings.mask_convs))
        self.mask_upsample = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.mask_logits = nn.Conv2d(dim, config.num_classes, 1)
        for layer in (*self.mask_convs, self.mask_upsample, self.mask_logits):
            weight, bias = layer.parameters()
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(bias)

    def supervise(
        self,
        pyramid: Sequence[Tensor],
        batch: ImageBatch,
        targets: Sequence[Target],
        generator: torch.Generator | None = None,
    ) -> HeadOutput:
        """As Faster R-CNN, with the loss `mask`: binary cross-entropy of the object's class over the pixels of its box.

        Raises:
            TargetError: an image with objects has no masks.
        """
        output = super().supervise(pyramid, batch, targets, generator)
        return replace(output, losses=output.losses | {"mask": self._mask_loss(pyramid, output.assignments)})

    @torch.no_grad()
    def predict(self, pyramid: Sequence[Tensor], batch: ImageBatch) -> list[Detections]:
        """As Faster R-CNN, with `masks` in the valid image's pixels."""
        found = super().predict(pyramid, batch)
        logits = self.masks(pyramid, [detections.boxes for detections in found])
        own = logits[torch.arange(len(logits)), torch.cat([detections.labels for detections in found])].sigmoid()
        painted = []
        for detections, mask, size in zip(found, own.split([len(d) for d in found]), batch.valid_sizes, strict=True):
            pixels = paste_masks_in_image(mask[:, None], detections.boxes, size)
            painted.append(replace(detections, masks=pixels[:, 0] > 0.5))
        return painted

    def masks(self, pyramid: Sequence[Tensor], rois: Sequence[Tensor]) -> Tensor:
        """(R,C,m,m) mask logits in the (R_i,4) boxes of every image, m twice `mask_size`."""
        hidden = self.roi_features(pyramid, rois, self.masking.mask_size)
        for conv in self.mask_convs:
            hidden = F.relu(conv(hidden))
        return self.mask_logits(F.relu(self.mask_upsample(hidden))).float()

    def _mask_loss(self, pyramid: Sequence[Tensor], assignments: list[Assignment]) -> Tensor:
        rois, labels, goals = [], [], []
        for image, assignment in enumerate(assignments):
            drawn = assignment.positive & assignment.used
            box, gt_index = assignment.candidates.boxes[drawn], assignment.gt_index[drawn]
            rois.append(box)
            labels.append(assignment.target["labels"][gt_index])
            goals.append(crop_masks(_masks(assignment.target, image), box, gt_index, 2 * self.masking.mask_size))
        logits, label = self.masks(pyramid, rois), torch.cat(labels)
        own = logits[torch.arange(len(label)), label]
        loss = F.binary_cross_entropy_with_logits(own, torch.cat(goals), reduction="sum") / max(1, own.numel())
        return self.config.aux_loss_factor * self.masking.weight_mask * loss


def _masks(target: Target, image: int) -> Tensor:
    if "masks" in target:
        return target["masks"]
    if len(target["boxes"]):
        raise TargetError(f"target of image {image} has no 'masks', which mask_rcnn learns; take faster_rcnn instead")
    return target["boxes"].new_zeros(0, 1, 1)


def crop_masks(masks: Tensor, boxes: Tensor, gt_index: Tensor, size: int) -> Tensor:
    """(P,size,size) float 0/1: the (N,h,w) masks of objects `gt_index` (P,) inside (P,4) boxes."""
    numbered = torch.cat([gt_index[:, None].to(boxes), boxes], 1)
    crops = torchvision.ops.roi_align(masks[:, None].float(), numbered, size, aligned=True)
    return (crops[:, 0] >= 0.5).float()
