"""PAA: the mixture against scikit-learn, the rule by hand, and its explanations."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_case import grid, objects, with_costs, with_valid

from codetr_lab.assign import mixture, paa
from codetr_lab.assign.paa import paa_batch, separate
from codetr_lab.structures import NEGATIVE, Candidates


def sklearn_fit(values: np.ndarray):
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(
        2, weights_init=[0.5, 0.5], means_init=[[values.min()], [values.max()]], precisions_init=[[[1.0]], [[1.0]]]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(values[:, None])


@settings(max_examples=8)
@given(st.integers(0, 10_000))
def test_the_mixture_is_scikit_learns(seed: int) -> None:
    random = np.random.default_rng(seed)
    counts = random.integers(2, 40, 6)
    rows = [
        np.sort(np.concatenate([random.normal(1, 0.2, n // 2), random.normal(random.uniform(1, 5), 0.5, n - n // 2)]))
        for n in counts
    ]
    filled = np.arange(counts.max()) < counts[:, None]
    values = np.zeros(filled.shape)
    values[filled] = np.concatenate(rows)
    ours, numbers = mixture.fit(values, filled), separate(rows)
    for n, row in enumerate(rows):
        theirs = sklearn_fit(row)
        assert ours.mean[:, n] == pytest.approx(theirs.means_[:, 0], rel=1e-9)
        assert ours.weight[:, n] == pytest.approx(theirs.weights_, rel=1e-9)
        assert ours.variance[:, n] == pytest.approx(theirs.covariances_[:, 0, 0], rel=1e-9)
        cheap, score = theirs.predict(row[:, None]) == 0, theirs.score_samples(row[:, None])
        assert numbers[n] == (np.where(cheap, score, -np.inf).argmax() + 1 if cheap.any() else len(row))


# Six anchors on one object of 10 x 10. IoUs: 1, .82, .67, .54, .43, .33. Three are cheap, three are dear.
BOXES = torch.tensor([[float(i), 0, 10 + i, 10] for i in range(6)])
ONE = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([3])}
COSTS = torch.tensor([5.0, 0.2, 0.3, 0.1, 5.1, 5.2])


def test_by_hand() -> None:
    found = paa(with_costs(Candidates.of_boxes(BOXES), COSTS), ONE)
    # sorted costs: .1 .2 .3 | 5 5.1 5.2. Of the cheap ones .2 is the most probable; .1 costs no more.
    assert found.gt_index.tolist() == [NEGATIVE, 0, NEGATIVE, 0, NEGATIVE, NEGATIVE]
    assert found.threshold.tolist() == pytest.approx([0.2])
    assert found.labels.tolist() == [-1, 3, -1, 3, -1, -1] and found.used.all()
    assert (found.quality.name, found.quality.higher_is_better, found.rule) == ("cost", False, "PAA")
    assert found.explain(3) == (
        "Candidate 3 is positive for object 0: its cost is 0.100. Two Gaussians fitted to the costs of the object's 6 "
        "shortlisted candidates lie around 0.200 and around 5.100; the most probable member of the cheap one costs "
        "0.200, no less."
    )
    assert found.explain(2).startswith("Candidate 2 is background: its cost for object 0 is 0.300. Two Gaussians")
    assert found.explain(2).endswith("costs 0.200, which is less.")


def test_only_the_cheapest_of_a_level_are_shortlisted() -> None:
    candidates = with_costs(Candidates.of_boxes(BOXES), COSTS)
    found = paa(candidates, ONE, top_k=1)
    assert found.gt_index.tolist() == [NEGATIVE, NEGATIVE, NEGATIVE, 0, NEGATIVE, NEGATIVE]
    assert found.explain(3) == "Candidate 3 is positive for object 0: it is the object's only candidate."
    assert found.explain(1) == (
        "Candidate 1 is background: 1 others of level -1 cost no more for object 0, which it overlaps most."
    )
    levels = Candidates(BOXES, torch.tensor([0, 0, 0, 1, 1, 1]), torch.ones(6), candidates.valid, costs=COSTS)
    found = paa(levels, ONE, top_k=1)
    assert set(found.positive.nonzero()[:, 0].tolist()) <= {1, 3} and found.positive[3]


def test_candidates_overlap_enough_and_belong_to_the_object_overlapped_most() -> None:
    two = {"boxes": torch.tensor([[0.0, 0, 10, 10], [9, 0, 19, 10]]), "labels": torch.tensor([0, 1])}
    found = paa(with_costs(Candidates.of_boxes(BOXES), torch.zeros(6)), two, min_iou=0.4)
    assert found.gt_index.tolist() == [0, 0, 0, 0, 0, 1]
    assert "is below 0.4" not in found.explain(5)
    far = paa(Candidates.of_boxes(torch.cat([BOXES, BOXES + 9])), ONE, min_iou=0.4)
    assert far.explain(6) == "Candidate 6 is background: its best IoU, 0.005 with object 0, is below 0.4."


def test_equal_costs_are_equally_positive() -> None:
    assert paa(with_costs(Candidates.of_boxes(BOXES), torch.ones(6)), ONE).positive.all()
    assert separate([np.array([1.0, 1, 1, 6, 6]), np.array([]), np.array([2.0])]) == [3, 0, 1]


def test_costs_may_be_given_for_every_object() -> None:
    two = {"boxes": torch.tensor([[0.0, 0, 10, 10], [9, 0, 19, 10]]), "labels": torch.tensor([0, 1])}
    table = torch.stack([COSTS, 9 - COSTS], 1)
    single = torch.where(torch.arange(6) == 5, table[:, 1], table[:, 0])
    by_table = paa(with_costs(Candidates.of_boxes(BOXES), table), two)
    assert by_table.gt_index.tolist() == paa(with_costs(Candidates.of_boxes(BOXES), single), two).gt_index.tolist()


def test_without_costs_anchors_are_judged_by_their_own_giou() -> None:
    found = paa(Candidates.of_boxes(BOXES), ONE)
    assert found.positive[0] and not found.positive[5]


def test_a_batch_is_its_images() -> None:
    candidates = [with_valid(grid(), grid().boxes[:, 0] < limit) for limit in (200, 60, 90)]
    targets = [objects(0, 4), objects(1, 0), objects(2, 2)]
    for both, image, target in zip(paa_batch(candidates, targets), candidates, targets, strict=True):
        alone = paa(image, target)
        assert torch.equal(both.gt_index, alone.gt_index) and torch.equal(both.threshold, alone.threshold)


def test_padding_and_crowds_take_no_part() -> None:
    candidates, target = grid(), objects(1, 4)
    half = with_valid(candidates, candidates.boxes[:, 0] < 60)
    found = paa(half, target | {"iscrowd": torch.tensor([0, 1, 0, 0])})
    assert not (found.positive & ~half.valid).any() and (found.used == half.valid).all()
    assert (found.gt_index != 1).all() and found.threshold[1] == float("-inf")
    assert "no objects" in paa(grid(), objects(0, 0)).explain(3)


def test_bad_settings_and_costs_are_named() -> None:
    candidates = grid()
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        paa(candidates, ONE, top_k=0)
    with pytest.raises(ValueError, match=r"costs must be of shape \(336,\) or \(336, 1\), got \(3,\)"):
        paa(with_costs(candidates, torch.zeros(3)), ONE)
    with pytest.raises(ValueError, match="the cost of candidate 0 is not finite"):
        paa(with_costs(candidates, torch.full((336,), float("nan"))), ONE)
