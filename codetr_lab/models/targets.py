"""Checks of what a user hands to the model; every error names the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from codetr_lab.structures import ImageBatch, Target


class TargetError(ValueError):
    """Ground truth that the model cannot be trained on."""


def check_targets(targets: Sequence[Target], batch: ImageBatch, num_classes: int) -> list[Target]:
    """The targets without crowd regions, on the batch's device.

    Raises:
        TargetError: another number of targets than images, wrong shapes, labels outside 0..C-1, boxes that are not
            finite, have no area or lie outside their image; names image and box.
    """
    if len(targets) != len(batch):
        raise TargetError(f"{len(batch)} images, but {len(targets)} targets")
    return [_check(target, index, batch, num_classes) for index, target in enumerate(targets)]


def _check(target: Target, index: int, batch: ImageBatch, num_classes: int) -> Target:
    for key in ("boxes", "labels"):
        if key not in target:
            raise TargetError(f"target of image {index} has no {key!r}")
    boxes, labels = target["boxes"], target["labels"]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != (len(boxes),):
        raise TargetError(
            f"target of image {index}: expected boxes (N, 4) and labels (N,), got {tuple(boxes.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if labels.is_floating_point():
        raise TargetError(f"target of image {index}: labels must be whole numbers, got {labels.dtype}")
    target = {key: value.to(batch.pixels.device) if isinstance(value, torch.Tensor) else value
              for key, value in target.items()}  # fmt: skip
    target |= {"boxes": target["boxes"].float(), "labels": target["labels"].long()}
    if not len(boxes):
        return target
    crowd = target.get("iscrowd")
    if crowd is not None and crowd.any():
        keep = ~crowd.bool()
        target = {key: value[keep] if isinstance(value, torch.Tensor) and value.shape[:1] == keep.shape else value
                  for key, value in target.items()}  # fmt: skip
    boxes, labels = target["boxes"], target["labels"]
    height, width = batch.valid_sizes[index]
    # a pixel of slack: resizing rounds sizes, not boxes
    inside = (boxes[:, 2] > 0) & (boxes[:, 3] > 0) & (boxes[:, 0] < width) & (boxes[:, 1] < height)
    problems = [
        ((labels < 0) | (labels >= num_classes), f"label outside 0..{num_classes - 1}", labels),
        (~torch.isfinite(boxes).all(1), "coordinates that are not finite", boxes),
        ((boxes[:, 2:] <= boxes[:, :2]).any(1), "no area", boxes),
        (~inside, f"no part inside its {width} x {height} image", boxes),
    ]
    for bad, what, values in problems:
        if bad.any():
            at = int(bad.nonzero()[0, 0])
            raise TargetError(f"image {index}, box {at}: has {what} ({values[at].tolist()})")
    return target
