"""Label assignment by the best IoU, as in Faster R-CNN (Ren et al., 2015) and RetinaNet (Lin et al., 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from codetr_lab import boxes as box_ops
from codetr_lab.assign.objects import matchable, overlapping, sampled_out, winners
from codetr_lab.structures import IGNORED, NEGATIVE, Assignment, Candidates, Quality, Target


def max_iou(
    candidates: Candidates,
    target: Target,
    *,
    positive: float = 0.5,
    negative: float = 0.4,
    low_quality: bool = True,
    min_positive: float = 0.0,
    name: str = "max IoU",
) -> Assignment:
    """A candidate is positive for the object it overlaps most, if their IoU reaches `positive`.

    Below `negative` it is background, between the two it is ignored. With `low_quality`, every object keeps its best
    candidates (all that tie) even below `positive`, if their IoU reaches `min_positive`; where one candidate is the
    best of several objects, the last object gets it, whatever it was before (release: MaxIoUAssigner).

    The release's RPN uses 0.7, 0.3, low quality from 0.3; its RoI head 0.5, 0.5 without low quality.

    Args:
        candidates: M boxes. Invalid ones are never assigned.
        target: N objects. Crowds (`iscrowd`) are not matched.
        name: the rule's name in explanations.

    Returns:
        The assignment; `threshold` is what an object's candidates had to reach: `positive`, or the object's best IoU
        where low quality went below it; infinite for crowds.

    Raises:
        ValueError: `negative` is above `positive`.
    """
    if negative > positive:
        raise ValueError(f"max_iou: negative IoU {negative} is above positive IoU {positive}; swap them")
    boxes, objects, valid = candidates.boxes, matchable(target), candidates.valid
    gt_index = torch.full((len(boxes),), NEGATIVE, device=boxes.device)
    threshold = boxes.new_full((len(target["boxes"]),), float("inf"))
    threshold[objects] = positive
    rows = None if bool(valid.all()) else valid.nonzero()[:, 0]
    eligible = boxes if rows is None else boxes[rows]
    if len(objects) and len(eligible):
        best, nearest, top, kept = _best_pairs(target["boxes"][objects], eligible, low_quality, min_positive)
        matched = torch.where(best >= positive, objects[nearest], NEGATIVE)
        matched = torch.where((best >= negative) & (best < positive), IGNORED, matched)
        if low_quality:
            matched = torch.where(kept >= 0, objects[kept.clamp(min=0)], matched)
            reached = (top >= min_positive) & (top > 0)
            threshold[objects] = torch.where(reached, top.clamp(max=positive), positive)
        if rows is None:
            gt_index = matched
        else:
            gt_index[rows] = matched
    parameters = {"positive": positive, "negative": negative, "low_quality": low_quality, "min_positive": min_positive}
    return Assignment(
        candidates, target, gt_index, valid & (gt_index != IGNORED), Quality("IoU", True), threshold, name, parameters,
        _explain,
    )  # fmt: skip


def _best_pairs(
    gt: Tensor, boxes: Tensor, low_quality: bool, min_positive: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per box its best IoU and object, per object its best IoU, per box the last object whose best it is, or -1."""
    row, owner = overlapping(boxes, gt)  # all others have an IoU of zero
    overlap = box_ops.iou(gt[owner], boxes[row])
    best = boxes.new_zeros(len(boxes)).scatter_reduce_(0, row, overlap, "amax")
    nearest = winners(row, owner, overlap, len(boxes)).clamp(min=0)
    top = boxes.new_zeros(len(gt)).scatter_reduce_(0, owner, overlap, "amax")
    kept = torch.full_like(nearest, -1)
    if low_quality:
        keep = (overlap == top[owner]) & (top[owner] >= min_positive)
        kept.scatter_reduce_(0, row[keep], owner[keep], "amax")
    return best, nearest, top, kept


def _explain(assignment: Assignment, index: int) -> str:
    rule, settings = assignment.rule, assignment.parameters
    objects = matchable(assignment.target)
    if not len(objects):
        return f"Candidate {index} is background: the image has no objects to match."
    overlap = box_ops.iou(assignment.target["boxes"][objects], assignment.candidates.boxes[index])
    nearest = int(overlap.argmax())
    best, owner = float(overlap[nearest]), int(objects[nearest])
    gt = int(assignment.gt_index[index])
    rest = sampled_out(assignment, index)
    if gt == IGNORED:
        return (
            f"{rule} ignores candidate {index}: its best IoU, {best:.3f} with object {owner}, lies between "
            f"{settings['negative']:g} (background) and {settings['positive']:g} (positive)."
        )
    if gt == NEGATIVE:
        return (
            f"Candidate {index} is background: its best IoU, {best:.3f} with object {owner}, is below "
            f"{settings['negative']:g}.{rest}"
        )
    own = float(overlap[objects == gt])
    if own < settings["positive"]:
        other = f" Object {owner} overlaps it more (IoU {best:.3f})." if best > own else ""
        return (
            f"Candidate {index} is positive for object {gt} with IoU {own:.3f}. That is below "
            f"{settings['positive']:g}, but no candidate overlaps object {gt} more, and every object keeps its best "
            f"one from IoU {settings['min_positive']:g} on.{other}{rest}"
        )
    others = [
        f"object {int(objects[i])} (IoU {float(overlap[i]):.3f})"
        for i in range(len(objects))
        if overlap[i] >= settings["positive"] and int(objects[i]) != gt
    ]
    wanted = f" It would also have done for {', '.join(others)}." if others else ""
    return (
        f"Candidate {index} is positive for object {gt}: their IoU, {own:.3f}, reaches "
        f"{settings['positive']:g}.{wanted}{rest}"
    )
