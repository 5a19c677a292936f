"""FCOS (Tian et al., 2019): a point near an object's centre is positive, on the level that suits the object's size."""

from __future__ import annotations

import torch
from torch import Tensor

from codetr_lab.assign.objects import matchable, overlapping, sampled_out, winners
from codetr_lab.structures import Assignment, Candidates, Quality, Target


def fcos(candidates: Candidates, target: Target, *, radius: float = 1.5, reach: float = 8.0) -> Assignment:
    """Positive are the points in the centre of an object, on the level whose range its farthest side lies in.

    A candidate's point is the centre of its box. It is positive for an object if it lies inside the object, less than
    `radius` strides from the object's centre in x and in y (centre sampling), and if the farthest side of the object
    is between `reach / 2` and `reach` strides away; the finest level also takes what is nearer, the coarsest what is
    farther. Where several objects want a point, the smallest one gets it. All others are background; nothing is
    ignored.

    Args:
        candidates: M points with their strides. Invalid ones are never assigned.
        target: N objects. Crowds (`iscrowd`) are not matched.
        radius: 1.5 in the paper's centre sampling.
        reach: 8 in the paper: 64 pixels at stride 8, 128 at stride 16, and so on.

    Returns:
        The assignment. Its quality is the distance to the object's centre in strides, `threshold` the radius for every
        object, -infinity for crowds.

    Raises:
        ValueError: `radius` or `reach` is not positive.
    """
    if min(radius, reach) <= 0:
        raise ValueError(f"fcos: radius and reach must be positive, got {radius:g} and {reach:g}")
    objects = matchable(target)
    threshold = candidates.boxes.new_full((len(target["boxes"]),), -torch.inf)
    threshold[objects] = radius
    gt = target["boxes"][objects]
    row, owner = _near(candidates, gt, radius)
    sides = _sides(candidates, row, gt[owner])
    low, high = _ranges(candidates, reach)
    farthest = sides.amax(-1)
    wanted = (sides.amin(-1) > 0) & (farthest >= low[row]) & (farthest <= high[row])
    row, owner = row[wanted], owner[wanted]
    area = (gt[:, 2:] - gt[:, :2]).prod(-1)
    return Assignment(
        candidates, target, winners(row, objects[owner], -area[owner], len(candidates)), candidates.valid,
        Quality("distance to the centre in strides", higher_is_better=False), threshold, "FCOS",
        {"radius": radius, "reach": reach}, _explain,
    )  # fmt: skip


def _near(candidates: Candidates, gt: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Pairs (candidate, object) of valid points less than `radius` strides from the object's centre in x and y."""
    rows = candidates.valid.nonzero()[:, 0]
    points, limit = _points(candidates, rows), candidates.stride[rows, None] * radius
    centre = (gt[:, :2] + gt[:, 2:]) / 2
    row, owner = overlapping(torch.cat([points - limit, points + limit], 1), torch.cat([centre, centre], 1))
    return rows[row], owner


def _points(candidates: Candidates, rows: Tensor) -> Tensor:
    boxes = candidates.boxes[rows]
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _sides(candidates: Candidates, rows: Tensor, gt: Tensor) -> Tensor:
    """(...,4) distances from points to the left, top, right and bottom of their objects; negative outside."""
    points = _points(candidates, rows)
    return torch.cat([points - gt[..., :2], gt[..., 2:] - points], -1)


def _ranges(candidates: Candidates, reach: float) -> tuple[Tensor, Tensor]:
    """(M,) pixels: how near and how far an object's farthest side may be for every candidate's level."""
    stride = candidates.stride
    if not len(stride):
        return stride, stride
    low = torch.where(stride == stride.min(), 0, stride * (reach / 2))
    return low, torch.where(stride == stride.max(), torch.inf, stride * reach)


def _explain(assignment: Assignment, index: int) -> str:
    candidates, objects = assignment.candidates, matchable(assignment.target)
    if not len(objects):
        return f"Candidate {index} is background: the image has no objects to match."
    radius = assignment.parameters["radius"]
    row = torch.tensor(index, device=objects.device)
    gt, stride = assignment.target["boxes"][objects], float(candidates.stride[index])
    low, high = (float(limit[index]) for limit in _ranges(candidates, assignment.parameters["reach"]))
    sides = _sides(candidates, row, gt)
    inside, farthest = sides.amin(-1) > 0, sides.amax(-1)
    offset = ((gt[:, :2] + gt[:, 2:]) / 2 - _points(candidates, row)).abs().amax(-1) / stride
    fits = (farthest >= low) & (farthest <= high)
    wanted = inside & (offset < radius) & fits
    level = f"level {int(candidates.level[index])} takes {low:g} to {high:g}"
    gained = int(assignment.gt_index[index])
    if gained >= 0:
        own = int((objects == gained).nonzero())
        rivals = [f"object {int(objects[i])}" for i in wanted.nonzero()[:, 0].tolist() if i != own]
        lost = f" It was also wanted by {', '.join(rivals)}, which is no smaller." if rivals else ""
        return (
            f"Candidate {index} is positive for object {gained}: its point lies inside, {float(offset[own]):.2f} of "
            f"{radius:g} strides from the object's centre, and the farthest side is {float(farthest[own]):.0f} pixels "
            f"away ({level}).{lost}{sampled_out(assignment, index)}"
        )
    # the nearest to becoming its object: inside first, then by distance
    nearest = int((offset + 1e6 * (~inside)).argmin())
    reasons = []
    if not inside[nearest]:
        reasons.append("its point lies outside")
    if offset[nearest] >= radius:
        reasons.append(f"it is {float(offset[nearest]):.2f} strides from the centre, {radius:g} or more")
    if not fits[nearest]:
        reasons.append(f"the farthest side is {float(farthest[nearest]):.0f} pixels away ({level})")
    return (
        f"Candidate {index} is background. The object that came nearest to it is {int(objects[nearest])}, but "
        f"{', and '.join(reasons)}.{sampled_out(assignment, index)}"
    )
