"""From the decoder's last layer to detections."""

from __future__ import annotations

from dataclasses import replace

import torch

from codetr_lab import boxes as box_ops
from codetr_lab.models.config import CoDETRConfig
from codetr_lab.ops.soft_nms import soft_nms
from codetr_lab.structures import Detections, ImageBatch, QueryGroup


def detections(group: QueryGroup, batch: ImageBatch, config: CoDETRConfig) -> list[Detections]:
    """The best of all query-class pairs of the last layer, clipped to the valid image.

    With soft-NMS, as many pairs as there are queries go into it (release, DINO).
    """
    scores = group.logits[-1].sigmoid()
    queries, classes = scores.shape[1:]
    wanted = config.max_detections if config.soft_nms_iou is None else queries
    best, index = scores.flatten(1).topk(min(wanted, queries * classes), dim=1)
    query, label = index // classes, index % classes
    pixels = box_ops.cxcywh_to_xyxy(group.boxes_cxcywh[-1]) * batch.whwh()[:, None]
    found = [
        Detections(box_ops.clip(pixels[i, query[i]], size), best[i], label[i], query[i])
        for i, size in enumerate(batch.valid_sizes)
    ]
    return found if config.soft_nms_iou is None else [_soft_nms(f, config.soft_nms_iou, config) for f in found]


def _soft_nms(found: Detections, iou: float, config: CoDETRConfig) -> Detections:
    keep, scores = soft_nms(found.boxes, found.scores, found.labels, iou)
    return replace(found.select(keep), scores=scores).select(torch.arange(min(len(keep), config.max_detections)))
