"""Cells on which heads disagree: positive in one, background or another object in the next (Sec. 4.4)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from codetr_lab.analysis.discriminability import AnalysisError
from codetr_lab.structures import Trace


def head_claims(trace: Trace, image: int = 0) -> dict[str, Tensor]:
    """By auxiliary head, which cell of the pyramid holds a positive of which object.

    A head that works on proposals has no cells of its own; its RPN's anchors stand for it. Sampling is left aside.

    Returns:
        (S,N) bool each; S cells of all pyramid levels, finest first, row by row; N objects.

    Raises:
        AnalysisError: the trace has no targets, or no auxiliary head.
    """
    if trace.targets is None or not trace.heads:
        raise AnalysisError("claims need auxiliary heads and targets; call model.trace(batch, targets)")
    cells = sum(level.shape[2] * level.shape[3] for level in trace.pyramid)
    found = {}
    for name, head in trace.heads.items():
        assignment = head.stages.get("rpn", head.assignments)[image]
        objects = torch.arange(len(assignment.target["boxes"]), device=assignment.gt_index.device)
        per_cell = assignment.gt_index.unflatten(0, (cells, -1))  # anchors of one cell lie side by side
        found[name] = (per_cell[..., None] == objects).any(1)
    return found


def disputed(claims: Iterable[Tensor]) -> Tensor:
    """(S,) bool: cells that some heads claim for an object and others do not.

    Args:
        claims: (S,N) bool of every head.
    """
    heads = torch.stack(list(claims))
    return (heads.any(0) != heads.all(0)).any(-1)
