"""What every label assignment needs to know about an image's objects."""

from __future__ import annotations

import torch
from torch import Tensor

from codetr_lab.structures import NEGATIVE, Assignment, Target

PAIRS_AT_ONCE = 2_000_000
"""Objects are taken in groups of about this many (object, candidate) pairs, which bounds the memory."""


def matchable(target: Target) -> Tensor:
    """(K,) long: the objects that may be matched, that is, all but crowds, in ascending order."""
    count = len(target["boxes"])
    if "iscrowd" not in target:
        return torch.arange(count, device=target["boxes"].device)
    return (target["iscrowd"] == 0).nonzero()[:, 0]


def sampled_out(assignment: Assignment, index: int) -> str:
    """A closing sentence of an explanation for a candidate that the sampler left out, else nothing."""
    if assignment.used[index] or assignment.ignored[index]:
        return ""
    return " The sampler did not draw it, so it takes no part in the loss."


def overlapping(boxes: Tensor, gt: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of (M,4) boxes and (N,4) objects that overlap: (P,) long indices of both, object after object."""
    step = max(1, PAIRS_AT_ONCE // max(1, len(boxes)))
    left, top, right, bottom = boxes.unbind(1)
    rows, owners = [], []
    for start in range(0, max(1, len(gt)), step):
        some = gt[start : start + step]
        # x first: few pairs are left for y
        owner, row = ((left < some[:, 2:3]) & (right > some[:, 0:1])).nonzero(as_tuple=True)
        keep = (top[row] < some[owner, 3]) & (bottom[row] > some[owner, 1])
        rows.append(row[keep])
        owners.append(owner[keep] + start)
    return torch.cat(rows), torch.cat(owners)


def winners(row: Tensor, owner: Tensor, value: Tensor, candidates: int) -> Tensor:
    """Who gets the candidates that objects want: the highest value, among equals the first object.

    Args:
        row: (P,) long, the wanted candidates. `owner`: (P,) long, who wants them. `value`: (P,).
        candidates: how many there are, M.

    Returns:
        (M,) long: the owner, or `NEGATIVE` where nobody wants a candidate.
    """
    best = value.new_full((candidates,), -torch.inf).scatter_reduce_(0, row, value, "amax")
    wins = value == best[row]
    nobody = torch.iinfo(torch.long).max
    first = owner.new_full((candidates,), nobody).scatter_reduce_(0, row[wins], owner[wins], "amin")
    return first.masked_fill_(first == nobody, NEGATIVE)
