"""Probabilistic anchor assignment (Kim & Lee, 2020): an object's candidates part into cheap ones and dear ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codetr_lab import boxes as box_ops
from codetr_lab.assign import mixture
from codetr_lab.assign.max_iou import max_iou
from codetr_lab.assign.objects import matchable, sampled_out
from codetr_lab.structures import NEGATIVE, Assignment, Candidates, Quality, Target


def paa(candidates: Candidates, target: Target, *, top_k: int = 9, min_iou: float = 0.1) -> Assignment:
    """Positive are an object's candidates of low cost, parted from those of high cost by a mixture of two Gaussians.

    Every candidate is a candidate of the one object that it overlaps most, from an IoU of `min_iou` on (the best of an
    object always are). Of each object's, the `top_k` cheapest per level are shortlisted and two Gaussians are fitted to
    their costs. Positive is every shortlisted candidate that costs no more than the most probable member of the cheap
    Gaussian (separation (c) of the paper's Figure 3); a single candidate is positive. All others are background.

    Args:
        candidates: M anchors; `costs` are what the head loses there, (M,) for the object overlapped most or (M,N):
            classification plus box loss in the paper. Without `costs`, 1 - GIoU of anchor and object: what a head that
            knows nothing and leaves its anchors alone would lose. Invalid ones are never assigned.
        target: N objects. Crowds (`iscrowd`) are not matched.
        top_k: shortlisted candidates per level and object (9 in the paper).
        min_iou: 0.1 in the paper.

    Returns:
        The assignment. Its quality is the cost, `threshold` the highest cost of every object's positives, -infinity
        for objects without candidates and for crowds.

    Raises:
        ValueError: `top_k` is below 1, or costs that are not finite or not of shape (M,) or (M,N).
    """
    return paa_batch([candidates], [target], top_k=top_k, min_iou=min_iou)[0]


def paa_batch(
    candidates: Sequence[Candidates], targets: Sequence[Target], *, top_k: int = 9, min_iou: float = 0.1
) -> list[Assignment]:
    """`paa` of every image of a batch, with one fit for all objects."""
    if top_k < 1:
        raise ValueError(f"paa: top_k must be at least 1, got {top_k}")
    shortlists = [_shortlist(*image, top_k, min_iou) for image in zip(candidates, targets, strict=True)]
    costs = [row for listed in shortlists for row in listed.by_object()]
    numbers, found = iter(separate(costs)), []
    for image, target, listed in zip(candidates, targets, shortlists, strict=True):
        number = listed.row.new_tensor([next(numbers) for _ in target["boxes"]])
        positive = listed.place < number[listed.owner]
        gt_index = torch.full((len(image),), NEGATIVE, device=image.boxes.device)
        gt_index[listed.row[positive]] = listed.owner[positive]
        threshold = image.boxes.new_full((len(number),), -torch.inf)
        threshold.scatter_reduce_(0, listed.owner[positive], listed.cost[positive].to(threshold), "amax")
        found.append(
            Assignment(
                image, target, gt_index, image.valid, Quality("cost", higher_is_better=False), threshold, "PAA",
                {"top_k": top_k, "min_iou": min_iou}, _explain,
            )
        )  # fmt: skip
    return found


def separate(costs: Sequence[NDArray[np.float64]]) -> list[int]:
    """How many of each object's costs are positive; its costs come in ascending order."""
    counts = [len(row) for row in costs]
    several = [n for n, count in enumerate(counts) if count > 1]
    if not several:
        return counts
    filled = np.arange(max(counts)) < np.array([counts[n] for n in several])[:, None]
    values = np.zeros(filled.shape)
    values[filled] = np.concatenate([costs[n] for n in several])
    joint = mixture.fit(values, filled).log_joint(values)
    cheap = (joint[0] >= joint[1]) & filled
    likely = np.where(cheap, np.logaddexp(*joint), -np.inf).argmax(1)
    for row, n in enumerate(several):
        if cheap[row].any():  # else nobody belongs to the cheap Gaussian: all are positive, as in the authors' code
            counts[n] = int(np.searchsorted(costs[n], costs[n][likely[row]], side="right"))
    return counts


@dataclass(frozen=True)
class _Listed:
    """The P shortlisted candidates of an image, cheapest first: `row`, `owner` (their object), `cost`, and `place` in
    the object's own order; `objects` is N."""

    row: Tensor
    owner: Tensor
    cost: Tensor
    place: Tensor
    objects: int

    def by_object(self) -> list[NDArray[np.float64]]:
        """N arrays of costs, ascending."""
        order = self.owner.argsort(stable=True)
        counts = torch.bincount(self.owner, minlength=self.objects).tolist()
        return [part.numpy() for part in self.cost[order].cpu().split(counts)]


def _shortlist(candidates: Candidates, target: Target, top_k: int, min_iou: float) -> _Listed:
    near = max_iou(candidates, target, positive=min_iou, negative=min_iou).gt_index
    row = (near >= 0).nonzero()[:, 0]
    cost = _costs(candidates, target, row, near[row])
    order = cost.argsort(stable=True)
    row, cost = row[order], cost[order]
    if len(row):
        object_and_level = near[row] * (candidates.level.max() + 2) + candidates.level[row]
        keep = _rank(object_and_level) < top_k
        row, cost = row[keep], cost[keep]
    return _Listed(row, near[row], cost, _rank(near[row]), len(target["boxes"]))


def _rank(group: Tensor) -> Tensor:
    """(P,) how many earlier ones are of the same group."""
    order = group.argsort(stable=True)
    ordered = group[order]
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group), device=group.device) - torch.searchsorted(ordered, ordered)
    return rank


