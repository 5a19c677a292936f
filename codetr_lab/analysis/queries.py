"""Where original and customized queries lie relative to their objects (Fig. 7)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from codetr_lab.analysis.discriminability import AnalysisError
from codetr_lab.structures import (
    DENOISING,
    EMPTY,
    NEGATIVE,
    PADDING_NEGATIVE,
    QUERY_KINDS,
    QueryGroup,
    Trace,
)

POSITIVE_NAME, NEGATIVE_NAME = "original positive", "original negative"


@dataclass(frozen=True)
class QueryPoints:
    """The queries of one sort in one image.

    Attributes:
        group: `original` or an auxiliary head's name.
        kind: `original positive`, `original negative`, or one of `QUERY_KINDS`.
        centres: (P,2) x, y in pixels of the batch, where the queries start.
        gt_index: (P,) long; the object of each, `NEGATIVE` for those without.
    """

    group: str
    kind: str
    centres: Tensor
    gt_index: Tensor

    def __len__(self) -> int:
        return len(self.centres)


def query_positions(trace: Trace, image: int = 0, layer: int = 0) -> list[QueryPoints]:
    """Fig. 7a: where the queries of one image are, sort by sort: original first, then every head's by kind.

    Original queries are positive if the last layer's Hungarian matching says so. Objects' own boxes, which Faster
    R-CNN's sampler adds, and the negatives that fill up a group are sorts of their own. Empty slots are left out.

    Args:
        layer: the decoder layer whose reference boxes are meant; the first reads where a query starts.

    Raises:
        AnalysisError: the trace has no targets, or no decoder.
    """
    if trace.targets is None or "original" not in trace.groups:
        raise AnalysisError("query positions need a decoder and targets; call model.trace(batch, targets)")
    points: list[QueryPoints] = []
    for name, group in trace.groups.items():
        gt_index = group.assignments[-1][image].gt_index
        centres = _centres(group, image, layer, trace)
        if name == "original":
            for kind, chosen in ((POSITIVE_NAME, gt_index >= 0), (NEGATIVE_NAME, gt_index < 0)):
                points.append(QueryPoints(name, kind, centres[chosen], gt_index[chosen]))
            continue
        kinds = group.kind[image]
        for kind in kinds.unique().tolist():
            if kind not in (EMPTY, DENOISING):
                chosen = kinds == kind
                points.append(QueryPoints(name, QUERY_KINDS[kind], centres[chosen], gt_index[chosen]))
    return points


def _centres(group: QueryGroup, image: int, layer: int, trace: Trace) -> Tensor:
    height, width = trace.batch.valid_sizes[image]
    reference = group.reference_boxes[layer, image, :, :2].detach()
    return reference * reference.new_tensor([width, height])


def relative(centres: Tensor, boxes: Tensor) -> Tensor:
    """(...,2) points in units of their (...,4) xyxy object: 0 is its centre, +-0.5 its sides."""
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    return (centres - middle) / (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)


def relative_positions(trace: Trace, layer: int = 0) -> dict[tuple[str, str], Tensor]:
    """Where the queries of a trace lie in units of their own object, all images together.

    Returns:
        By (group, kind) as in `QueryPoints`, (P,2) as `relative` gives them; queries without an object are left out.

    Raises:
        AnalysisError: the trace has no targets, or no decoder.
    """
    found: dict[tuple[str, str], list[Tensor]] = {}
    for image in range(len(trace.batch)):
        for points in query_positions(trace, image, layer):
            own = points.gt_index != NEGATIVE
            if own.any() and trace.targets is not None:
                boxes = trace.targets[image]["boxes"][points.gt_index[own]]
                found.setdefault((points.group, points.kind), []).append(relative(points.centres[own], boxes))
    return {sort: torch.cat(parts) for sort, parts in found.items()}


def _pairs(trace: Trace, image: int, layer: int) -> Iterator[tuple[str, str, str, float, int]]:
    """(group, kind, other, sum of distances, number of pairs) of every customized sort of one image."""
    points = query_positions(trace, image, layer)
    boxes = trace.targets[image]["boxes"] if trace.targets is not None else torch.zeros(0, 4)
    original = {p.kind: p for p in points if p.group == "original"}
    positive, negative = original[POSITIVE_NAME], original[NEGATIVE_NAME]
    for p in points:
        own = p.gt_index != NEGATIVE
        if p.group == "original" or p.kind == QUERY_KINDS[PADDING_NEGATIVE] or not own.any():
            continue
        size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)[p.gt_index[own]][:, None]  # (P,1,2)
        for other, pair in ((positive, True), (negative, False)):
            distance = ((p.centres[own][:, None] - other.centres) / size).norm(dim=-1)  # (P,O)
            if pair:  # with the original positive of the same object alone
                distance = distance[p.gt_index[own][:, None] == other.gt_index]
            yield p.group, p.kind, other.kind, float(distance.sum()), distance.numel()


class QueryDistances:
    """Fig. 7b over many traces: how far customized positives are from the original queries, in constant memory.

    Distances are between centres, x and y in units of the customized query's own object (1 = its width or height).
    Original positives count with the same object's customized queries only; original negatives belong to no object and
    count with all of their image. Objects' own boxes (`ground-truth box`) are kept apart from `positive`; negatives
    that fill up a group are left out.
    """

    def __init__(self, layer: int = 0) -> None:
        self.layer = layer
        self._sums: dict[tuple[str, str, str], tuple[float, int]] = {}

    def add(self, trace: Trace) -> None:
        """Add every image of a trace.

        Raises:
            AnalysisError: the trace has no targets, or no decoder.
        """
        for image in range(len(trace.batch)):
            for group, kind, other, total, count in _pairs(trace, image, self.layer):
                before, pairs = self._sums.get((group, kind, other), (0.0, 0))
                self._sums[group, kind, other] = (before + total, pairs + count)

    def result(self) -> dict[str, dict[str, dict[str, float]]]:
        """`[head][kind][original positive | original negative]`, mean over pairs; NaN where there was no pair."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for (group, kind, other), (total, count) in self._sums.items():
            found.setdefault(group, {}).setdefault(kind, {})[other] = total / count if count else float("nan")
        return found


def query_distances(trace: Trace, layer: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """Mean distances of one trace's customized positives to its original queries; see `QueryDistances`.

    Raises:
        AnalysisError: the trace has no targets, or no decoder.
    """
    distances = QueryDistances(layer)
    distances.add(trace)
    return distances.result()
