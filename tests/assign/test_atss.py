"""ATSS: by hand, against a plain loop, and in general."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from codetr_lab.assign import atss
from codetr_lab.structures import NEGATIVE, Candidates


def grid(levels: tuple[int, ...] = (8, 16, 32), size: int = 64, scale: float = 3.0) -> Candidates:
    """Square anchors at the corners of the cells of a square image."""
    boxes, level, strides = [], [], []
    for index, stride in enumerate(levels):
        y, x = torch.meshgrid(torch.arange(0, size, stride), torch.arange(0, size, stride), indexing="ij")
        centre = torch.stack([x, y], -1).reshape(-1, 2).float()
        boxes.append(torch.cat([centre - scale * stride / 2, centre + scale * stride / 2], 1))
        level += [index] * len(centre)
        strides += [float(stride)] * len(centre)
    every = torch.cat(boxes)
    return Candidates(every, torch.tensor(level), torch.tensor(strides), torch.ones(len(every), dtype=torch.bool))


def objects(seed: int, count: int) -> dict[str, Tensor]:
    """Random objects in an image of 64 pixels; no two centres are equally far from an anchor."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 9 + torch.rand(count, 2, generator=generator) * 20], 1)
    return {"boxes": boxes, "labels": torch.arange(count)}


def plain(candidates: Candidates, boxes: Tensor, top_k: int) -> list[int]:
    """The rule of the paper's Algorithm 1, one object and one anchor at a time."""
    overlap = box_iou(candidates.boxes, boxes).tolist()
    centres = ((candidates.boxes[:, :2] + candidates.boxes[:, 2:]) / 2).tolist()
    owner, best = [NEGATIVE] * len(centres), [-1.0] * len(centres)
    for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        listed = []
        for level in sorted(set(candidates.level.tolist())):
            members = [i for i in range(len(centres)) if candidates.level[i] == level and candidates.valid[i]]
            members.sort(key=lambda i: math.dist(centres[i], ((x0 + x1) / 2, (y0 + y1) / 2)))
            listed += members[:top_k]
        values = [overlap[i][index] for i in listed]
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        for i in listed:
            x, y = centres[i]
            inside = min(x - x0, y - y0, x1 - x, y1 - y) > 0.01
            if inside and overlap[i][index] >= mean + deviation and overlap[i][index] > best[i]:
                owner[i], best[i] = index, overlap[i][index]
    return owner


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("top_k", [4, 9])
def test_against_a_plain_loop(seed: int, top_k: int) -> None:
    candidates, target = grid(), objects(seed, 5)
    if seed % 2:
        candidates = Candidates(
            candidates.boxes, candidates.level, candidates.stride, candidates.boxes[:, :2].amin(1) > -20
        )
    assert atss(candidates, target, top_k=top_k).gt_index.tolist() == plain(candidates, target["boxes"], top_k)


def test_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [8, 0, 18, 10], [9, 0, 19, 10], [0, 9, 10, 19], [30, 30, 40, 40]])
    target = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([3])}
    found = atss(Candidates.of_boxes(boxes), target, top_k=4)
    overlap = torch.tensor([1.0, 20 / 180, 10 / 190, 10 / 190])
    assert float(found.threshold[0]) == pytest.approx(float(overlap.mean() + overlap.std()), abs=1e-6)
    assert found.gt_index.tolist() == [0, NEGATIVE, NEGATIVE, NEGATIVE, NEGATIVE]
    assert found.parameters == {"top_k": 4} and found.rule == "ATSS"


def test_a_wanted_candidate_goes_to_the_highest_iou_and_a_tie_to_the_first() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]])
    target = {"boxes": torch.tensor([[0.0, 0, 12, 12], [0, 0, 11, 11], [0, 0, 11, 11]]), "labels": torch.arange(3)}
    found = atss(Candidates.of_boxes(boxes), target)
    assert found.gt_index.tolist() == [1]
    text = found.explain(0)
    assert text.startswith("Candidate 0 is positive for object 1")
    assert "also wanted by object 0 (IoU 0.694), object 2 (IoU 0.826)" in text


