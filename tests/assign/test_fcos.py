"""FCOS: by hand, against torchvision, and its explanations. What all rules promise is in test_rules.py."""

from __future__ import annotations

import pytest
import torch
from scene_case import grid, objects, with_valid
from torchvision.models.detection.fcos import FCOS

from codetr_lab.assign import fcos
from codetr_lab.structures import NEGATIVE, Candidates

POINTS = torch.tensor([[20.0, 20], [28, 20], [36, 20], [12, 20], [44, 20]])


def points(where: torch.Tensor, stride: float = 8) -> Candidates:
    half = stride * 1.5
    return Candidates.of_boxes(torch.cat([where - half, where + half], 1), 0, stride)


def test_points_near_the_centre_are_positive() -> None:
    target = {"boxes": torch.tensor([[8.0, 10, 48, 30]]), "labels": torch.tensor([4])}
    found = fcos(points(POINTS), target)
    # the centre is (28, 20); 1.5 strides are 12 pixels
    assert found.gt_index.tolist() == [0, 0, 0, NEGATIVE, NEGATIVE]
    assert found.labels.tolist() == [4, 4, 4, -1, -1]
    assert found.threshold.tolist() == [1.5] and found.used.all()
    assert (found.quality.higher_is_better, found.rule) == (False, "FCOS")
    assert fcos(points(POINTS), target, radius=2.5).gt_index.tolist() == [0, 0, 0, 0, 0]
    assert fcos(points(POINTS), target, radius=0.9).gt_index.tolist() == [NEGATIVE, 0, NEGATIVE, NEGATIVE, NEGATIVE]


def test_a_point_outside_is_negative_however_near_the_centre() -> None:
    target = {"boxes": torch.tensor([[21.0, 10, 35, 30]]), "labels": torch.tensor([0])}
    assert fcos(points(POINTS), target).gt_index.tolist() == [NEGATIVE, 0, NEGATIVE, NEGATIVE, NEGATIVE]


def test_the_smallest_object_gets_a_contested_point() -> None:
    boxes = torch.tensor([[8.0, 0, 48, 40], [18, 10, 38, 30], [18, 10, 38, 30]])
    target = {"boxes": boxes, "labels": torch.arange(3)}
    found = fcos(points(POINTS), target)
    assert found.gt_index.tolist() == [1, 1, 1, NEGATIVE, NEGATIVE]
    assert "also wanted by object 0, object 2, which is no smaller" in found.explain(1)


def test_levels_take_objects_of_their_size() -> None:
    candidates = Candidates(
        torch.tensor([[0.0, 0, 2, 2]]).repeat(3, 1) + 49,
        torch.arange(3),
        torch.tensor([8.0, 16, 32]),
        torch.ones(3).bool(),
    )
    for side, level in ((40, 0), (63, 0), (65, 1), (127, 1), (129, 2), (900, 2)):
        box = torch.tensor([[50.0 - side, 50 - side, 50 + side, 50 + side]])
        found = fcos(candidates, {"boxes": box, "labels": torch.tensor([0])})
        assert found.positive.nonzero()[:, 0].tolist() == [level], side
    box = torch.tensor([[20.0, 20, 80, 80]])
    assert fcos(candidates, {"boxes": box, "labels": torch.tensor([0])}, reach=2).gt_index.tolist() == [-1, 0, -1]


@pytest.mark.parametrize("seed", range(6))
def test_against_torchvision(seed: int) -> None:
    candidates, target = grid((8, 16, 32, 64), scale=1, offset=0), objects(seed, 7)
    model = FCOS.__new__(FCOS)
    torch.nn.Module.__init__(model)
    model.center_sampling_radius = 1.5
    matched = {}

    def keep(targets, head_outputs, anchors, matched_idxs):  # what torchvision's loss would be given
        matched["index"] = matched_idxs[0]
        return {}

    model.head = type("Head", (), {"compute_loss": staticmethod(keep)})()
    model.compute_loss([target], {}, [candidates.boxes], torch.bincount(candidates.level).tolist())
    assert fcos(candidates, target).gt_index.tolist() == matched["index"].tolist()
    assert (matched["index"] >= 0).sum() > 10


def test_padding_and_crowds_take_no_part() -> None:
    candidates, target = grid(), objects(1, 4)
    half = with_valid(candidates, candidates.boxes[:, 0] < 60)
    found = fcos(half, target | {"iscrowd": torch.tensor([0, 1, 0, 0])})
    assert not (found.positive & ~half.valid).any() and (found.used == half.valid).all()
    assert (found.gt_index != 1).all() and found.threshold.tolist() == [1.5, float("-inf"), 1.5, 1.5]


def test_settings_must_be_positive() -> None:
    for wrong in ({"radius": 0}, {"reach": -1}):
        with pytest.raises(ValueError, match="radius and reach must be positive"):
            fcos(grid(), objects(0, 1), **wrong)


def test_explanations_tell_the_rule_that_failed() -> None:
    target = {"boxes": torch.tensor([[8.0, 10, 48, 30]]), "labels": torch.tensor([4])}
    found = fcos(points(POINTS), target)
    assert found.explain(0) == (
        "Candidate 0 is positive for object 0: its point lies inside, 1.00 of 1.5 strides from the object's centre, "
        "and the farthest side is 28 pixels away (level 0 takes 0 to inf)."
    )
    assert found.explain(3) == (
        "Candidate 3 is background. The object that came nearest to it is 0, but it is 2.00 strides from the centre, "
        "1.5 or more."
    )
    found = fcos(grid(), objects(3, 2))
    words = {"its point lies outside": 0, "strides from the centre, 1.5 or more": 0, "pixels away (level": 0}
    for index in found.negative.nonzero()[:, 0].tolist():
        for word in words:
            words[word] += word in found.explain(index)
    assert min(words.values()) > 0
    assert "no objects" in fcos(grid(), objects(0, 0)).explain(3)
