"""What the heads' label assignments decide on a data set before any training: anchors and points need no network."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from codetr_lab.assign import max_iou, paa
from codetr_lab.models.config import CoDETRConfig, override
from codetr_lab.models.heads import ATSSHead, FasterRCNNHead, FCOSHead, PAAHead, RetinaNetHead
from codetr_lab.models.meta import meta_model
from codetr_lab.structures import Assignment, ImageBatch, Target


class UntrainedRules:
    """The rules of a configuration's heads, on the pyramid that its detector would have.

    `rpn` is Faster R-CNN's first stage; its second assigns the RPN's proposals and needs a trained one. PAA judges
    anchors by their own GIoU instead of by a head's losses. GFL's rule is ATSS'.
    """

    def __init__(self, config: CoDETRConfig) -> None:
        self.strides = meta_model(override(config, aux_heads=())).strides
        # The heads give their candidates only, so that their layers may be small.
        small = override(config, **{"transformer.hidden_dim": 8, "transformer.heads": 1, "transformer.norm_groups": 1})
        self.dense = [ATSSHead(small, self.strides), FCOSHead(small, self.strides), RetinaNetHead(small, self.strides)]
        self.paa, self.rpn = PAAHead(small, self.strides), FasterRCNNHead(small, self.strides)

    def assign(self, batch: ImageBatch, targets: Sequence[Target]) -> dict[str, list[Assignment]]:
        """Per rule, the assignment of every image."""
        height, width = batch.pixels.shape[-2:]
        pyramid = [torch.zeros(1).expand(len(batch), 8, -(-height // s), -(-width // s)) for s in self.strides]
        found = {head.name: head.assign(head.anchors(pyramid, batch), targets, None) for head in self.dense}
        anchors, settings = self.paa.anchors(pyramid, batch), self.paa.settings
        found["paa"] = [
            paa(anchors.candidates(i), target, top_k=settings.top_k, min_iou=settings.min_iou)
            for i, target in enumerate(targets)
        ]
        anchors, low = self.rpn.anchors(pyramid, batch), self.rpn.settings.rpn_negative_iou
        high = self.rpn.settings.rpn_positive_iou
        found["rpn"] = [
            max_iou(anchors.candidates(i), target, positive=high, negative=low, min_positive=low, name="RPN (max IoU)")
            for i, target in enumerate(targets)
        ]
        return found
