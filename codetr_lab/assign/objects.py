"""What every label assignment needs to know about an image's objects."""

from __future__ import annotations

import torch
from torch import Tensor

from codetr_lab.structures import Assignment, Target

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
