"""How clearly the encoder's features tell objects from background: Eq. 7, Eq. 8 and the IoF-IoB curve (Fig. 2-3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codetr_lab.structures import Size, Target, Trace


class AnalysisError(ValueError):
    """Numbers were asked for that these inputs cannot give; the message says why."""


def discriminability(levels: Sequence[Tensor], image_size: Size, pad_mask: Tensor | None = None) -> Tensor:
    """D(F) of Eq. 7: the l2 norm of the encoder's features, level by level over its maximum, averaged over levels.

    Args:
        levels: the memory (not the pyramid) as maps (B,D,h,w).
        image_size: (H,W) of the batch, padding included.
        pad_mask: (B,H,W) bool, True = padding. Padded cells have no part in the resizing, so that an image has the
            same map alone and in any batch, as long as its size is a multiple of the strides.

    Returns:
        (B,1,H,W) in [0,1]; 0 where padded. Every image and level is divided by its own maximum.

    Raises:
        AnalysisError: no level, or `pad_mask` of another size than the batch's.
    """
    if not levels:
        raise AnalysisError("discriminability needs at least one feature level, got none")
    batch, device = len(levels[0]), levels[0].device
    if pad_mask is None:
        pad_mask = torch.zeros(batch, *image_size, dtype=torch.bool, device=device)
    if pad_mask.shape != (batch, *image_size):
        raise AnalysisError(f"pad_mask has shape {tuple(pad_mask.shape)}, the batch has {(batch, *image_size)}")
    total = torch.zeros(batch, 1, *image_size, device=device)
    for features in levels:
        scores = valid_mean_resize(features.float().norm(dim=1, keepdim=True), pad_mask)
        peak = scores.amax(dim=(1, 2, 3), keepdim=True)
        total += scores / torch.where(peak > 0, peak, 1)
    return total / len(levels)


def valid_mean_resize(cells: Tensor, pad_mask: Tensor) -> Tensor:
    """(B,1,h,w) cells to (B,1,H,W) pixels, bilinear; padded cells have no part, padded pixels are 0.

    The interpolation is weighted by validity: at the border of the valid area it repeats the last valid cell, exactly
    as interpolation does at the border of an image.
    """
    valid = ~pad_mask[:, None]
    weight = F.interpolate(valid.float(), size=cells.shape[-2:], mode="nearest")
    both = torch.cat([cells * weight, weight], 1)
    resized = F.interpolate(both, size=pad_mask.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(valid & (resized[:, 1:] > 0), resized[:, :1] / resized[:, 1:], 0)


def foreground_from_boxes(boxes: Tensor, size: Size) -> Tensor:
    """(H,W) bool: pixels whose centre lies inside any of the (N,4) xyxy `boxes`, given in the same pixels."""
    height, width = size
    x = torch.arange(width, device=boxes.device) + 0.5
    y = torch.arange(height, device=boxes.device) + 0.5
    columns = (boxes[:, 0:1] <= x) & (x < boxes[:, 2:3])
    rows = (boxes[:, 1:2] <= y) & (y < boxes[:, 3:4])
    return (rows[:, :, None] & columns[:, None, :]).any(0)


def foreground_from_masks(masks: Tensor) -> Tensor:
    """(H,W) bool: pixels of any of the (N,H,W) `masks`."""
    return masks.bool().any(0)


def foreground(target: Target, size: Size, *, masks: bool = False) -> Tensor:
    """(H,W) bool: the pixels of all boxes of one image's target, or of its masks (padded to `size`) if it has any."""
    if not masks or "masks" not in target:
        return foreground_from_boxes(target["boxes"], size)
    union = foreground_from_masks(target["masks"])
    return F.pad(union, (0, size[1] - union.shape[1], 0, size[0] - union.shape[0]))