def test_padding_and_crowds_take_no_part() -> None:
    candidates, target = grid(), objects(1, 4)
    half = Candidates(candidates.boxes, candidates.level, candidates.stride, candidates.boxes[:, 0] < 20)
    crowd = target | {"iscrowd": torch.tensor([0, 1, 0, 0])}
    found = atss(half, crowd)
    assert not (found.positive & ~half.valid).any()
    assert (found.used == half.valid).all()
    assert found.threshold[1] == float("inf") and (found.gt_index != 1).all()
    rest = {key: value[torch.tensor([0, 2, 3])] for key, value in target.items()}
    alone = atss(half, rest)
    assert (alone.labels == found.labels).all()


def test_order_of_levels_does_not_matter() -> None:
    candidates, target = grid(), objects(5, 4)
    order = torch.arange(len(candidates)).flip(0)
    turned = Candidates(
        candidates.boxes[order], candidates.level[order], candidates.stride[order], candidates.valid[order]
    )
    assert (atss(turned, target).gt_index[order] == atss(candidates, target).gt_index).all()


def test_nothing_to_assign() -> None:
    candidates, none = grid(), objects(0, 0)
    found = atss(candidates, none)
    assert found.negative.all() and found.threshold.shape == (0,)
    assert "no objects" in found.explain(1)
    nothing = Candidates.of_boxes(torch.zeros(0, 4))
    assert atss(nothing, objects(0, 2)).gt_index.shape == (0,)
    invalid = Candidates(candidates.boxes, candidates.level, candidates.stride, torch.zeros_like(candidates.valid))
    assert atss(invalid, objects(0, 2)).negative.all()


def test_top_k_must_be_positive() -> None:
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        atss(grid(), objects(0, 1), top_k=0)


def test_a_single_candidate_can_be_positive() -> None:
    target = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([0])}
    assert atss(Candidates.of_boxes(torch.tensor([[1.0, 1, 9, 9]])), target).gt_index.tolist() == [0]


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_permuting_objects_permutes_the_assignment(seed: int, count: int) -> None:
    candidates, target = grid(), objects(seed, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    first, second = atss(candidates, target), atss(candidates, {key: value[order] for key, value in target.items()})
    back = torch.where(second.positive, order[second.gt_index.clamp(min=0)], second.gt_index)
    assert (back == first.gt_index).all()
    assert torch.allclose(second.threshold, first.threshold[order])


@given(st.integers(0, 10_000))
def test_an_object_alone_gets_positives_that_keep_the_rule(seed: int) -> None:
    candidates, target = grid(), objects(seed, 1)
    found = atss(candidates, target)
    positive = found.positive.nonzero()[:, 0]
    box = target["boxes"][0]
    overlap = box_iou(candidates.boxes[positive], target["boxes"])[:, 0]
    centre = (candidates.boxes[positive, :2] + candidates.boxes[positive, 2:]) / 2
    assert len(positive) >= 1
    assert (overlap >= found.threshold[0]).all()
    assert ((centre > box[:2]) & (centre < box[2:])).all()
    assert found.count_per_object().tolist() == [len(positive)]


def test_groups_of_objects_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates, target = grid(), objects(3, 6)
    whole = atss(candidates, target)
    monkeypatch.setattr(sys.modules["codetr_lab.assign.atss"], "PAIRS_AT_ONCE", 2 * len(candidates))
    parts = atss(candidates, target)
    assert (parts.gt_index == whole.gt_index).all() and (parts.threshold == whole.threshold).all()


def test_explanations_tell_the_rule_that_failed() -> None:
    candidates, target = grid(), objects(2, 3)
    found = atss(candidates, target, top_k=4)
    positive = int(found.positive.nonzero()[0, 0])
    owner = int(found.gt_index[positive])
    overlap = float(box_iou(candidates.boxes[positive, None], target["boxes"][owner, None]))
    assert f"positive for object {owner}" in found.explain(positive)
    assert f"{overlap:.3f}, reaches the object's threshold of {float(found.threshold[owner]):.3f}" in found.explain(
        positive
    )
    words = {"not among the 4 candidates": 0, "centre lies outside": 0, "is below the object's threshold": 0}
    for index in found.negative.nonzero()[:, 0].tolist():
        text = found.explain(index)
        assert text.startswith(f"Candidate {index} is background.")
        for word in words:
            words[word] += word in text
    assert min(words.values()) > 0
