"""Test-time augmentation: every image at several sizes and mirrored, the findings merged by soft-NMS.

The release's ViT configurations declare soft-NMS for it, but the released query head does not implement it, and no
sizes are given: the scales here are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from codetr_lab.images import batch_of, prepare
from codetr_lab.ops.soft_nms import soft_nms
from codetr_lab.structures import Detections

if TYPE_CHECKING:
    from codetr_lab.models.codetr import CoDETR


@dataclass(frozen=True)
class TTA:
    """What an image is looked at as.

    Attributes:
        scales: factors on the size that the model's configuration resizes to.
        flip: also mirrored, at every scale.
        iou: of two boxes of one class from which on soft-NMS lowers the lesser one's score (ViT configuration: 0.8).
        min_score: what ends below it goes.
    """

    scales: tuple[float, ...] = (0.75, 1.0, 1.25)
    flip: bool = True
    iou: float = 0.8
    min_score: float = 1e-3

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"test-time augmentation needs scales above zero, got {self.scales}")


def detect(
    model: CoDETR, image: NDArray[np.uint8], heads: Sequence[str] | None = None, tta: TTA | None = None
) -> dict[str, Detections]:
    """What each head finds in an image (H,W,3) uint8 over all views; boxes in the image's pixels, best first.

    As many detections are kept as one view gives. `source_index` counts the queries or candidates of the view that a
    detection came from.
    """
    tta = tta or TTA()
    device = next(model.parameters()).device
    height, width = image.shape[:2]
    views: list[dict[str, Detections]] = []
    for scale in tta.scales:
        config = model.config.image
        config = replace(config, short=max(1, round(config.short * scale)), long=max(1, round(config.long * scale)))
        sides = [image, np.ascontiguousarray(image[:, ::-1])] if tta.flip else [image]
        ready = [prepare(side, config) for side in sides]
        batch = batch_of(ready, config).to(device)
        for mirrored, found in enumerate(model.detect(batch, heads)):
            original = {n: d.to_original(ready[mirrored].scale, (height, width)) for n, d in found.items()}
            views.append({name: _mirrored(d, width) for name, d in original.items()} if mirrored else original)
    return {name: _merged([view[name] for view in views], tta) for name in views[0]}


def _mirrored(found: Detections, width: int) -> Detections:
    x0, y0, x1, y1 = found.boxes.unbind(-1)
    return replace(found, boxes=torch.stack([width - x1, y0, width - x0, y1], -1))


def _merged(views: Sequence[Detections], tta: TTA) -> Detections:
    boxes, scores, labels, sources = (
        torch.cat([getattr(view, name) for view in views]) for name in ("boxes", "scores", "labels", "source_index")
    )
    keep, lowered = soft_nms(boxes, scores, labels, tta.iou, tta.min_score)
    most = max(len(view) for view in views)
    keep, lowered = keep[:most], lowered[:most]
    return Detections(boxes[keep], lowered, labels[keep], sources[keep])
