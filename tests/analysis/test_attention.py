"""Attention maps: the transpose of sampling, by hand, against the operator, and unmoved by padding and batching."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from codetr_lab.analysis import AnalysisError, MeanCurve, cross_attention, iof_iob_curve, matched_queries, splat
from codetr_lab.analysis.discriminability import foreground, near_both_ends
from codetr_lab.models.presets import create_model
from codetr_lab.ops import ms_deform_attn
from codetr_lab.structures import ImageBatch, QueryGroup, Trace


def points(*xy: tuple[float, float]) -> torch.Tensor:
    """One image, one query, one head, one level."""
    return torch.tensor(xy)[None, None, None, None]


def test_a_point_is_shared_among_the_four_cells_around_it():
    # On a 2 x 4 map, x = 0.5 lies between the centres of the second and third column; y = 0.25 on the first row's.
    (whole,) = splat(points((0.5, 0.25)), torch.ones(1, 1, 1, 1, 1), [(2, 4)])
    assert torch.allclose(whole[0, 0], torch.tensor([[0, 0.5, 0.5, 0], [0, 0, 0, 0]]))
    (quarter,) = splat(points((0.5, 0.5)), torch.ones(1, 1, 1, 1, 1), [(2, 2)])
    assert torch.allclose(quarter, torch.full((1, 1, 2, 2), 0.25))


def test_weights_add_up_and_what_lies_outside_is_lost():
    weights = torch.tensor([0.7, 0.2, 0.1])[None, None, None, None]
    (inside,) = splat(points((0.25, 0.25), (0.25, 0.25), (2.0, 0.5)), weights, [(2, 2)])
    assert torch.allclose(inside[0, 0], torch.tensor([[0.9, 0], [0, 0]]), atol=1e-6)
    (edge,) = splat(points((0.0, 0.25)), torch.ones(1, 1, 1, 1, 1), [(2, 2)])  # half of it falls off the map
    assert torch.allclose(edge[0, 0], torch.tensor([[0.5, 0], [0, 0]]))


def test_splatting_is_the_transpose_of_deformable_attention():
    """The map times any value is what the operator reads of that value."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (3, 4)]
    locations = torch.rand(2, 6, 4, 2, 3, 2, generator=generator) * 1.4 - 0.2
    weights = torch.rand(2, 6, 4, 2, 3, generator=generator)
    value = torch.randn(2, 5 * 7 + 3 * 4, 1, 1, generator=generator)
    read = ms_deform_attn(value.expand(-1, -1, 4, 1).contiguous(), shapes, locations, weights, backend="reference")
    maps = torch.cat([level.flatten(1) for level in splat(locations, weights, shapes)], 1)
    assert torch.allclose((maps * value[..., 0, 0]).sum(1), read.sum((1, 2)), rtol=1e-4, atol=1e-4)


# On traces


