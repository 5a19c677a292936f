"""Label assignment by the best IoU: by hand, against torchvision, and in general."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from codetr_lab.assign import max_iou, objects
from codetr_lab.structures import IGNORED, NEGATIVE, Candidates


def scene(seed: int, objects: int, candidates: int = 80) -> tuple[Candidates, dict[str, Tensor]]:
    """Random candidates and objects on a canvas of 100 pixels; every other candidate lies close to an object."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(objects, 2, generator=generator) * 70
    gt = torch.cat([corner, corner + 5 + torch.rand(objects, 2, generator=generator) * 40], 1)
    corner = torch.rand(candidates, 2, generator=generator) * 70
    boxes = torch.cat([corner, corner + 5 + torch.rand(candidates, 2, generator=generator) * 40], 1)
    if objects:
        near = gt[torch.arange(candidates) % objects] + torch.randn(candidates, 4, generator=generator) * 3
        boxes[::2] = near[::2]
    return Candidates.of_boxes(boxes), {"boxes": gt, "labels": torch.arange(objects)}


def test_by_hand() -> None:
    target = {"boxes": torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]]), "labels": torch.tensor([4, 7])}
    boxes = torch.tensor([[0.0, 0, 10, 6], [0, 0, 10, 4.5], [0, 0, 10, 3], [20, 0, 30, 4], [50, 50, 60, 60]])
    found = max_iou(Candidates.of_boxes(boxes), target, positive=0.5, negative=0.4, low_quality=False)
    assert found.gt_index.tolist() == [0, IGNORED, NEGATIVE, IGNORED, NEGATIVE]
    assert found.labels.tolist() == [4, -1, -1, -1, -1]
    assert found.threshold.tolist() == [0.5, 0.5]
    assert found.used.tolist() == [True, False, True, False, True]
    assert (found.quality.name, found.quality.higher_is_better) == ("IoU", True)

    found = max_iou(Candidates.of_boxes(boxes), target, positive=0.5, negative=0.4, min_positive=0.3)
    assert found.gt_index.tolist() == [0, IGNORED, NEGATIVE, 1, NEGATIVE]
    assert found.threshold.tolist() == pytest.approx([0.5, 0.4])
    found = max_iou(Candidates.of_boxes(boxes), target, positive=0.5, negative=0.4, min_positive=0.45)
    assert found.gt_index[3] == IGNORED


def test_ties_of_the_best_are_all_positive_and_the_last_object_wins() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 10], [6, 0, 10, 10]])
    target = {"boxes": torch.tensor([[0.0, 0, 10, 10], [1, 0, 9, 10]]), "labels": torch.tensor([0, 1])}
    found = max_iou(Candidates.of_boxes(boxes[:1]), target, positive=0.7, negative=0.3, min_positive=0.3)
    assert found.gt_index.tolist() == [1]
    one = {key: value[:1] for key, value in target.items()}
    found = max_iou(Candidates.of_boxes(boxes), one, positive=0.7, negative=0.3, min_positive=0.3)
    assert found.gt_index.tolist() == [0, 0]


def test_no_object_is_matched_where_nothing_overlaps() -> None:
    target = {"boxes": torch.tensor([[50.0, 50, 60, 60]]), "labels": torch.tensor([0])}
    found = max_iou(Candidates.of_boxes(torch.tensor([[0.0, 0, 5, 5], [0, 0, 9, 9]])), target)
    assert found.gt_index.tolist() == [NEGATIVE, NEGATIVE]


def test_invalid_candidates_and_crowds_take_no_part() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    valid = torch.tensor([False, True, True])
    target = {
        "boxes": torch.tensor([[20.0, 20, 30, 30], [0, 0, 10, 10]]),
        "labels": torch.tensor([1, 2]),
        "iscrowd": torch.tensor([1, 0]),
    }
    found = max_iou(Candidates(boxes, torch.zeros(3).long(), torch.ones(3), valid), target)
    assert found.gt_index.tolist() == [NEGATIVE, 1, NEGATIVE]
    assert found.used.tolist() == [False, True, True]
    assert found.threshold.tolist() == [float("inf"), 0.5]
    assert found.target is target
    assert "padding" in found.explain(0)


def test_nothing_to_assign() -> None:
    candidates, target = scene(0, 0, 6)
    found = max_iou(candidates, target)
    assert found.negative.all() and found.threshold.shape == (0,)
    assert found.explain(2) == "Candidate 2 is background: the image has no objects to match."
    empty = max_iou(Candidates.of_boxes(torch.zeros(0, 4)), scene(0, 3)[1])
    assert len(empty.gt_index) == 0 and empty.threshold.tolist() == [0.5] * 3


def test_thresholds_in_the_wrong_order() -> None:
    with pytest.raises(ValueError, match=r"negative IoU 0.6 is above positive IoU 0.5"):
        max_iou(*scene(0, 1), positive=0.5, negative=0.6)