@dataclass(frozen=True)
class IofIobCurve:
    """IoF against IoB for rising thresholds.

    Attributes:
        thresholds: (T,) ascending S, float64.
        iof: (T,) share of the foreground with D > S, falling from 1 to 0.
        iob: (T,) share of the background with D < S, rising from 0 to 1.
    """

    thresholds: Tensor
    iof: Tensor
    iob: Tensor

    def at(self, iob: Tensor) -> Tensor:
        """The largest IoF among the points whose IoB is at least `iob` (any shape): the curve to draw or to compare."""
        index = torch.searchsorted(self.iob, iob.to(self.iob)).clamp(max=len(self.iob) - 1)
        return self.iof[index]

    def area(self) -> float:
        """Area under IoF as a function of IoB by the trapezoid rule, in [0,1]; higher separates better."""
        return float((self.iob.diff() * (self.iof[1:] + self.iof[:-1])).sum() / 2)


def _split(score_map: Tensor, foreground: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Flat float64 scores and flat foreground of the valid pixels."""
    masks = {"foreground": foreground} if valid is None else {"foreground": foreground, "valid": valid}
    for name, mask in masks.items():
        if mask.shape != score_map.shape:
            raise AnalysisError(
                f"{name} has shape {tuple(mask.shape)}, the score map {tuple(score_map.shape)}; they must be equal"
            )
    scores, inside = score_map.detach().flatten().double(), foreground.flatten().bool()
    if valid is not None:
        kept = valid.flatten().bool()
        scores, inside = scores[kept], inside[kept]
    if not torch.isfinite(scores).all():
        raise AnalysisError("the score map contains NaN or infinite values")
    return scores, inside


def iof_iob_curve(score_map: Tensor, foreground: Tensor, valid: Tensor | None = None) -> IofIobCurve:
    """The exact curve of Eq. 8: IoF = share of foreground with D > S, IoB = share of background with D < S.

    Both inequalities are strict, as in the paper: a pixel with D = S counts in neither. Every S that changes anything
    is there: below all scores (IoB 0, IoF 1), each distinct score, a point in each gap, above all (IoB 1, IoF 0). The
    curve is therefore a staircase, and its area is exactly P(D of a foreground pixel > D of a background pixel), ties
    counted as 0. (The area under an ROC curve counts them as one half; without ties the two are equal.) A constant map
    has area 0.

    Args:
        score_map: scores of any range and shape, for example (H,W).
        foreground: bool of the same shape.
        valid: bool of the same shape; False = leave out (padding, crowd). Unlike `pad_mask`, True means "count it".

    Raises:
        AnalysisError: shapes differ, scores are not finite, or there is no foreground or no background.
    """
    scores, inside = _split(score_map, foreground, valid)
    total = int(inside.sum()), int((~inside).sum())
    if 0 in total:
        missing = "background" if total[0] else "foreground"
        raise AnalysisError(f"there is no {missing} pixel, so the IoF-IoB curve is not defined for this image")
    values, index = scores.unique(return_inverse=True)
    above = total[0] - torch.bincount(index[inside], minlength=len(values)).cumsum(0)
    up_to = torch.bincount(index[~inside], minlength=len(values)).cumsum(0)
    below = torch.cat([up_to.new_zeros(1), up_to[:-1]])
    # Rows alternate: S = value k, then S in the gap above it (the last gap ends at infinity).
    gaps = torch.cat([(values[1:] + values[:-1]) / 2, values.new_tensor([torch.inf])])
    thresholds = torch.stack([values, gaps], 1).flatten()
    iof = torch.stack([above, above], 1).flatten().double() / total[0]
    iob = torch.stack([below, up_to], 1).flatten().double() / total[1]
    return IofIobCurve(
        torch.cat([values.new_tensor([-torch.inf]), thresholds]),
        torch.cat([values.new_ones(1), iof]),
        torch.cat([values.new_zeros(1), iob]),
    )


def near_one() -> Tensor:
    """1,024 thresholds in [0,1], evenly in log(1 - S) from 1 to 1e-5.

    For D(F): the encoder ends in a LayerNorm, so most of D lies within a few percent of its maximum, where evenly
    spaced thresholds would be far too coarse.
    """
    return 1 - torch.logspace(0, -5, 1024, dtype=torch.float64)


def near_both_ends() -> Tensor:
    """1,024 thresholds in (0,1), evenly in the logit of S from 1e-5 to 1 - 1e-5: for attention, most of it near 0."""
    end = torch.logit(torch.tensor(1e-5, dtype=torch.float64))
    return torch.linspace(float(end), -float(end), 1024, dtype=torch.float64).sigmoid()


class MeanCurve:
    """The mean of many images' IoF-IoB curves at 1,024 fixed thresholds, in constant memory.

    Images without foreground or without background are counted in `skipped` and otherwise left out.

    Args:
        thresholds: (T,) ascending in [0,1], `near_one()` by default.
        pooled: count all images' pixels together, so that large objects weigh more, instead of the mean over images.
    """

    def __init__(self, thresholds: Tensor | None = None, *, pooled: bool = False) -> None:
        self.images = 0
        self.skipped = 0
        self.pooled = pooled
        self._thresholds = (near_one() if thresholds is None else thresholds).double().cpu()
        self._iof, self._iob = torch.zeros_like(self._thresholds), torch.zeros_like(self._thresholds)
        self._front, self._back = 0.0, 0.0  # what the two sums are divided by: images, or pixels if pooled
        self._area = 0.0

    def add(self, score_map: Tensor, foreground: Tensor, valid: Tensor | None = None) -> None:
        """Add one image; arguments as in `iof_iob_curve`, scores in [0,1].

        Raises:
            AnalysisError: shapes differ, or scores are not finite or outside [0,1].
        """
        scores, inside = _split(score_map, foreground, valid)
        if len(scores) and not 0 <= float(scores.min()) <= float(scores.max()) <= 1 + 1e-6:
            raise AnalysisError(
                f"scores lie in [{float(scores.min()):g}, {float(scores.max()):g}]; the mean curve needs [0, 1]"
            )
        front, back = scores[inside].sort().values.cpu(), scores[~inside].sort().values.cpu()
        if not len(front) or not len(back):
            self.skipped += 1
            return
        above = 1 - torch.searchsorted(front, self._thresholds, right=True).double() / len(front)
        below = torch.searchsorted(back, self._thresholds).double() / len(back)
        front_weight, back_weight = (len(front), len(back)) if self.pooled else (1, 1)
        self._iof += front_weight * above
        self._iob += back_weight * below
        self._front, self._back = self._front + front_weight, self._back + back_weight
        self._area += float(torch.searchsorted(back, front).double().mean()) / len(back)
        self.images += 1

    def add_trace(self, trace: Trace, maps: Tensor | None = None, *, masks: bool = False) -> None:
        """Add every image of a `Trace` with targets, the padding left out.

        Args:
            maps: (B,1,H,W) scores, D of the trace's memory (Eq. 7) by default.
            masks: take the objects' masks as foreground instead of their boxes, where the targets hold them.

        Raises:
            AnalysisError: the trace has no targets.
        """
        if trace.targets is None:
            raise AnalysisError("the trace has no targets, so nothing is foreground; call model.trace(batch, targets)")
        size = (trace.batch.pad_mask.shape[1], trace.batch.pad_mask.shape[2])
        maps = discriminability(trace.memory, size, trace.batch.pad_mask) if maps is None else maps
        for score_map, target, pad_mask in zip(maps[:, 0], trace.targets, trace.batch.pad_mask, strict=True):
            self.add(score_map, foreground(target, size, masks=masks).to(score_map.device), ~pad_mask)

    def curve(self) -> IofIobCurve:
        """The mean so far, with the end points (IoB 0, IoF 1) and (1, 0).

        Raises:
            AnalysisError: no image with foreground and background was added.
        """
        self._check()
        infinity = torch.tensor([torch.inf], dtype=torch.float64)
        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        return IofIobCurve(
            torch.cat([-infinity, self._thresholds, infinity]),
            torch.cat([one, self._iof / self._front, zero]),
            torch.cat([zero, self._iob / self._back, one]),
        )

    def mean_area(self) -> float:
        """The mean of the images' exact areas. Unlike `curve().area()` it does not ask that images share one threshold.

        Raises:
            AnalysisError: no image with foreground and background was added.
        """
        self._check()
        return self._area / self.images

    def _check(self) -> None:
        if not self.images:
            raise AnalysisError("no image with objects and background was added to the mean curve")
