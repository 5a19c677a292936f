"""Turned knobs give what the library's rule gives for the same candidates."""

from __future__ import annotations

import pytest
import torch

import codetr_lab as lab
from codetr_lab import assign
from codetr_lab.analysis.rules import RULES, assign_again, knobs, rule_of, sampling_of, trace_assignments
from codetr_lab.structures import Assignment, ImageBatch
from codetr_lab.viz import head_color, head_title


@pytest.fixture(scope="module")
def model() -> lab.CoDETR:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lab.create_model("lab_co_k2").eval()


@pytest.fixture(scope="module")
def assignments(model: lab.CoDETR) -> dict[str, Assignment]:
    target = {"boxes": torch.tensor([[10.0, 12, 50, 60], [70, 30, 120, 100]]), "labels": torch.tensor([1, 3])}
    pixels = torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(0))
    return trace_assignments(model.trace(ImageBatch.from_images([pixels]), [target]))


def test_every_assignment_is_there(assignments: dict[str, Assignment]) -> None:
    assert list(assignments) == ["original", "atss", "faster_rcnn.rpn", "faster_rcnn"]
    assert [rule_of(a) for a in assignments.values()] == ["hungarian", "atss", "max_iou", "max_iou"]
    assert [len(knobs(a)) for a in assignments.values()] == [3, 1, 3, 1]
    assert (head_title("faster_rcnn.rpn"), head_color("faster_rcnn.rpn")) == (
        "Faster R-CNN: RPN", head_color("faster_rcnn"),
    )  # fmt: skip


def test_own_parameters_change_nothing(assignments: dict[str, Assignment]) -> None:
    for assignment in assignments.values():
        own = {name: float(value) for name, value in assignment.parameters.items() if isinstance(value, int | float)}
        assert assign_again(assignment, own, (8, 0.5)) is assignment
        assert assign_again(assignment, {"nothing": 3.0}) is assignment


def test_turned_knobs_are_the_rule_itself(assignments: dict[str, Assignment]) -> None:
    original = assignments["original"]
    size = original.parameters["image_size"]
    expected = assign.hungarian(original.candidates, original.target, image_size=size, classification=0, l1=20)
    assert assign_again(original, {"classification": 0, "l1": 20}).gt_index.equal(expected.gt_index)
    atss = assignments["atss"]
    turned = assign_again(atss, {"top_k": 3.0})
    assert turned.gt_index.equal(assign.atss(atss.candidates, atss.target, top_k=3).gt_index)
    assert "the 3 candidates of level" in turned.explain(0)
    rpn = assignments["faster_rcnn.rpn"]
    turned = assign_again(rpn, {"positive": 0.2})  # below `negative`, which gives way
    expected = assign.max_iou(
        rpn.candidates, rpn.target, positive=0.2, negative=0.2, low_quality=True, min_positive=0.3
    )  # fmt: skip
    assert turned.gt_index.equal(expected.gt_index) and turned.rule == rpn.rule


def test_sampling_heads_sample_again(model: lab.CoDETR, assignments: dict[str, Assignment]) -> None:
    roi = assignments["faster_rcnn"]
    sampling = sampling_of(model.config, "faster_rcnn")
    turned = assign_again(roi, {"positive": 0.3}, sampling)
    expected = assign.max_iou(roi.candidates, roi.target, positive=0.3, negative=0.3, low_quality=False)
    assert turned.gt_index.equal(expected.gt_index)
    settings = model.config.faster_rcnn
    assert int(turned.used.sum()) <= settings.roi_samples
    assert int(turned.count_per_object().sum()) <= settings.roi_samples * settings.roi_positive_fraction
    assert sampling_of(model.config, "faster_rcnn.rpn") == (settings.rpn_samples, settings.rpn_positive_fraction)
    assert sampling_of(model.config, "atss") is None


def test_every_rule_is_known_by_its_parameters() -> None:
    names = [frozenset(knob.name for knob in rule) for rule in RULES.values()]
    assert len(set(names)) == len(names)
    assert rule_of(Assignment(*[None] * 7, {"other": 1})) is None
