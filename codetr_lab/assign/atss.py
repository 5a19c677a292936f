"""Adaptive training sample selection (Zhang et al., 2020): every object sets its own IoU threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from codetr_lab import boxes as box_ops
from codetr_lab.assign.objects import PAIRS_AT_ONCE, matchable, sampled_out, winners
from codetr_lab.structures import NEGATIVE, Assignment, Candidates, Quality, Target

INSIDE_MARGIN = 0.01
"""Pixels by which a candidate's centre must lie inside the object (release: atss_assigner.py)."""


def atss(candidates: Candidates, target: Target, *, top_k: int = 9) -> Assignment:
    """Positive are the anchors near an object whose IoU with it reaches the mean plus the standard deviation.

    On every level the `top_k` candidates whose centres are nearest to the object's centre are shortlisted. Mean and
    (unbiased) standard deviation of the IoUs on the shortlist add up to the object's threshold; a shortlisted candidate
    is positive if its IoU reaches it and its centre lies inside the object. Where several objects want a candidate,
    the one with the highest IoU gets it. All others are background; nothing is ignored.

    Args:
        candidates: M anchors with their levels. Invalid ones are never assigned, nor do they enter a shortlist.
        target: N objects. Crowds (`iscrowd`) are not matched.
        top_k: shortlisted candidates per level and object (9 in the paper and the release).

    Returns:
        The assignment; `threshold` holds every object's own, infinite for crowds.

    Raises:
        ValueError: `top_k` is below 1.
    """
    if top_k < 1:
        raise ValueError(f"atss: top_k must be at least 1, got {top_k}")
    boxes, objects = candidates.boxes, matchable(target)
    gt_index = torch.full((len(boxes),), NEGATIVE, device=boxes.device)
    threshold = boxes.new_full((len(target["boxes"]),), float("inf"))
    gt = target["boxes"][objects]
    rows = _shortlist(candidates, gt, top_k) if len(objects) else gt_index[:0, None]
    if len(rows):
        nearby = boxes[rows]
        overlap = box_ops.iou(nearby, gt)
        threshold[objects] = overlap.mean(0) + overlap.std(0, correction=min(1, len(rows) - 1))
        centre = (nearby[..., :2] + nearby[..., 2:]) / 2
        inside = torch.cat([centre - gt[:, :2], gt[:, 2:] - centre], -1).amin(-1) > INSIDE_MARGIN
        wanted, owner = ((overlap >= threshold[objects]) & inside).nonzero(as_tuple=True)
        gt_index = winners(rows[wanted, owner], objects[owner], overlap[wanted, owner], len(boxes))
    return Assignment(
        candidates, target, gt_index, candidates.valid, Quality("IoU", True), threshold, "ATSS", {"top_k": top_k},
        _explain,
    )  # fmt: skip


def _shortlist(candidates: Candidates, gt: Tensor, top_k: int) -> Tensor:
    """(K,N) candidates whose centres are nearest to each of the (N,4) objects, `top_k` per level, levels in order."""
    rows = candidates.valid.nonzero()[:, 0]
    if not len(rows):
        return candidates.level.new_zeros(0, len(gt))
    level = candidates.level[rows]
    if bool((level[1:] < level[:-1]).any()):
        level, order = level.sort(stable=True)
        rows = rows[order]
    counts = torch.bincount(level - level[0]).tolist()
    x, y = ((candidates.boxes[rows, :2] + candidates.boxes[rows, 2:]) / 2).unbind(-1)
    gx, gy = ((gt[:, :2] + gt[:, 2:]) / 2).unsqueeze(1).unbind(-1)
    step = max(1, PAIRS_AT_ONCE // len(rows))
    chosen = []
    for start in range(0, len(gt), step):
        group = slice(start, start + step)
        # The square root matters: its rounding makes ties, and the release ranks the roots.
        distance = ((x - gx[group]).square() + (y - gy[group]).square()).sqrt()
        near, first = [], 0
        for count in counts:
            near.append(distance[:, first : first + count].topk(min(top_k, count), largest=False).indices + first)
            first += count
        chosen.append(torch.cat(near, 1))
    return rows[torch.cat(chosen)].T


def _explain(assignment: Assignment, index: int) -> str:
    candidates, objects = assignment.candidates, matchable(assignment.target)
    if not len(objects):
        return f"Candidate {index} is background: the image has no objects to match."
    gt, box, level = assignment.target["boxes"][objects], candidates.boxes[index], int(candidates.level[index])
    overlap = box_ops.iou(gt, box)
    limit = assignment.threshold[objects]
    centre = (box[:2] + box[2:]) / 2
    inside = torch.cat([centre - gt[:, :2], gt[:, 2:] - centre], -1).amin(-1) > INSIDE_MARGIN
    on_level = _shortlist(_only_level(candidates, level), gt, assignment.parameters["top_k"])
    listed = (on_level == index).any(0)
    gained = int(assignment.gt_index[index])
    k = assignment.parameters["top_k"]
    if gained >= 0:
        own = int((objects == gained).nonzero())
        rivals = (listed & inside & (overlap >= limit)).nonzero()[:, 0].tolist()
        others = [f"object {int(objects[i])} (IoU {float(overlap[i]):.3f})" for i in rivals if i != own]
        lost = f" It was also wanted by {', '.join(others)}, with no higher IoU." if others else ""
        return (
            f"Candidate {index} is positive for object {gained}: it is among the {k} nearest to its centre on level "
            f"{level}, its own centre lies inside, and the IoU, {float(overlap[own]):.3f}, reaches the object's "
            f"threshold of {float(limit[own]):.3f}.{lost}{sampled_out(assignment, index)}"
        )
    nearest = int(torch.linalg.vector_norm((gt[:, :2] + gt[:, 2:]) / 2 - centre, dim=-1).argmin())
    if bool(listed.any()):
        nearest = int(torch.where(listed, overlap - limit, -torch.inf).argmax())
    reasons = []
    if not listed[nearest]:
        reasons.append(f"it is not among the {k} candidates of level {level} nearest to its centre")
    if not inside[nearest]:
        reasons.append("its own centre lies outside")
    if overlap[nearest] < limit[nearest]:
        reasons.append(
            f"the IoU, {float(overlap[nearest]):.3f}, is below the object's threshold of {float(limit[nearest]):.3f}"
        )
    return (
        f"Candidate {index} is background. The object that came nearest to it is {int(objects[nearest])}, but "
        f"{', and '.join(reasons)}.{sampled_out(assignment, index)}"
    )


def _only_level(candidates: Candidates, level: int) -> Candidates:
    """The same candidates, of which only those on `level` are valid."""
    valid = candidates.valid & (candidates.level == level)
    return Candidates(candidates.boxes, candidates.level, candidates.stride, valid)