def _costs(candidates: Candidates, target: Target, row: Tensor, owner: Tensor) -> Tensor:
    """(P,) float64 costs of giving candidates to objects."""
    given = candidates.costs
    if given is None:
        return 1 - box_ops.giou(candidates.boxes[row], target["boxes"][owner]).double()
    shapes = [(len(candidates),), (len(candidates), len(target["boxes"]))]
    if tuple(given.shape) not in shapes:
        raise ValueError(f"paa: costs must be of shape {shapes[0]} or {shapes[1]}, got {tuple(given.shape)}")
    cost = (given[row] if given.ndim == 1 else given[row, owner]).double()
    if not bool(cost.isfinite().all()):
        raise ValueError(f"paa: the cost of candidate {int(row[~cost.isfinite()][0])} is not finite")
    return cost


def _explain(assignment: Assignment, index: int) -> str:
    candidates, target, settings = assignment.candidates, assignment.target, assignment.parameters
    objects = matchable(target)
    if not len(objects):
        return f"Candidate {index} is background: the image has no objects to match."
    overlap = box_ops.iou(target["boxes"][objects], candidates.boxes[index])
    listed = _shortlist(candidates, target, settings["top_k"], settings["min_iou"])
    at = (listed.row == index).nonzero()[:, 0]
    rest, level = sampled_out(assignment, index), int(candidates.level[index])
    if not len(at):
        near, best = int(objects[overlap.argmax()]), float(overlap.max())
        if best < settings["min_iou"]:
            reason = f"its best IoU, {best:.3f} with object {near}, is below {settings['min_iou']:g}"
        else:
            reason = (
                f"{settings['top_k']} others of level {level} cost no more for object {near}, which it overlaps most"
            )
        return f"Candidate {index} is background: {reason}.{rest}"
    owner, place = int(listed.owner[at]), int(listed.place[at])
    costs = listed.by_object()[owner]
    cost, limit = float(costs[place]), float(assignment.threshold[owner])
    if len(costs) == 1:
        return f"Candidate {index} is positive for object {owner}: it is the object's only candidate.{rest}"
    means = mixture.fit(costs[None], np.ones((1, len(costs)), bool)).mean[:, 0]
    cheap, dear = (f"{float(mean):.3f}" for mean in means)
    around = f"both around {cheap}" if cheap == dear else f"around {cheap} and around {dear}"
    parts = (
        f"Two Gaussians fitted to the costs of the object's {len(costs)} shortlisted candidates lie {around}; the most "
        f"probable member of the cheap one costs {limit:.3f}"
    )
    if int(assignment.gt_index[index]) == owner:
        return f"Candidate {index} is positive for object {owner}: its cost is {cost:.3f}. {parts}, no less.{rest}"
    return f"Candidate {index} is background: its cost for object {owner} is {cost:.3f}. {parts}, which is less.{rest}"
