"""Box algebra. xyxy boxes are absolute pixels, cxcywh boxes are normalised by the valid image size."""

from __future__ import annotations

import torch
from torch import Tensor


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(...,4) corners to centre and size, in the same unit."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], -1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(...,4) centre and size to corners, in the same unit."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1)


def area(boxes: Tensor) -> Tensor:
    """(...,4) xyxy to (...), zero for degenerate boxes."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of broadcastable xyxy boxes."""
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    return intersection, area(a) + area(b) - intersection


def iou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Intersection over union of broadcastable xyxy boxes; the union is at least `eps`, as in the release.

    For all pairs of (M,4) and (N,4): `iou(a[:, None], b)`.
    """
    intersection, union = _overlap(a, b)
    return intersection / union.clamp(min=eps)


def giou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Generalised IoU (Rezatofighi et al., 2019) of broadcastable xyxy boxes, in [-1, 1]."""
    intersection, union = _overlap(a, b)
    union = union.clamp(min=eps)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    hull_area = (hull[..., 0] * hull[..., 1]).clamp(min=eps)
    return intersection / union - (hull_area - union) / hull_area


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of x clamped to [0,1], numerator and denominator at least `eps` (release: 1e-5; in DINO 1e-3)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def encode_deltas(anchors: Tensor, boxes: Tensor, stds: tuple[float, float, float, float] = (1, 1, 1, 1)) -> Tensor:
    """(...,4) xyxy boxes as R-CNN deltas (dx, dy, dw, dh) from xyxy anchors, divided by `stds`."""
    a, b = xyxy_to_cxcywh(anchors), xyxy_to_cxcywh(boxes)
    deltas = torch.cat([(b[..., :2] - a[..., :2]) / a[..., 2:], torch.log(b[..., 2:] / a[..., 2:])], -1)
    return deltas / deltas.new_tensor(stds)


def decode_deltas(
    anchors: Tensor,
    deltas: Tensor,
    stds: tuple[float, float, float, float] = (1, 1, 1, 1),
    size: tuple[int, int] | None = None,
) -> Tensor:
    """(...,4) xyxy boxes that R-CNN `deltas` describe from xyxy `anchors`; clamped to `size` (height, width) if given.

    The growth of a side is limited to 1000/16 times, as in R-CNN and the release.
    """
    deltas = deltas * deltas.new_tensor(stds)
    a = xyxy_to_cxcywh(anchors)
    limit = 4.135166556742356  # log(1000 / 16)
    centre = a[..., :2] + deltas[..., :2] * a[..., 2:]
    sides = a[..., 2:] * deltas[..., 2:].clamp(-limit, limit).exp()
    boxes = torch.cat([centre - sides / 2, centre + sides / 2], -1)
    return boxes if size is None else clip(boxes, size)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """xyxy boxes inside an image of `size` (height, width)."""
    height, width = size
    return torch.stack([boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)], -1).flatten(-2)
