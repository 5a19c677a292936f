"""Instability of Hungarian matching (IS; Li et al., DN-DETR, Sec. 3.2), which Fig. 5 compares."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from codetr_lab.analysis.discriminability import AnalysisError
from codetr_lab.analysis.positives import PositivesCounter
from codetr_lab.structures import Trace

if TYPE_CHECKING:
    from codetr_lab.models.codetr import CoDETR
    from codetr_lab.structures import ImageBatch, Target

Matches = Mapping[int, int]
"""One image's matching: query to object. Who is missing is matched to nothing."""


def matches(trace: Trace, layer: int = -1) -> list[dict[int, int]]:
    """Per image, which original query one decoder layer matched to which object.

    Learned queries are known by their index. Two-stage queries are not the same from one epoch to the next, so they
    are known by the encoder's token that they were made of; how stable those are is another question than DN-DETR's.

    Raises:
        AnalysisError: the trace has no targets, or no decoder.
    """
    group = trace.groups.get("original")
    if group is None or not group.assignments:
        raise AnalysisError("nothing was matched: instability needs a decoder, and model.trace(batch, targets)")
    found = []
    for image, assignment in enumerate(group.assignments[layer]):
        queries = assignment.positive.nonzero()[:, 0]
        keys = queries if trace.proposals is None else trace.proposals.index[image, queries]
        found.append(dict(zip(keys.tolist(), assignment.gt_index[queries].tolist(), strict=True)))
    return found


def instability(before: Sequence[Matches], after: Sequence[Matches]) -> float:
    """IS between two epochs: queries whose matched object changed, "no object" counting as one; mean over images.

    `sum_n 1(V_n != V'_n)` of DN-DETR. Every object can change two queries, so that the most possible is twice the mean
    number of objects (less where queries are few).

    Args:
        before, after: the same images' matchings, in the same order (`matches`).

    Raises:
        AnalysisError: no image, or different numbers of images.
    """
    if len(before) != len(after) or not before:
        raise AnalysisError(f"instability compares the same images, got {len(before)} and {len(after)}")
    changed = sum(
        was.get(query) != now.get(query)
        for was, now in zip(before, after, strict=True)
        for query in {*was, *now}
    )  # fmt: skip
    return changed / len(before)


@dataclass(frozen=True)
class Look:
    """The matching of all probe images at one step of training.

    Attributes:
        step: optimizer steps so far.
        matches: per image, as `matches` gives them.
        positives: used positives per object by head (`PositivesCounter.result`).
    """

    step: int
    matches: list[dict[int, int]]
    positives: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line."""
        pairs = [sorted(image.items()) for image in self.matches]
        return json.dumps({"step": self.step, "matches": pairs, "positives": self.positives})

    @classmethod
    def from_json(cls, line: str) -> Look:
        """What `to_json` wrote."""
        content = json.loads(line)
        return cls(content["step"], [dict(image) for image in content["matches"]], content["positives"])


class InstabilityRecorder:
    """Looks at a model's matching on a fixed probe set, again and again while it trains.

    Give it to `train(observers=[recorder])`. The probe images are not augmented and always the same, so that only the
    model changes. Looks are kept in a file and survive a resumed run. A look costs one `model.trace` of the probe set,
    about four training steps for sixteen images.

    Args:
        probe: batches with their targets.
        path: the file, one look a line; None keeps them in memory alone.
        every: steps between looks; best an epoch.
    """

    def __init__(
        self, probe: Iterable[tuple[ImageBatch, list[Target]]], path: str | Path | None = None, every: int = 1000
    ) -> None:
        if every < 1:
            raise AnalysisError(f"every must be at least 1 step, got {every}")
        self.probe, self.every = list(probe), every
        self.path = None if path is None else Path(path)
        self.looks: list[Look] = []
        self.keyed_by: Literal["query", "token"] | None = None
        if self.path is not None and self.path.exists():
            self.looks = read_looks(self.path)

    def __call__(self, model: CoDETR, step: int) -> None:
        """Look, if it is time to and this step was not looked at before. Looks at later steps are dropped."""
        if step % self.every:
            return
        self.looks = [look for look in self.looks if look.step < step]
        counter, found = PositivesCounter(), list[dict[int, int]]()
        for batch, targets in self.probe:
            device = next(model.parameters()).device
            trace = model.trace(batch.to(device), [{k: v.to(device) for k, v in t.items()} for t in targets])
            found += matches(trace)
            self.keyed_by = "query" if trace.proposals is None else "token"
            counter.add(trace)
        self.looks.append(Look(step, found, counter.result()))
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(look.to_json() + "\n" for look in self.looks))

    def curve(self) -> tuple[list[int], list[float]]:
        """The steps of all looks but the first, and the instability since the look before."""
        return curve(self.looks)

    def most_possible(self) -> float:
        """Twice the mean number of matched objects: what `instability` gives if every query changes."""
        return 2 * sum(map(len, self.looks[-1].matches)) / len(self.looks[-1].matches) if self.looks else float("nan")


def curve(looks: Sequence[Look]) -> tuple[list[int], list[float]]:
    """The steps of all looks but the first, and the instability since the look before."""
    pairs = list(itertools.pairwise(looks))
    return [now.step for _, now in pairs], [instability(was.matches, now.matches) for was, now in pairs]


def per_image(looks: Sequence[Look]) -> list[float]:
    """Every probe image's own instability: the mean over successive looks; empty with fewer than two."""
    pairs = list(itertools.pairwise(look.matches for look in looks))
    images = range(len(looks[-1].matches)) if pairs else range(0)
    return [sum(instability([was[i]], [now[i]]) for was, now in pairs) / len(pairs) for i in images]


def read_looks(path: str | Path) -> list[Look]:
    """What an `InstabilityRecorder` has kept in its file; a line that is not whole is left out."""
    return [Look.from_json(line) for line in Path(path).read_text().splitlines() if line.endswith("}")]
