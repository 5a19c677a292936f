"""One-to-many by matching one-to-one several times: Group-DETR (Chen et al., 2023) and H-DETR (Jia et al., 2023)."""

from __future__ import annotations

from dataclasses import replace

import torch

from codetr_lab import boxes as box_ops
from codetr_lab.assign.hungarian import hungarian_assignment, match_batch, pair_cost
from codetr_lab.structures import Assignment, Candidates, Size, Target


def grouped_hungarian(
    candidates: Candidates, target: Target, *, image_size: Size, groups: int = 11, classification: float = 2.0,
    l1: float = 5.0, giou: float = 2.0,
) -> Assignment:  # fmt: skip
    """Group-DETR: the candidates fall into `groups` equal groups, one after the other; each is matched on its own.

    Every object gets one positive per group. Costs as in `hungarian`; an object's threshold is what its dearest match
    cost.

    Args:
        candidates: M predictions with class logits `scores` (M,C), M a multiple of `groups`.
        groups: 11 in the paper; Co-DETR's supplement compares with 3.

    Raises:
        ValueError: no class logits, or M is no multiple of `groups`.
    """
    if groups < 1 or len(candidates) % groups:
        raise ValueError(f"grouped_hungarian: {len(candidates)} candidates do not fall into {groups} equal groups")
    return _match(candidates, target, image_size, groups, 1, classification, l1, giou)


def repeated_hungarian(
    candidates: Candidates, target: Target, *, image_size: Size, repeats: int = 6, classification: float = 2.0,
    l1: float = 5.0, giou: float = 2.0,
) -> Assignment:  # fmt: skip
    """H-DETR's one-to-many branch: every object is there `repeats` times, and all of them are matched one-to-one.

    Every object gets up to `repeats` positives, fewer where candidates run out. Costs as in `hungarian`; an object's
    threshold is what its dearest match cost.

    Args:
        candidates: M predictions with class logits `scores` (M,C).
        repeats: 6 in the paper.

    Raises:
        ValueError: no class logits, or `repeats` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeated_hungarian: repeats must be at least 1, got {repeats}")
    return _match(candidates, target, image_size, 1, repeats, classification, l1, giou)


def _match(
    candidates: Candidates, target: Target, image_size: Size, groups: int, repeats: int, classification: float,
    l1: float, giou: float,
) -> Assignment:  # fmt: skip
    if candidates.scores is None or candidates.scores.ndim != 2:
        raise ValueError("Hungarian matching needs candidates with class logits: scores of shape (M, C)")
    weights = {"classification": classification, "l1": l1, "giou": giou}
    whwh = candidates.boxes.new_tensor([image_size[1], image_size[0]] * 2)
    normalised = box_ops.xyxy_to_cxcywh(candidates.boxes / whwh)
    # Groups stand where `match_batch` expects decoder layers: both are matched one by one.
    gt_index = match_batch(
        candidates.scores.unflatten(0, (groups, 1, -1)), normalised.unflatten(0, (groups, 1, -1)),
        target["labels"][None], target["boxes"][None], [len(target["labels"])], whwh[None], repeats=repeats, **weights,
    ).flatten()  # fmt: skip
    found = hungarian_assignment(candidates, target, gt_index, {"image_size": image_size, **weights})
    return as_repeated(found, repeats) if repeats > 1 else _named(found, "Group-DETR's matching", groups=groups)


def as_repeated(found: Assignment, repeats: int) -> Assignment:
    """The record of a match in which every object was there `repeats` times."""
    return _named(found, "H-DETR's matching", repeats=repeats)


def _named(found: Assignment, rule: str, **settings: int) -> Assignment:
    return replace(found, rule=rule, parameters=found.parameters | settings, explainer=_explain)


def _explain(assignment: Assignment, index: int) -> str:
    target, settings = assignment.target, assignment.parameters
    if not len(target["labels"]):
        return f"Query {index} is negative: the image has no objects."
    groups, repeats = settings.get("groups", 1), settings.get("repeats", 1)
    size = len(assignment.candidates) // groups
    group = f" of group {index // size + 1} of {groups}" if "groups" in settings else ""
    way = f"every object {repeats} queries" if "repeats" in settings else "every object one query of the group"
    total = pair_cost(assignment, torch.tensor([index], device=assignment.gt_index.device))[0]
    matched = int(assignment.gt_index[index])
    if matched >= 0:
        return (
            f"Query {index}{group} is positive: the cheapest way to give {way} gives it object {matched} at cost "
            f"{float(total[matched]):.2f}."
        )
    nearest = int(total.argmin())
    rivals = assignment.gt_index.unflatten(0, (groups, size))[index // size] == nearest
    taken = ", ".join(str(i + index // size * size) for i in rivals.nonzero()[:, 0].tolist())
    owner = f"queries {taken} have it" if taken else "no query has it"
    return (
        f"Query {index}{group} is negative: its cheapest object is {nearest} at cost {float(total[nearest]):.2f}, but "
        f"in the cheapest way to give {way}, {owner}."
    )