def made(*sizes: tuple[int, int], divisor: int = 32) -> Trace:
    torch.manual_seed(0)
    model = create_model("lab_co_k1", num_queries=12)
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(3, *size, generator=generator) for size in sizes]
    boxes = torch.tensor([[8.0, 10.0, 30.0, 40.0], [34.0, 4.0, 60.0, 30.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([0, 3])} for _ in sizes]
    return model.trace(ImageBatch.from_images(images, divisor=divisor), targets)


@pytest.fixture(scope="module")
def pair() -> Trace:
    return made((64, 64), (96, 64))


def test_maps_are_scores_in_the_image(pair: Trace):
    for layer in (0, -1):
        maps = cross_attention(pair, layer=layer)
        assert maps.shape == (2, 1, 96, 64)
        assert maps.min() >= 0
        assert torch.allclose(maps.amax((1, 2, 3)), torch.ones(2))
        assert maps[pair.batch.pad_mask[:, None]].eq(0).all()
    assert not torch.equal(cross_attention(pair, layer=0), cross_attention(pair, layer=1))
    assert cross_attention(pair, "atss").amax() == 1


def test_queries_can_be_chosen_and_add_up(pair: Trace):
    group = pair.groups["original"]
    matched = matched_queries(group)
    assert matched.sum(1).tolist() == [2, 2]
    assert torch.equal(cross_attention(pair), cross_attention(pair, queries=matched))
    everything = torch.ones_like(matched)
    assert torch.equal(cross_attention(pair, queries="all"), cross_attention(pair, queries=everything))
    assert cross_attention(pair, queries=~everything).eq(0).all()


def test_the_batch_and_its_padding_change_nothing():
    """A trace that is put together by hand: the same points, told in units of a larger, padded map."""
    generator = torch.Generator().manual_seed(3)
    where = torch.rand(1, 1, 5, 2, 1, 4, 2, generator=generator) * 0.8 + 0.1
    weight = torch.rand(1, 1, 5, 2, 1, 4, generator=generator)
    none = torch.zeros(1, 1, 5, 4)

    def trace(size: int, padded: int) -> Trace:
        batch = ImageBatch.from_images([torch.zeros(3, size, size)], divisor=padded)
        group = QueryGroup("original", none, none, none, none[0, ..., 0], [], where * size / padded, weight)
        memory = [torch.zeros(1, 2, padded // 8, padded // 8)]
        return Trace(batch, None, memory, [], (8,), None, {"original": group}, {}, {}, [])

    alone, together = (cross_attention(trace(64, padded), queries="all") for padded in (64, 128))
    assert torch.allclose(alone[0, 0], together[0, 0, :64, :64], atol=1e-5)


def test_attention_on_objects_has_the_larger_area():
    """Points inside the object against points spread evenly."""
    boxes = torch.tensor([[16.0, 16.0, 48.0, 48.0]])
    none = torch.zeros(1, 1, 1, 4)
    areas = []
    for low, high in ((0.3, 0.7), (0.0, 1.0)):
        generator = torch.Generator().manual_seed(0)
        where = torch.rand(1, 1, 1, 1, 1, 400, 2, generator=generator) * (high - low) + low
        weight = torch.full((1, 1, 1, 1, 1, 400), 1 / 400)
        group = QueryGroup("original", none, none, none, none[0, ..., 0], [], where, weight)
        batch = ImageBatch.from_images([torch.zeros(3, 64, 64)])
        trace = Trace(batch, None, [torch.zeros(1, 1, 16, 16)], [], (4,), None, {"original": group}, {}, {}, [])
        score = cross_attention(trace, queries="all")[0, 0]
        areas.append(iof_iob_curve(score, foreground({"boxes": boxes}, (64, 64))).area())
    assert areas[0] > 0.99
    assert 0.3 < areas[1] < 0.6


def test_the_mean_curve_takes_attention(pair: Trace):
    curve = MeanCurve(near_both_ends())
    curve.add_trace(pair, cross_attention(pair))
    assert curve.images == 2
    assert abs(curve.curve().area() - curve.mean_area()) < 0.2


def test_what_cannot_be_asked_for_is_said(pair: Trace):
    with pytest.raises(AnalysisError, match="no group 'fcos'; it has original, atss"):
        cross_attention(pair, "fcos")
    bare = replace(pair.groups["original"], assignments=[])
    with pytest.raises(AnalysisError, match="no assignments; call"):
        cross_attention(replace(pair, groups={"original": bare}))
    untraced = replace(bare, sampling_locations=None)
    with pytest.raises(AnalysisError, match="not recorded"):
        cross_attention(replace(pair, groups={"original": untraced}))
    with pytest.raises(AnalysisError, match=r"shape \(1, 3\), the group \(2, 12\)"):
        cross_attention(pair, queries=torch.ones(1, 3))
    with pytest.raises(AnalysisError, match="'matched', 'all' or a mask"):
        cross_attention(pair, queries="some")  # type: ignore[arg-type]
