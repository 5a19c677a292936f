"""Query positions and distances, worked out by hand on a trace put together from a few boxes."""

from __future__ import annotations

import math

import pytest
import torch

from codetr_lab.analysis import (
    AnalysisError,
    QueryDistances,
    query_distances,
    query_positions,
    relative,
    relative_positions,
)
from codetr_lab.models.presets import create_model
from codetr_lab.structures import (
    EMPTY,
    GROUND_TRUTH,
    PADDING_NEGATIVE,
    PLAIN,
    POSITIVE,
    Assignment,
    Candidates,
    ImageBatch,
    Quality,
    QueryGroup,
    Target,
    Trace,
)

# Objects of 20 x 10 pixels around (20, 20) and of 10 x 10 around (60, 50), in an image of 80 x 100.
TARGET: Target = {
    "boxes": torch.tensor([[10.0, 15.0, 30.0, 25.0], [55.0, 45.0, 65.0, 55.0]]),
    "labels": torch.tensor([0, 1]),
}


def group(name: str, centres: list[tuple[float, float]], gt_index: list[int], kinds: list[int]) -> QueryGroup:
    count = len(centres)
    reference = torch.tensor([[x / 100, y / 80, 0.1, 0.1] for x, y in centres])
    # the second layer reads other boxes: all in the middle
    references = torch.stack([reference, torch.full((count, 4), 0.5)])[:, None]
    made = Assignment(
        Candidates.of_boxes(torch.zeros(count, 4)), TARGET, torch.tensor(gt_index), torch.ones(count, dtype=torch.bool),
        Quality("cost", False), torch.zeros(2), "by hand",
    )  # fmt: skip
    return QueryGroup(name, references, references, references, torch.tensor([kinds]), [[made]] * 2)


def trace(*groups: QueryGroup, targets: list[Target] | None = None) -> Trace:
    batch = ImageBatch.from_images([torch.zeros(3, 80, 100)], divisor=64)
    named = {g.name: g for g in groups}
    return Trace(batch, [TARGET] if targets is None else targets, [], [], (), None, named, {}, {}, [])


ORIGINAL = group("original", [(20, 20), (62, 50), (90, 20)], [0, 1, -1], [PLAIN] * 3)
ATSS = group(
    "atss",
    [(30, 20), (20, 25), (60, 50), (5, 5), (4, 4)],
    [0, 0, 1, -1, -1],
    [POSITIVE, POSITIVE, POSITIVE, PADDING_NEGATIVE, EMPTY],
)
RCNN = group("faster_rcnn", [(20, 20), (22, 20)], [0, 0], [GROUND_TRUTH, POSITIVE])


def test_relative_positions_are_in_sizes_of_the_own_object():
    found = relative_positions(trace(ORIGINAL, ATSS, RCNN))
    assert found.keys() == {
        ("original", "original positive"), ("atss", "positive"), ("faster_rcnn", "ground-truth box"),
        ("faster_rcnn", "positive"),
    }  # fmt: skip
    torch.testing.assert_close(found["original", "original positive"], torch.tensor([[0, 0], [0.2, 0]]))
    torch.testing.assert_close(found["atss", "positive"], torch.tensor([[0.5, 0], [0, 0.5], [0, 0]]))


def test_distances_by_hand():
    found = query_distances(trace(ORIGINAL, ATSS, RCNN))
    # atss: (30,20) is half a width from (20,20); (20,25) half a height; (60,50) 0.2 widths from (62,50).
    assert found["atss"].keys() == {"positive"}
    assert found["atss"]["positive"]["original positive"] == pytest.approx((0.5 + 0.5 + 0.2) / 3)
    # the negative at (90,20): 60/20 from the first, (70/20, 5/10) from the second, (30/10, 30/10) from the third
    expected = (3 + math.hypot(3.5, 0.5) + math.hypot(3, 3)) / 3
    assert found["atss"]["positive"]["original negative"] == pytest.approx(expected)
    assert found["faster_rcnn"]["ground-truth box"]["original positive"] == 0
    assert found["faster_rcnn"]["positive"]["original positive"] == pytest.approx(0.1)


def test_another_layer_reads_other_boxes():
    found = query_distances(trace(ORIGINAL, ATSS), layer=1)
    assert found["atss"]["positive"] == {"original positive": 0, "original negative": 0}


def test_many_traces_weigh_pairs():
    distances = QueryDistances()
    distances.add(trace(ORIGINAL, ATSS))
    distances.add(trace(ORIGINAL, group("atss", [(20, 20)], [0], [POSITIVE])))
    assert distances.result()["atss"]["positive"]["original positive"] == pytest.approx((0.5 + 0.5 + 0.2 + 0) / 4)


def test_positions_are_pixels_by_sort():
    points = query_positions(trace(ORIGINAL, ATSS, RCNN))
    assert [(p.group, p.kind, len(p)) for p in points] == [
        ("original", "original positive", 2), ("original", "original negative", 1), ("atss", "positive", 3),
        ("atss", "padding negative", 1), ("faster_rcnn", "positive", 1), ("faster_rcnn", "ground-truth box", 1),
    ]  # fmt: skip
    assert torch.allclose(points[0].centres, torch.tensor([[20.0, 20.0], [62.0, 50.0]]))
    assert points[2].gt_index.tolist() == [0, 0, 1]
    inside = relative(points[2].centres, TARGET["boxes"][points[2].gt_index])
    assert torch.allclose(inside, torch.tensor([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]]), atol=1e-5)


def test_a_match_without_counterpart_gives_no_number():
    lonely = group("original", [(90, 20)], [-1], [PLAIN])
    found = query_distances(trace(lonely, ATSS))["atss"]["positive"]
    assert math.isnan(found["original positive"])
    assert found["original negative"] > 1


def test_it_needs_targets_and_a_decoder():
    bare = Trace(ImageBatch.from_images([torch.zeros(3, 8, 8)]), None, [], [], (), None, {}, {}, {}, [])
    with pytest.raises(AnalysisError, match="need a decoder and targets"):
        query_positions(bare)


def test_a_batch_counts_as_its_images_alone():
    torch.manual_seed(0)
    model = create_model("lab_co_k1", num_queries=12, **{"queries.minimum": 0, "queries.padding": "empty"})
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(3, 64, 64, generator=generator) for _ in range(2)]
    targets: list[Target] = [
        {"boxes": torch.tensor([[8.0, 10.0, 30.0, 40.0]]), "labels": torch.tensor([0])},
        {"boxes": torch.tensor([[20.0, 10.0, 60.0, 40.0], [4.0, 30.0, 20.0, 60.0]]), "labels": torch.tensor([1, 2])},
    ]
    together, alone = QueryDistances(), QueryDistances()
    together.add(model.trace(ImageBatch.from_images(images), targets))
    for image, target in zip(images, targets, strict=True):
        alone.add(model.trace(ImageBatch.from_images([image]), [target]))
    expected = alone.result()["atss"]["positive"]
    assert together.result()["atss"]["positive"] == pytest.approx(expected, rel=1e-4)
