"""How many positives every object gets: one from Hungarian matching, many from the auxiliary heads (Table 1)."""

from __future__ import annotations

from collections.abc import Iterator

from codetr_lab.analysis.discriminability import AnalysisError
from codetr_lab.structures import Assignment, Trace


def _assignments(trace: Trace) -> Iterator[tuple[str, list[Assignment]]]:
    """By name: the original queries' last layer, then every auxiliary head's assignment that feeds queries."""
    original = trace.groups.get("original")
    if original is not None and original.assignments:
        yield "original", original.assignments[-1]
    for name, head in trace.heads.items():
        if head.assignments:
            yield name, head.assignments


class PositivesCounter:
    """Mean used positives per object over many traces, in constant memory.

    Used positives are those that survived sampling. Faster R-CNN's are the RoI stage's, with the objects' own boxes
    that its sampler puts among the proposals. Crowd regions are no objects here: no rule matches them.
    """

    def __init__(self) -> None:
        self.images = 0
        self._positives: dict[str, int] = {}
        self._objects: dict[str, int] = {}

    def add(self, trace: Trace) -> None:
        """Add every image of a trace.

        Raises:
            AnalysisError: the trace has no targets, so nothing was assigned.
        """
        if trace.targets is None:
            raise AnalysisError("the trace has no targets, so nothing was assigned; call model.trace(batch, targets)")
        self.images += len(trace.targets)
        for name, assignments in _assignments(trace):
            for assignment in assignments:
                crowd = assignment.target.get("iscrowd")
                objects = len(assignment.target["boxes"]) - (0 if crowd is None else int(crowd.bool().sum()))
                self._objects[name] = self._objects.get(name, 0) + objects
                self._positives[name] = self._positives.get(name, 0) + int(assignment.count_per_object().sum())

    def result(self) -> dict[str, float]:
        """Positives over objects by name: `original`, then each head; NaN while there is no object."""
        return {
            name: self._positives[name] / objects if objects else float("nan")
            for name, objects in self._objects.items()
        }


def positives_per_object(trace: Trace) -> dict[str, float]:
    """Mean used positives per object in one trace with targets, by name: `original` (last decoder layer) and each head.

    Raises:
        AnalysisError: the trace has no targets.
    """
    counter = PositivesCounter()
    counter.add(trace)
    return counter.result()
