"""How much heads disagree about where to look: Eq. 9 and 10 (Fig. 6, supplement's Fig. 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from codetr_lab.analysis.discriminability import AnalysisError, valid_mean_resize
from codetr_lab.structures import Trace

EPS = 1e-3
"""The share of the uniform distribution in a map before logarithms are taken (the paper does not say how much)."""


def class_activation_maps(trace: Trace) -> dict[str, Tensor]:
    """C(H_i(I)): Grad-CAM (Selvaraju et al., 2017) on the memory, for each head's class logits at its positives.

    Per head, the score is the sum of its positives' logits of their object's class: of the last decoder layer's
    matched queries for `original`, of the auxiliary heads' own positives. Per memory level, channels are weighted by
    the score's mean gradient over the valid cells, summed, and cut at zero; levels are resized to the image and summed.

    Args:
        trace: of `model.trace(batch, targets, grad=True)`.

    Returns:
        By head, `original` first: (B,1,H,W), each image's map summing to one; all zeros where a head has no positive
        or its map vanishes.

    Raises:
        AnalysisError: the trace has no targets or no graph, or a head keeps no logits.
    """
    if trace.targets is None or not all(level.requires_grad for level in trace.memory):
        raise AnalysisError("Grad-CAM needs targets and the graph; call model.trace(batch, targets, grad=True)")
    scores = _class_scores(trace)
    maps = {}
    for number, (name, score) in enumerate(scores.items()):
        gradients = torch.autograd.grad(score, trace.memory, retain_graph=number + 1 < len(scores), allow_unused=True)
        maps[name] = normalise(grad_cam(trace.memory, gradients, trace.batch.pad_mask))
    return maps


def _class_scores(trace: Trace) -> dict[str, Tensor]:
    """By head, the sum over the batch of the class logits at its positives."""
    scores = {}
    group = trace.groups.get("original")
    if group is not None:
        logits = group.logits[-1]
        picked = [
            logits[image, a.positive.nonzero()[:, 0], a.labels[a.positive]].sum()
            for image, a in enumerate(group.assignments[-1])
        ]
        scores["original"] = torch.stack(picked).sum()
    for name, head in trace.heads.items():
        if not head.positive_logits:
            raise AnalysisError(f"head {name!r} keeps no class logits, so there is nothing to differentiate")
        scores[name] = torch.cat(head.positive_logits).sum()
    return {name: score for name, score in scores.items() if score.requires_grad}


def grad_cam(levels: Sequence[Tensor], gradients: Sequence[Tensor | None], pad_mask: Tensor) -> Tensor:
    """(B,1,H,W): per level ReLU(sum over channels of mean gradient x feature), resized bilinearly and summed.

    Args:
        levels: (B,D,h,w) features. `gradients`: of the same shapes; None where the score does not depend on a level.
        pad_mask: (B,H,W) bool; padded cells and pixels have no part.
    """
    total = torch.zeros(len(pad_mask), 1, *pad_mask.shape[1:], device=pad_mask.device)
    for features, gradient in zip(levels, gradients, strict=True):
        if gradient is None:
            continue
        valid = F.interpolate((~pad_mask[:, None]).float(), size=features.shape[-2:], mode="nearest")
        weight = (gradient * valid).sum((2, 3), keepdim=True) / valid.sum((2, 3), keepdim=True).clamp(min=1)
        total += valid_mean_resize((weight * features.detach()).sum(1, keepdim=True).relu(), pad_mask)
    return total


def normalise(maps: Tensor) -> Tensor:
    """(B,1,H,W) non-negative maps to distributions over their pixels; a map of zeros stays zero."""
    total = maps.sum((1, 2, 3), keepdim=True)
    return torch.where(total > 0, maps / total.clamp(min=torch.finfo(maps.dtype).tiny), 0)


def head_distance(a: Tensor, b: Tensor, eps: float = EPS) -> Tensor:
    """KL(a, b) = sum a log(a / b) of Eq. 9, per image; it is not symmetric.

    Args:
        a, b: (B,1,H,W) or (B,...) non-negative maps; each is mixed with a little of the uniform distribution (`eps`)
            and normalised to sum one, so that a zero in `b` costs much, but not infinitely much.

    Returns:
        (B,) in nats, at least 0; NaN where one of the maps is all zero.

    Raises:
        AnalysisError: shapes differ.
    """
    if a.shape != b.shape:
        raise AnalysisError(f"maps of different shapes have no distance: {tuple(a.shape)} and {tuple(b.shape)}")
    first, second = a.flatten(1).double(), b.flatten(1).double()
    empty = (first.sum(1) <= 0) | (second.sum(1) <= 0)
    p, q = (_smooth(x, eps) for x in (first, second))
    return (p * (p.log() - q.log())).sum(1).clamp(min=0).masked_fill(empty, float("nan"))


def _smooth(x: Tensor, eps: float) -> Tensor:
    share = x / x.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    return (share + eps / x.shape[1]) / (1 + eps)


class RelationMatrix:
    """S_ij of Eq. 9 over a data set, in constant memory: mean KL divergence between the maps of heads i and j."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._sum: dict[tuple[str, str], float] = {}
        self._count: dict[tuple[str, str], int] = {}

    def add(self, maps: Mapping[str, Tensor]) -> None:
        """Add the maps of one batch (`class_activation_maps`). Images where one of a pair has no map are left out."""
        for name in maps:
            if name not in self.names:
                self.names.append(name)
        for i, a in maps.items():
            for j, b in maps.items():
                if i != j:
                    distance = head_distance(a, b)
                    known = distance[~distance.isnan()]
                    self._sum[i, j] = self._sum.get((i, j), 0.0) + float(known.sum())
                    self._count[i, j] = self._count.get((i, j), 0) + len(known)

    def matrix(self) -> dict[str, dict[str, float]]:
        """`[i][j]` = S_ij; 0 for i = j, NaN where no image had both maps."""
        return {
            i: {
                j: 0.0 if i == j else self._sum[i, j] / count if (count := self._count[i, j]) else float("nan")
                for j in self.names
            }
            for i in self.names
        }  # fmt: skip


def average_distances(matrix: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """S_i of Eq. 10 by auxiliary head: the mean of S_ij and S_ji over the other auxiliary heads.

    With one auxiliary head the other one is the DETR head (`original`), as in Fig. 6.

    Raises:
        AnalysisError: fewer than two heads.
    """
    auxiliary = [name for name in matrix if name != "original"]
    heads = auxiliary if len(auxiliary) > 1 else list(matrix)
    if len(heads) < 2:
        raise AnalysisError("a distance needs two heads; the model has no auxiliary head")
    return {
        i: sum(matrix[i][j] + matrix[j][i] for j in heads if j != i) / (2 * (len(heads) - 1))
        for i in auxiliary
    }  # fmt: skip
