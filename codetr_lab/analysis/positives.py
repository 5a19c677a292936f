"""How many positives every object gets: one from Hungarian matching, many from the auxiliary heads (Table 1)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from codetr_lab import boxes as box_ops
from codetr_lab.analysis.discriminability import AnalysisError
from codetr_lab.structures import Assignment, Trace

SIZES = ("small", "medium", "large")


def _assignments(trace: Trace) -> Iterator[tuple[str, list[Assignment]]]:
    """By name: the last layer of each matched group, then every auxiliary head's assignment that feeds queries."""
    for name, group in trace.groups.items():
        if name not in trace.heads and name != "denoising" and group.assignments:
            yield name, group.assignments[-1]
    for name, head in trace.heads.items():
        if head.assignments:
            yield name, head.assignments


class PositivesCounter:
    """Mean used positives per object over many traces, in constant memory.

    `result` is over all objects, `by_size` apart for COCO's small, medium and large ones (box area in the file's own
    pixels below 32^2, up to 96^2, above). Used positives are those that survived sampling. Faster R-CNN's are the RoI
    stage's, with the objects' own boxes that its sampler puts among the proposals. Crowd regions are no objects here:
    no rule matches them.
    """

    def __init__(self) -> None:
        self.images = 0
        self._positives: dict[str, Tensor] = {}
        self._objects: dict[str, Tensor] = {}

    def add(self, trace: Trace) -> None:
        """Add every image of a trace.

        Raises:
            AnalysisError: the trace has no targets, so nothing was assigned.
        """
        if trace.targets is None:
            raise AnalysisError("the trace has no targets, so nothing was assigned; call model.trace(batch, targets)")
        self.images += len(trace.targets)
        for name, assignments in _assignments(trace):
            for assignment, scale in zip(assignments, trace.batch.scales, strict=True):
                self.add_assignment(name, assignment, scale)

    def add_assignment(self, name: str, assignment: Assignment, scale: tuple[float, float] = (1.0, 1.0)) -> None:
        """Add one image's assignment; `scale` (x, y) is the image's size over that of its file."""
        target = assignment.target
        area = box_ops.area(target["boxes"]) / (scale[0] * scale[1])
        size = torch.bucketize(area, area.new_tensor([32.0**2, 96.0**2]), right=True)
        crowd = target.get("iscrowd", torch.zeros_like(size)).bool()
        counts = torch.stack([(~crowd).long(), assignment.count_per_object()])
        objects, positives = (torch.bincount(size, c, minlength=3).long().cpu() for c in counts)
        self._objects[name] = self._objects.get(name, 0) + objects
        self._positives[name] = self._positives.get(name, 0) + positives

    def objects(self) -> dict[str, int]:
        """How many objects there were of each size."""
        counts = next(iter(self._objects.values()), torch.zeros(3)).tolist()
        return dict(zip(SIZES, map(int, counts), strict=True))

    def result(self) -> dict[str, float]:
        """Positives over objects by name: matched groups, then heads; NaN while there is no object."""
        return {name: _ratio(self._positives[name].sum(), n.sum()) for name, n in self._objects.items()}

    def by_size(self) -> dict[str, dict[str, float]]:
        """The same by name and size, `small`, `medium` and `large`; NaN where there is no such object."""
        return {
            name: {size: _ratio(self._positives[name][i], n[i]) for i, size in enumerate(SIZES)}
            for name, n in self._objects.items()
        }


def _ratio(positives: Tensor, objects: Tensor) -> float:
    return int(positives) / int(objects) if objects else float("nan")


def positives_per_object(trace: Trace) -> dict[str, float]:
    """Mean used positives per object in one trace with targets: of each matched group's last layer and each head.

    Raises:
        AnalysisError: the trace has no targets.
    """
    counter = PositivesCounter()
    counter.add(trace)
    return counter.result()
