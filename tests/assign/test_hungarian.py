"""One-to-one matching against scipy and brute force."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codetr_lab.assign.hungarian import hungarian, match_batch, matching_costs
from codetr_lab.boxes import xyxy_to_cxcywh
from codetr_lab.structures import Candidates

SIZE = (100, 120)


def problem(queries: int, objects: int, seed: int) -> tuple[Candidates, dict[str, torch.Tensor]]:
    """Random predictions and objects."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(count: int) -> torch.Tensor:
        corner = torch.rand(count, 2, generator=generator) * 60
        return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 35], 1)

    logits = torch.randn(queries, 3, generator=generator)
    target = {"boxes": boxes(objects), "labels": torch.randint(3, (objects,), generator=generator)}
    return Candidates.of_boxes(boxes(queries), scores=logits), target


@given(st.integers(0, 1000))
def test_the_match_is_the_cheapest_of_all(seed: int) -> None:
    candidates, target = problem(5, 3, seed)
    whwh = torch.tensor([120.0, 100, 120, 100])
    predicted = xyxy_to_cxcywh(candidates.boxes / whwh)
    terms = matching_costs(candidates.scores, predicted, target["labels"], target["boxes"], whwh)
    cost = sum(terms.values())
    best = min(permutations(range(5), 3), key=lambda rows: float(sum(cost[row, n] for n, row in enumerate(rows))))
    record = hungarian(candidates, target, image_size=SIZE)
    assert [int((record.gt_index == n).nonzero()) for n in range(3)] == list(best)
    assert torch.allclose(record.threshold, torch.stack([cost[row, n] for n, row in enumerate(best)]), atol=1e-4)


@given(st.integers(0, 1000), st.permutations(range(4)))
def test_permuting_objects_permutes_the_match(seed: int, order: list[int]) -> None:
    candidates, target = problem(8, 4, seed)
    shuffled = {name: value[list(order)] for name, value in target.items()}
    one, two = (hungarian(candidates, t, image_size=SIZE).gt_index for t in (target, shuffled))
    assert all(int(b) == -1 if a < 0 else order[int(b)] == int(a) for a, b in zip(one, two, strict=True))


def test_no_objects_and_fewer_queries_than_objects() -> None:
    candidates, target = problem(2, 4, 0)
    assert hungarian(candidates, target, image_size=SIZE).positive.all()
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    record = hungarian(candidates, none, image_size=SIZE)
    assert record.negative.all()
    assert "no objects" in record.explain(0)


def test_explanations_name_object_and_rival() -> None:
    candidates, target = problem(6, 2, 3)
    record = hungarian(candidates, target, image_size=SIZE)
    winner, loser = int(record.positive.nonzero()[0]), int(record.negative.nonzero()[0])
    assert f"object {int(record.gt_index[winner])} at cost" in record.explain(winner)
    assert "took it at" in record.explain(loser)


def test_a_batch_of_layers_and_images_equals_one_by_one() -> None:
    problems = [problem(7, n, n) for n in (3, 0, 5)]
    whwh = torch.tensor([120.0, 100, 120, 100]).expand(3, 4)
    labels, boxes = torch.zeros(3, 5, dtype=torch.long), torch.zeros(3, 5, 4)
    for i, (_, target) in enumerate(problems):
        labels[i, : len(target["labels"])] = target["labels"]
        boxes[i, : len(target["boxes"])] = target["boxes"]
    logits = torch.stack([c.scores for c, _ in problems])
    predicted = torch.stack([xyxy_to_cxcywh(c.boxes / whwh[0]) for c, _ in problems])
    together = match_batch(
        torch.stack([logits, logits.flip(-1)]), torch.stack([predicted] * 2), labels, boxes, [3, 0, 5], whwh
    )
    for i, (candidates, target) in enumerate(problems):
        assert torch.equal(together[0, i], hungarian(candidates, target, image_size=SIZE).gt_index)


def test_nan_predictions_do_not_stop_the_solver() -> None:
    candidates, target = problem(4, 2, 0)
    candidates.scores[0] = float("nan")
    assert hungarian(candidates, target, image_size=SIZE).count_per_object().tolist() == [1, 1]


def test_logits_are_needed() -> None:
    candidates, target = problem(4, 2, 0)
    with pytest.raises(ValueError, match="class logits"):
        hungarian(Candidates.of_boxes(candidates.boxes), target, image_size=SIZE)
