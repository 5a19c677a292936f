"""Group-DETR's and H-DETR's matching, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from codetr_lab.assign import grouped_hungarian, hungarian, repeated_hungarian
from codetr_lab.assign.hungarian import pair_cost
from codetr_lab.structures import NEGATIVE, Candidates

SIZE = (100, 120)


def scene(seed: int, queries: int, count: int) -> tuple[Candidates, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(queries + count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 5 + torch.rand(queries + count, 2, generator=generator) * 30], 1)
    scores = torch.randn(queries, 4, generator=generator)
    labels = torch.randint(4, (count,), generator=generator)
    return Candidates.of_boxes(boxes[:queries], scores=scores), {"boxes": boxes[queries:], "labels": labels}


def test_every_group_is_matched_on_its_own() -> None:
    candidates, target = scene(0, 30, 5)
    found = grouped_hungarian(candidates, target, image_size=SIZE, groups=3)
    assert found.count_per_object().tolist() == [3] * 5
    for group in range(3):
        part = slice(group * 10, group * 10 + 10)
        alone = Candidates.of_boxes(candidates.boxes[part], scores=candidates.scores[part])
        assert torch.equal(hungarian(alone, target, image_size=SIZE).gt_index, found.gt_index[part])
    assert found.parameters["groups"] == 3 and found.rule == "Group-DETR's matching"


def test_every_object_is_repeated() -> None:
    candidates, target = scene(1, 30, 4)
    found = repeated_hungarian(candidates, target, image_size=SIZE, repeats=6)
    assert found.count_per_object().tolist() == [6] * 4
    costs = pair_cost(found, torch.arange(30)).numpy()
    rows, columns = linear_sum_assignment(np.concatenate([costs] * 6, 1))
    expected = np.full(30, NEGATIVE)
    expected[rows] = columns % 4
    assert found.gt_index.tolist() == expected.tolist()
    dearest = [costs[(expected == n), n].max() for n in range(4)]
    assert found.threshold.tolist() == pytest.approx(dearest)


def test_once_is_hungarian_matching() -> None:
    candidates, target = scene(2, 12, 5)
    expected = hungarian(candidates, target, image_size=SIZE)
    for found in (
        grouped_hungarian(candidates, target, image_size=SIZE, groups=1),
        repeated_hungarian(candidates, target, image_size=SIZE, repeats=1),
    ):
        assert torch.equal(found.gt_index, expected.gt_index) and torch.equal(found.threshold, expected.threshold)


def test_more_repeats_than_queries() -> None:
    candidates, target = scene(3, 7, 3)
    found = repeated_hungarian(candidates, target, image_size=SIZE, repeats=6)
    assert found.positive.all() and found.count_per_object().sum() == 7


def test_nothing_to_match() -> None:
    candidates, target = scene(4, 12, 0)
    for rule, setting in ((grouped_hungarian, {"groups": 3}), (repeated_hungarian, {"repeats": 2})):
        found = rule(candidates, target, image_size=SIZE, **setting)
        assert found.negative.all() and found.threshold.shape == (0,)
        assert "no objects" in found.explain(0)


def test_bad_arguments_are_named() -> None:
    candidates, target = scene(5, 10, 2)
    with pytest.raises(ValueError, match="10 candidates do not fall into 3 equal groups"):
        grouped_hungarian(candidates, target, image_size=SIZE, groups=3)
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        repeated_hungarian(candidates, target, image_size=SIZE, repeats=0)
    with pytest.raises(ValueError, match="class logits"):
        repeated_hungarian(Candidates.of_boxes(candidates.boxes), target, image_size=SIZE)


def test_explanations() -> None:
    candidates, target = scene(6, 12, 2)
    found = grouped_hungarian(candidates, target, image_size=SIZE, groups=3)
    positive = int(found.positive.nonzero()[-1])
    assert found.explain(positive).startswith(f"Query {positive} of group {positive // 4 + 1} of 3 is positive")
    negative = int(found.negative.nonzero()[-1])
    text = found.explain(negative)
    nearest = int(pair_cost(found, torch.tensor([negative]))[0].argmin())
    group = slice(negative // 4 * 4, negative // 4 * 4 + 4)
    holder = int((found.gt_index[group] == nearest).nonzero()) + group.start
    assert f"its cheapest object is {nearest}" in text and f"queries {holder} have it" in text
    many = repeated_hungarian(candidates, target, image_size=SIZE, repeats=2)
    assert "give every object 2 queries" in many.explain(0)
