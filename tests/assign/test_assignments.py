"""What every rule for anchors and points promises: order, place and far-away things do not matter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_case import grid, objects, with_costs

from codetr_lab.assign import atss, fcos, max_iou, paa
from codetr_lab.boxes import iou
from codetr_lab.structures import Assignment, Candidates, Target

Rule = Callable[[Candidates, Target], Assignment]


def paa_with_costs(candidates: Candidates, target: Target) -> Assignment:
    """PAA with costs that belong to places, not to rows."""
    centre = (candidates.boxes[:, :2] + candidates.boxes[:, 2:]) / 2
    size = candidates.boxes[:, 2] - candidates.boxes[:, 0]
    costs = 1 + torch.sin(centre[:, 0] % 128 * 0.7) * torch.cos(centre[:, 1] % 128 * 0.3) + size / 300
    return paa(with_costs(candidates, costs), target)


RULES: dict[str, Rule] = {
    "atss": atss, "fcos": lambda c, t: fcos(c, t, reach=3.0), "paa": paa, "paa with costs": paa_with_costs,
    "retinanet": max_iou, "rpn": lambda c, t: max_iou(c, t, positive=0.7, negative=0.3, min_positive=0.3),
    "roi": lambda c, t: max_iou(c, t, positive=0.5, negative=0.5, low_quality=False),
}  # fmt: skip
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
seeds, counts = st.integers(0, 10_000), st.integers(1, 6)


@every_rule
def test_permuting_objects_permutes_the_assignment(rule: Rule) -> None:
    @settings(max_examples=20)
    @given(seeds, counts)
    def check(seed: int, count: int) -> None:
        candidates, target = grid(), objects(seed, count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        first, second = rule(candidates, target), rule(candidates, {key: value[order] for key, value in target.items()})
        back = torch.where(second.positive, order[second.gt_index.clamp(min=0)], second.gt_index)
        overlap = iou(target["boxes"][:, None], candidates.boxes)
        best = overlap == overlap.amax(1, keepdim=True)
        if best.sum(0).max() == 1:  # else low quality lets the last object win, whatever its order
            assert torch.equal(back, first.gt_index)
            assert torch.allclose(second.threshold, first.threshold[order])

    check()


@every_rule
def test_moving_objects_by_strides_moves_the_positives(rule: Rule) -> None:
    wide, stride = grid(size=384), 32

    def cell(index: int) -> tuple[int, float, float]:
        x0, y0, x1, y1 = wide.boxes[index].tolist()
        return int(wide.level[index]), (x0 + x1) / 2, (y0 + y1) / 2

    @settings(max_examples=20)
    @given(seeds, st.integers(-3, 3), st.integers(-3, 3))
    def check(seed: int, right: int, down: int) -> None:
        target = objects(seed, 3)
        # quarters of pixels, so that moving is exact
        target["boxes"] = (target["boxes"] * 4).round() / 4 + 128
        shift = torch.tensor([right, down, right, down]) * float(stride)
        moved = target | {"boxes": target["boxes"] + shift}
        before, after = rule(wide, target), rule(wide, moved)
        if rule is RULES["paa with costs"] and (right % 4 or down % 4):
            return  # its costs repeat every 128 pixels
        expected = {
            (level, x + float(shift[0]), y + float(shift[1]), int(before.gt_index[i]))
            for i in before.positive.nonzero()[:, 0].tolist() for level, x, y in [cell(i)]
        }  # fmt: skip
        assert {(*cell(i), int(after.gt_index[i])) for i in after.positive.nonzero()[:, 0].tolist()} == expected

    check()


@every_rule
def test_a_far_away_object_changes_nobody_elses_positives(rule: Rule) -> None:
    wide = grid(size=512)

    @settings(max_examples=20)
    @given(seeds, counts)
    def check(seed: int, count: int) -> None:
        target = objects(seed, count)
        far = {"boxes": torch.tensor([[430.3, 425.1, 470.2, 465.7]]), "labels": torch.tensor([9])}
        both = {key: torch.cat([target[key], far[key]]) for key in target}
        before, after = rule(wide, target), rule(wide, both)
        near = wide.boxes[:, 0] < 270
        assert torch.equal(before.gt_index[near], after.gt_index[near])
        assert (before.gt_index[~near] < 0).all() and (after.gt_index[near] < count).all()
        assert torch.equal(before.threshold, after.threshold[:-1])

    check()


@pytest.mark.parametrize("name", ["atss", "paa", "paa with costs", "retinanet"])
def test_every_reachable_object_gets_a_positive(name: str) -> None:
    """Reachable: alone. Among others, an object can lose its candidates to those that fit them better."""

    @settings(max_examples=20)
    @given(seeds)
    def check(seed: int) -> None:
        candidates, target = grid(), objects(seed, 1)
        if iou(candidates.boxes, target["boxes"]).max() > 0:
            assert RULES[name](candidates, target).count_per_object()[0] >= 1

    check()


@every_rule
def test_without_objects_or_candidates_nothing_is_positive(rule: Rule) -> None:
    found = rule(grid(), objects(0, 0))
    assert found.negative.all() and found.threshold.shape == (0,)
    nothing = Candidates.of_boxes(torch.zeros(0, 4))
    found = rule(nothing, objects(0, 3))
    assert found.gt_index.shape == (0,) and found.count_per_object().tolist() == [0, 0, 0]


@every_rule
def test_many_candidates_and_objects(rule: Rule) -> None:
    candidates, target = grid((8, 16, 32, 64), size=1024, scale=4), objects(0, 100, size=1024)
    found = rule(candidates, target)
    assert found.count_per_object().sum() > 50
    some = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(0))[:20].tolist()
    assert all(str(index) in found.explain(index) for index in some)
