"""Queries on the image: each is drawn once, where it is, as what it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import viz_case

from codetr_lab.structures import EMPTY, GROUND_TRUTH, NEGATIVE, PADDING_NEGATIVE, PLAIN, POSITIVE, QueryGroup
from codetr_lab.viz import layers_figure, query_figure, sampling_figure
from codetr_lab.viz.queries import pixel_boxes, query_objects, refinement

SIZE = (40, 60)


def group(name: str, kinds: list[int], owners: list[int], traced: bool = True) -> QueryGroup:
    """Two layers, one image; query q lies at x = 5 + 7q."""
    count = len(kinds)
    boxes = torch.full((2, 1, count, 4), 0.2)
    boxes[..., 0] = (torch.arange(count) * 7 + 5) / SIZE[1]
    boxes[1, ..., 1] = 0.6
    assignment = viz_case.assignment(gt_index=torch.tensor(owners))
    generator = torch.Generator().manual_seed(0)
    return QueryGroup(
        name, boxes, torch.linspace(-2, 2, count).expand(2, 1, count)[..., None].expand(-1, -1, -1, 3).clone(),
        boxes + 0.01, torch.tensor([kinds]), [[assignment], [assignment]],
        torch.rand(2, 1, count, 2, 3, 4, 2, generator=generator) if traced else None,
        torch.rand(2, 1, count, 2, 3, 4, generator=generator).flatten(4).softmax(-1).unflatten(4, (3, 4))
        if traced else None,
    )  # fmt: skip


@pytest.fixture
def groups() -> dict[str, QueryGroup]:
    return {
        "original": group("original", [PLAIN] * 5, [0, NEGATIVE, 1, NEGATIVE, NEGATIVE]),
        "faster_rcnn": group(
            "faster_rcnn", [POSITIVE, GROUND_TRUTH, POSITIVE, PADDING_NEGATIVE, EMPTY], [0, 0, 1, NEGATIVE, NEGATIVE]
        ),
    }


def drawn(figure) -> dict[str, list[int]]:
    return {
        trace.name: viz_case.array(trace.customdata)[:, 0].astype(int).tolist()
        for trace in figure.data
        if trace.customdata is not None
    }


def test_every_kind_is_drawn_as_itself(groups: dict[str, QueryGroup]) -> None:
    figure = query_figure(viz_case.picture(), groups, SIZE, target=viz_case.target())
    assert drawn(figure) == {
        "DETR decoder: unmatched · 3": [1, 3, 4],
        "DETR decoder: matched · 2": [0, 2],
        "Faster R-CNN: positive · 2": [0, 2],
        "Faster R-CNN: ground-truth box · 1": [1],
        "Faster R-CNN: padding negative · 1": [3],
    }
    matched = next(t for t in figure.data if t.name == "DETR decoder: matched · 2")
    np.testing.assert_allclose(matched.x, [5, 19], rtol=1e-6)
    np.testing.assert_allclose(matched.y, [8, 8], rtol=1e-6)
    padding = next(t for t in figure.data if t.name and "padding negative" in t.name)
    assert padding.marker.symbol == "x-thin"


def test_layers_objects_and_choice(groups: dict[str, QueryGroup]) -> None:
    last = query_figure(viz_case.picture(), groups, SIZE, layer=-1)
    np.testing.assert_allclose(next(t for t in last.data if t.customdata is not None).y, 40 * 0.61, rtol=1e-5)
    about = query_figure(viz_case.picture(), groups, SIZE, target=viz_case.target(), object_index=1)
    assert drawn(about) == {"DETR decoder: matched · 1": [2], "Faster R-CNN: positive · 1": [2]}
    chosen = query_figure(viz_case.picture(), groups, SIZE, selected=("original", 4))
    assert "chosen query" in [t.name for t in chosen.data]
    with pytest.raises(ValueError, match="object 2: this image has 2 objects"):
        query_figure(viz_case.picture(), groups, SIZE, target=viz_case.target(), object_index=2)
    with pytest.raises(ValueError, match="query 9: the group 'original' has 5 queries"):
        query_figure(viz_case.picture(), groups, SIZE, selected=("original", 9))


def test_sampling_points_lie_where_the_layer_read(groups: dict[str, QueryGroup]) -> None:
    original = groups["original"]
    figure = sampling_figure(viz_case.picture(), original, 2, 1, SIZE, (64, 64), strides=(8, 16, 32))
    points = [t for t in figure.data if t.mode == "markers"]
    assert [t.name.split(" · ")[0] for t in points] == ["stride 8", "stride 16", "stride 32"]
    where = original.sampling_locations[1, 0, 2, :, 0].reshape(-1, 2).numpy() * 64
    np.testing.assert_allclose(np.stack([points[0].x, points[0].y], 1), where, rtol=1e-5)
    np.testing.assert_allclose(points[0].marker.size, original.attention_weights[1, 0, 2, :, 0].flatten())
    shares = [int(t.name.split(" · ")[1].rstrip("%")) for t in points]
    assert sum(shares) == pytest.approx(100, abs=2)
    one = sampling_figure(viz_case.picture(), original, 2, 1, SIZE, (64, 64), head=1, level=2)
    assert [len(t.x) for t in one.data if t.mode == "markers"] == [4]
    with pytest.raises(ValueError, match="holds no sampling points"):
        sampling_figure(viz_case.picture(), group("atss", [POSITIVE], [0], traced=False), 0, 0, SIZE, SIZE)
    with pytest.raises(ValueError, match="query 0 of layer 2"):
        sampling_figure(viz_case.picture(), original, 0, 2, SIZE, SIZE)


def test_refinement_tells_every_layer(groups: dict[str, QueryGroup]) -> None:
    rows = refinement(groups["original"], 2, SIZE, viz_case.target())
    assert [row["object"] for row in rows] == [1, 1]
    assert rows[0]["score"] == pytest.approx(float(groups["original"].logits[0, 0, 2].sigmoid().max()))
    assert np.isnan(refinement(groups["original"], 2, SIZE, None)[0]["iou"])


def test_centres_alone_become_empty_boxes() -> None:
    np.testing.assert_allclose(pixel_boxes(np.array([[0.5, 0.25]]), SIZE), [[30, 10, 30, 10]])
    bare = QueryGroup("original", *(torch.zeros(1, 1, 3, 4),) * 3, torch.zeros(1, 3, dtype=torch.long))
    assert query_objects(bare, 0).tolist() == [-1, -1, -1]


def test_all_layers_share_one_legend_without_shares(groups: dict[str, QueryGroup]) -> None:
    figure = layers_figure(viz_case.picture(), groups["original"], 1, SIZE, SIZE, strides=(8, 16, 32))
    assert [note.text for note in figure.layout.annotations] == ["<b>layer 1</b>", "<b>layer 2</b>"]
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert named == ["reference box", "refined box", "stride 8", "stride 16", "stride 32"]
    assert {trace.xaxis for trace in figure.data} == {"x", "x2"}
