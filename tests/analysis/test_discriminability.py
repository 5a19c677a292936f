"""Eq. 7 and Eq. 8 against hand-worked cases, brute force, and the promise that batching changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codetr_lab.analysis import (
    AnalysisError,
    MeanCurve,
    discriminability,
    foreground,
    foreground_from_boxes,
    foreground_from_masks,
    iof_iob_curve,
    near_both_ends,
    near_one,
)
from codetr_lab.structures import ImageBatch, Trace


def mask(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


# Eq. 7


def test_one_level_is_norm_over_its_maximum():
    features = torch.zeros(1, 2, 2, 2)
    features[0, :, 0, 0] = torch.tensor([3.0, 4.0])
    features[0, :, 0, 1] = torch.tensor([0.0, 1.0])
    features[0, :, 1, 0] = torch.tensor([2.0, 0.0])
    expected = torch.tensor([[1.0, 0.2], [0.4, 0.0]])
    assert torch.allclose(discriminability([features], (2, 2))[0, 0], expected)


def test_levels_are_averaged_and_not_summed():
    a, b = torch.rand(1, 4, 8, 8), 100 * torch.rand(1, 4, 8, 8)
    single = [discriminability([level], (8, 8)) for level in (a, b)]
    assert torch.allclose(discriminability([a, b], (8, 8)), (single[0] + single[1]) / 2)


def test_resizing_is_bilinear_between_pixel_centres():
    features = torch.tensor([1.0, 2.0])[None, None, None]  # one row of two cells
    row = discriminability([features], (1, 4))[0, 0, 0]
    assert torch.allclose(row, torch.tensor([1.0, 1.25, 1.75, 2.0]) / 2)


def test_values_are_in_the_unit_interval_and_one_level_reaches_one():
    levels = [torch.randn(3, 8, 16, 12)]
    scores = discriminability(levels, (128, 96))
    assert scores.shape == (3, 1, 128, 96)
    assert scores.min() >= 0
    assert torch.allclose(scores.amax(dim=(1, 2, 3)), torch.ones(3))


def test_zero_features_give_zero_not_nan():
    assert discriminability([torch.zeros(1, 4, 2, 2)], (4, 4)).eq(0).all()


def _levels(seed: int, height: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, height // s, width // s, generator=generator) for s in (8, 16, 32)]


def test_padding_and_batch_composition_change_nothing():
    sizes = [(96, 64), (64, 128), (128, 128)]
    images = [_levels(seed, *size) for seed, size in enumerate(sizes)]
    batch = ImageBatch.from_images([torch.zeros(3, *size) for size in sizes])
    # What stands in the padded cells must not matter, so it is large.
    levels = []
    for level, stride in enumerate((8, 16, 32)):
        padded = torch.full((3, 6, 128 // stride, 128 // stride), 1e3)
        for image, features in enumerate(images):
            padded[image, :, : features[level].shape[1], : features[level].shape[2]] = features[level]
        levels.append(padded)
    together = discriminability(levels, (128, 128), batch.pad_mask)
    for image, (height, width) in enumerate(sizes):
        alone = discriminability([features[None] for features in images[image]], (height, width))
        assert torch.allclose(together[image, :, :height, :width], alone[0], atol=1e-6)
    assert together[batch.pad_mask[:, None]].eq(0).all()


def test_a_single_valid_pixel_is_enough():
    pad_mask = torch.ones(1, 32, 32, dtype=torch.bool)
    pad_mask[0, 0, 0] = False
    scores = discriminability([torch.ones(1, 2, 4, 4)], (32, 32), pad_mask)
    assert scores[0, 0, 0, 0] == 1
    assert scores.sum() == 1


def test_errors_of_the_map():
    with pytest.raises(AnalysisError, match="at least one feature level"):
        discriminability([], (4, 4))
    with pytest.raises(AnalysisError, match=r"\(1, 3, 4\), the batch has \(1, 4, 4\)"):
        discriminability([torch.ones(1, 2, 2, 2)], (4, 4), torch.zeros(1, 3, 4, dtype=torch.bool))


# Foreground


def test_foreground_is_where_pixel_centres_lie_in_a_box():
    boxes = torch.tensor([[1.0, 0.0, 3.0, 2.0], [2.6, 1.4, 4.4, 3.0]])
    expected = mask(0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 0).view(3, 5)
    assert torch.equal(foreground_from_boxes(boxes, (3, 5)), expected)
    assert not foreground_from_boxes(torch.zeros(0, 4), (3, 5)).any()


def test_foreground_from_masks_is_their_union():
    masks = torch.zeros(2, 2, 2, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 1, 1] = True
    assert torch.equal(foreground_from_masks(masks), torch.eye(2, dtype=torch.bool))
    assert foreground_from_masks(masks[:0]).sum() == 0


# Eq. 8


def test_curve_worked_by_hand():
    # foreground 3, 2; background 2, 1: the tie at 2 counts in neither share while S = 2.
    curve = iof_iob_curve(torch.tensor([3.0, 2.0, 2.0, 1.0]), mask(1, 1, 0, 0))
    inf = math.inf
    assert curve.thresholds.tolist() == [-inf, 1, 1.5, 2, 2.5, 3, inf]
    assert curve.iof.tolist() == [1, 1, 1, 0.5, 0.5, 0, 0]
    assert curve.iob.tolist() == [0, 0, 0.5, 0.5, 1, 1, 1]
    assert curve.area() == 0.75  # pairs: 3>2, 3>1, 2>1 of four


@pytest.mark.parametrize(
    ("scores", "area"),
    [
        ([2.0, 2.0, 1.0, 1.0], 1.0),
        ([1.0, 1.0, 2.0, 2.0], 0.0),
        ([1.0, 1.0, 1.0, 1.0], 0.0),
        ([1.0, 3.0, 2.0, 2.0], 0.5),
    ],
)
def test_areas_of_separated_reversed_constant_and_mixed_maps(scores: list[float], area: float):
    assert iof_iob_curve(torch.tensor(scores), mask(1, 1, 0, 0)).area() == area


pixels = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.booleans()), min_size=2, max_size=40)


@given(pixels)
def test_every_point_and_the_area_equal_brute_force(rows: list[tuple[int, bool, bool]]):
    scores = torch.tensor([row[0] / 6 for row in rows])
    inside, valid = mask(*(row[1] for row in rows)), mask(*(row[2] for row in rows))
    front, back = scores[inside & valid].tolist(), scores[~inside & valid].tolist()
    if not front or not back:
        with pytest.raises(AnalysisError, match=r"there is no (fore|back)ground"):
            iof_iob_curve(scores, inside, valid)
        return
    curve = iof_iob_curve(scores, inside, valid)
    for s, iof, iob in zip(curve.thresholds.tolist(), curve.iof.tolist(), curve.iob.tolist(), strict=True):
        assert iof == pytest.approx(sum(x > s for x in front) / len(front), abs=1e-12)
        assert iob == pytest.approx(sum(x < s for x in back) / len(back), abs=1e-12)
    wins = sum(x > y for x in front for y in back) / (len(front) * len(back))
    assert curve.area() == pytest.approx(wins, abs=1e-12)
    assert (curve.iob.diff() >= 0).all()
    assert (curve.iof.diff() <= 0).all()
    assert set(scores[valid].double().tolist()) <= set(curve.thresholds.tolist())
    assert (curve.iob[0], curve.iof[0], curve.iob[-1], curve.iof[-1]) == (0, 1, 1, 0)


def test_area_does_not_change_under_a_rising_function():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 1000, (64, 64), generator=generator) / 1000
    inside = foreground_from_boxes(torch.tensor([[5.0, 5.0, 40.0, 50.0]]), (64, 64))
    assert iof_iob_curve(scores, inside).area() == iof_iob_curve(scores.double().exp() * 7, inside).area()


def test_neighbouring_float32_scores_have_a_gap_between_them():
    low = torch.tensor(0.99, dtype=torch.float32)
    high = torch.nextafter(low, torch.tensor(1.0))
    curve = iof_iob_curve(torch.stack([high, low]), mask(1, 0))
    assert low < curve.thresholds[2] < high
    assert curve.area() == 1


def test_errors_of_the_curve():
    scores = torch.rand(4)
    with pytest.raises(AnalysisError, match=r"foreground has shape \(3,\)"):
        iof_iob_curve(scores, mask(1, 0, 1))
    with pytest.raises(AnalysisError, match=r"valid has shape \(2,\)"):
        iof_iob_curve(scores, mask(1, 0, 1, 0), mask(1, 1))
    with pytest.raises(AnalysisError, match="NaN"):
        iof_iob_curve(torch.tensor([math.nan, 1.0]), mask(1, 0))


# Over a data set


def _maps(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Maps like a LayerNorm's: all within 3 % of their maximum, objects a little higher."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        inside = foreground_from_boxes(torch.tensor([[8.0, 8.0, 30.0, 28.0]]), (48, 48))
        noise = torch.randn(48, 48, generator=generator) * 0.004 + inside * 0.005
        made.append(((0.98 + noise).clamp(0, 1), inside))
    return made


def test_mean_of_one_image_is_its_exact_curve_at_the_fixed_thresholds():
    (scores, inside), mean = _maps(1)[0], MeanCurve()
    mean.add(scores, inside)
    curve = mean.curve()
    assert len(curve.thresholds) == 1024 + 2
    front, back = scores[inside].double(), scores[~inside].double()
    for index in range(0, 1026, 25):
        s = curve.thresholds[index]
        assert curve.iof[index].item() == pytest.approx((front > s).double().mean().item(), abs=1e-12)
        assert curve.iob[index].item() == pytest.approx((back < s).double().mean().item(), abs=1e-12)
    exact = iof_iob_curve(scores, inside).area()
    assert mean.mean_area() == pytest.approx(exact, abs=1e-12)
    assert curve.area() == pytest.approx(exact, abs=2e-3)  # although D spans a few percent only


def test_mean_over_images_is_the_mean_of_their_curves():
    maps, together = _maps(3), MeanCurve()
    singles = []
    for scores, inside in maps:
        together.add(scores, inside)
        single = MeanCurve()
        single.add(scores, inside)
        singles.append(single)
    assert together.images == 3
    assert torch.allclose(together.curve().iof, torch.stack([s.curve().iof for s in singles]).mean(0))
    assert torch.allclose(together.curve().iob, torch.stack([s.curve().iob for s in singles]).mean(0))
    assert together.mean_area() == pytest.approx(sum(s.mean_area() for s in singles) / 3)


def test_images_without_objects_or_without_background_are_skipped():
    mean = MeanCurve()
    with pytest.raises(AnalysisError, match="no image with objects"):
        mean.curve()
    mean.add(torch.rand(4, 4), torch.zeros(4, 4, dtype=torch.bool))
    mean.add(torch.rand(4, 4), torch.ones(4, 4, dtype=torch.bool))
    assert (mean.images, mean.skipped) == (0, 2)
    with pytest.raises(AnalysisError, match="no image with objects"):
        mean.mean_area()
    with pytest.raises(AnalysisError, match=r"scores lie in \[0, 3\]"):
        mean.add(torch.tensor([0.0, 3.0]), mask(1, 0))


def _trace(batch: ImageBatch, memory: list[torch.Tensor], boxes: list[torch.Tensor] | None) -> Trace:
    targets = None if boxes is None else [{"boxes": b, "labels": torch.zeros(len(b)).long()} for b in boxes]
    return Trace(batch, targets, memory, [], (8,), None, {}, {}, {}, [])


def test_a_trace_is_added_image_by_image_without_its_padding():
    batch = ImageBatch.from_images([torch.zeros(3, 32, 32), torch.zeros(3, 32, 16)])
    memory = [torch.rand(2, 4, 4, 4)]
    boxes = [torch.tensor([[2.0, 2.0, 20.0, 20.0]]), torch.tensor([[0.0, 4.0, 9.0, 30.0]])]
    mean, by_hand = MeanCurve(), MeanCurve()
    mean.add_trace(_trace(batch, memory, boxes))
    maps = discriminability(memory, (32, 32), batch.pad_mask)
    by_hand.add(maps[0, 0], foreground_from_boxes(boxes[0], (32, 32)))
    by_hand.add(maps[1, 0, :, :16], foreground_from_boxes(boxes[1], (32, 16)))
    assert torch.equal(mean.curve().iof, by_hand.curve().iof)
    assert mean.mean_area() == by_hand.mean_area()
    with pytest.raises(AnalysisError, match="has no targets"):
        mean.add_trace(_trace(batch, memory, None))


def test_pooled_pixels_weigh_images_by_their_pixels():
    small, large = torch.tensor([0.2, 0.9]), torch.tensor([0.3, 0.3, 0.8, 0.1])
    pooled, mean = MeanCurve(near_both_ends(), pooled=True), MeanCurve(near_both_ends())
    for curve in (pooled, mean):
        curve.add(small, mask(0, 1))
        curve.add(large, mask(1, 1, 1, 0))
    whole = MeanCurve(near_both_ends())
    whole.add(torch.cat([small, large]), mask(0, 1, 1, 1, 1, 0))
    assert torch.allclose(pooled.curve().iof, whole.curve().iof)
    assert torch.allclose(pooled.curve().iob, whole.curve().iob)
    assert not torch.allclose(mean.curve().iof, whole.curve().iof)


def test_masks_are_foreground_where_there_are_any():
    masks = torch.zeros(1, 3, 3, dtype=torch.bool)
    masks[0, 1, 1] = True
    target = {"boxes": torch.tensor([[0.0, 0.0, 2.0, 2.0]]), "labels": torch.tensor([0]), "masks": masks}
    assert foreground(target, (4, 5)).sum() == 4
    assert foreground(target, (4, 5), masks=True).nonzero().tolist() == [[1, 1]]
    del target["masks"]
    assert foreground(target, (4, 5), masks=True).sum() == 4


def test_the_curve_is_read_off_at_any_background_share():
    curve = iof_iob_curve(torch.tensor([0.1, 0.2, 0.3, 0.4]), mask(0, 1, 0, 1))
    # IoB reaches 1/2 above 0.1, where both objects' pixels still lie above, and 1 above 0.3
    assert curve.at(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist() == [1, 1, 1, 0.5, 0.5]


def test_thresholds_are_dense_where_scores_are():
    low, high = near_both_ends(), near_one()
    assert (low.diff() > 0).all() and (high.diff() > 0).all()
    assert low[:2].max() < 1.1e-5 and torch.allclose(low + low.flip(0), torch.ones(1024, dtype=torch.float64))
    assert high[0] == 0 and 1 - high[-1] < 1.1e-5