@pytest.mark.parametrize(
    ("positive", "negative", "low_quality"), [(0.7, 0.3, True), (0.5, 0.4, True), (0.5, 0.5, False)]
)
@pytest.mark.parametrize("seed", range(4))
def test_against_torchvision(seed: int, positive: float, negative: float, low_quality: bool) -> None:
    candidates, target = scene(seed, 6, 300)
    found = max_iou(candidates, target, positive=positive, negative=negative, low_quality=low_quality)
    expected = Matcher(positive, negative, low_quality)(box_iou(target["boxes"], candidates.boxes))
    # In torchvision a tied best candidate keeps its own best object, in the release it goes to the tied one.
    agree = found.gt_index == torch.where(expected == Matcher.BETWEEN_THRESHOLDS, IGNORED, expected)
    best = box_iou(target["boxes"], candidates.boxes)
    contested = ((best == best.amax(1, keepdim=True)) & (best < best.amax(0))).any(0)
    assert (agree | contested).all()
    assert agree.float().mean() > 0.99


@given(st.integers(0, 10_000), st.integers(1, 8), st.booleans())
def test_permuting_objects_permutes_the_assignment(seed: int, count: int, low_quality: bool) -> None:
    candidates, target = scene(seed, count)
    best = box_iou(target["boxes"], candidates.boxes).argmax(1)
    low_quality = low_quality and len(best.unique()) == count  # else the last object wins, whatever its order
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    shuffled = {key: value[order] for key, value in target.items()}
    first = max_iou(candidates, target, low_quality=low_quality)
    second = max_iou(candidates, shuffled, low_quality=low_quality)
    back = torch.where(second.positive, order[second.gt_index.clamp(min=0)], second.gt_index)
    assert (back == first.gt_index).all()
    assert (second.threshold == first.threshold[order]).all()


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_low_quality_gives_every_reachable_object_a_positive(seed: int, count: int) -> None:
    candidates, target = scene(seed, count)
    overlap = box_iou(target["boxes"], candidates.boxes)
    found = max_iou(candidates, target, positive=0.7, negative=0.3, min_positive=0.3)
    best = overlap.argmax(1)
    for index in range(count):
        if overlap[index].max() >= 0.3 and best[index] not in best[index + 1 :]:
            assert found.count_per_object()[index] >= 1
    positive = found.positive.nonzero()[:, 0]
    reached = overlap[found.gt_index[positive], positive]
    assert (reached >= found.threshold[found.gt_index[positive]] - 1e-6).all()


def test_groups_of_objects_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates, target = scene(3, 7)
    whole = max_iou(candidates, target, positive=0.7, negative=0.3, min_positive=0.3)
    monkeypatch.setattr(sys.modules["codetr_lab.assign.objects"], "PAIRS_AT_ONCE", 2 * len(candidates))
    parts = max_iou(candidates, target, positive=0.7, negative=0.3, min_positive=0.3)
    assert (parts.gt_index == whole.gt_index).all() and (parts.threshold == whole.threshold).all()


def test_explanations() -> None:
    target = {"boxes": torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10]]), "labels": torch.tensor([0, 1])}
    boxes = torch.tensor([[0.0, 0, 10, 9.5], [0, 0, 10, 4.5], [40, 0, 50, 10], [3, 0, 13, 9.5]])
    found = max_iou(Candidates.of_boxes(boxes), target, positive=0.5, negative=0.4, low_quality=False)
    assert found.explain(0) == (
        "Candidate 0 is positive for object 0: their IoU, 0.950, reaches 0.5. "
        "It would also have done for object 1 (IoU 0.639)."
    )
    assert found.explain(1) == (
        "max IoU ignores candidate 1: its best IoU, 0.450 with object 0, lies between 0.4 (background) and "
        "0.5 (positive)."
    )
    assert found.explain(2) == "Candidate 2 is background: its best IoU, 0.000 with object 0, is below 0.4."
    with pytest.raises(IndexError, match=r"candidates 0\.\.3"):
        found.explain(4)

    low = max_iou(Candidates.of_boxes(boxes), target, positive=0.99, negative=0.3, min_positive=0.3)
    assert "no candidate overlaps object 0 more" in low.explain(0)

    assert low.gt_index.tolist() == [0, IGNORED, NEGATIVE, 1]


def test_a_low_quality_match_says_who_overlaps_more() -> None:
    target = {"boxes": torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20]]), "labels": torch.tensor([0, 1])}
    found = max_iou(
        Candidates.of_boxes(torch.tensor([[0.0, 0, 10, 9]])), target, positive=0.95, negative=0.3, min_positive=0.3
    )
    assert found.gt_index.tolist() == [1]
    assert found.explain(0).endswith("Object 0 overlaps it more (IoU 0.900).")


def test_matchable_leaves_crowds_out() -> None:
    target = scene(0, 3)[1]
    assert objects.matchable(target).tolist() == [0, 1, 2]
    assert objects.matchable(target | {"iscrowd": torch.tensor([0, 1, 0])}).tolist() == [0, 2]
