"""What if a rule's parameters were others? The same candidates and objects, assigned again; no model is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from codetr_lab import assign
from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.heads.faster_rcnn import sample
from codetr_lab.structures import Assignment, Trace

RPN = ".rpn"
"""What is added to a head's name for the assignment of its region proposal network."""


@dataclass(frozen=True)
class Knob:
    """A parameter of a rule that a person may turn: its name, what it is called, its range and step."""

    name: str
    title: str
    least: float
    most: float
    step: float


_TOP_K = Knob("top_k", "top k per level", 1, 25, 1)
_POSITIVE = Knob("positive", "positive from IoU", 0.1, 0.95, 0.05)
RULES: dict[str, tuple[Knob, ...]] = {
    "hungarian": (
        Knob("classification", "cost of the class", 0, 10, 0.5), Knob("l1", "cost of the L1 distance", 0, 20, 0.5),
        Knob("giou", "cost of the GIoU", 0, 10, 0.5),
    ),
    "atss": (_TOP_K,),
    "paa": (_TOP_K, Knob("min_iou", "candidates from IoU", 0, 0.5, 0.05)),
    "fcos": (
        Knob("radius", "centre radius in strides", 0.5, 5, 0.25), Knob("reach", "longest side in strides", 2, 16, 1),
    ),
    "max_iou": (
        _POSITIVE, Knob("negative", "negative below IoU", 0.05, 0.9, 0.05),
        Knob("min_positive", "an object's best from IoU", 0, 0.9, 0.05),
    ),
}  # fmt: skip
"""The knobs of every function of `codetr_lab.assign` that has some."""


def rule_of(assignment: Assignment) -> str | None:
    """The function of `codetr_lab.assign` that made an assignment, known by its parameters; None for others."""
    own = set(assignment.parameters) - {"image_size", "low_quality"}
    for function, knobs in RULES.items():
        if own == {knob.name for knob in knobs} and hasattr(assign, function):
            return function
    return None


def knobs(assignment: Assignment) -> tuple[Knob, ...]:
    """What can be turned in an assignment's rule; empty if nothing can.

    Where positive and negative meet at one IoU (the RoI head), that one is turned; without low-quality matches there
    is no least IoU for them.
    """
    function, own = rule_of(assignment), assignment.parameters
    if function is None:
        return ()
    if function != "max_iou":
        return RULES[function]
    left_out = set() if own["low_quality"] else {"min_positive"}
    if own["positive"] == own["negative"]:
        left_out.add("negative")
    return tuple(knob for knob in RULES[function] if knob.name not in left_out)


def assign_again(
    assignment: Assignment, values: Mapping[str, float], sampling: tuple[int, float] | None = None
) -> Assignment:
    """The same candidates and objects under other parameters; the assignment itself where nothing differs.

    Args:
        values: by the names of `knobs`; others are passed over.
        sampling: how many candidates the head draws afterwards and which share of them may be positive, if it does
            (`sampling_of`); drawn with seed 0.
    """
    function, own = rule_of(assignment), assignment.parameters
    turned = {knob.name: _like(own[knob.name], values.get(knob.name, own[knob.name])) for knob in knobs(assignment)}
    if function is None or all(own[name] == value for name, value in turned.items()):
        return assignment
    rule: dict[str, Any] = own | turned
    if function == "max_iou":
        if own["positive"] == own["negative"]:
            rule["negative"] = rule["positive"]
        rule |= {"negative": min(rule["negative"], rule["positive"]), "name": assignment.rule}
    made: Assignment = getattr(assign, function)(assignment.candidates, assignment.target, **rule)
    if sampling is None:
        return made
    return sample(made, *sampling, torch.Generator().manual_seed(0))[1]


def _like(example: Any, value: float) -> float:
    """A slider gives 9.0 where the rule counts 9."""
    return int(value) if isinstance(example, int) and not isinstance(example, bool) else float(value)


def sampling_of(config: CoDETRConfig, name: str) -> tuple[int, float] | None:
    """How a head samples after its assignment: number of candidates, largest share of positives. None if it does not.

    Args:
        name: the head's name in the model, with `.rpn` for its region proposal network.
    """
    if not name.startswith(("faster_rcnn", "mask_rcnn")):
        return None
    settings = config.mask_rcnn if name.startswith("mask_rcnn") else config.faster_rcnn
    if name.endswith(RPN):
        return settings.rpn_samples, settings.rpn_positive_fraction
    return settings.roi_samples, settings.roi_positive_fraction


def trace_assignments(trace: Trace, image: int = 0) -> dict[str, Assignment]:
    """Every assignment of one image by name: `original` (the last decoder layer's), each head, each head's `.rpn`."""
    found = {}
    original = trace.groups.get("original")
    if original is not None and original.assignments:
        found["original"] = original.assignments[-1][image]
    for name, head in trace.heads.items():
        found |= {f"{name}.{stage}": assignments[image] for stage, assignments in head.stages.items()}
        if head.assignments:
            found[name] = head.assignments[image]
    return found
