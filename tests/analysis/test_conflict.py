"""Grad-CAM and the distances between heads: by hand, against plain formulas, and unmoved by batching."""

from __future__ import annotations

import math

import pytest
import torch

from codetr_lab.analysis import (
    AnalysisError,
    RelationMatrix,
    average_distances,
    class_activation_maps,
    grad_cam,
    head_distance,
)
from codetr_lab.analysis.conflict import EPS, normalise
from codetr_lab.models.presets import create_model
from codetr_lab.structures import ImageBatch, Target


def maps(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)[:, None, None, :]


# Eq. 9


def test_distance_by_hand():
    a, b = maps([0.5, 0.5]), maps([0.25, 0.75])
    assert float(head_distance(a, b, eps=0)) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert float(head_distance(b, a, eps=0)) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert float(head_distance(3 * a, 7 * b, eps=0)) == pytest.approx(float(head_distance(a, b, eps=0)))


def test_equal_maps_have_no_distance_and_zeros_cost_a_bounded_amount():
    a = torch.rand(3, 1, 4, 5)
    assert head_distance(a, a).eq(0).all()
    apart = float(head_distance(maps([1.0, 0.0]), maps([0.0, 1.0])))
    assert apart == pytest.approx((1 - EPS / 2) / (1 + EPS) * math.log(2 / EPS + 1), rel=2e-3)
    assert torch.isnan(head_distance(maps([0.0, 0.0]), maps([1.0, 1.0])))
    with pytest.raises(AnalysisError, match="different shapes"):
        head_distance(a, a[:2])


def test_distance_is_pytorchs_kl_divergence():
    a, b = torch.rand(2, 5, 1, 6, 6)
    p, q = ((x.flatten(1) / x.flatten(1).sum(1, keepdim=True) + EPS / 36) / (1 + EPS) for x in (a, b))
    expected = torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(1)
    assert torch.allclose(head_distance(a, b).float(), expected, atol=1e-5)


# Grad-CAM


def test_grad_cam_by_hand():
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # two channels of 1 x 2 cells
    gradient = torch.tensor([[[[1.0, 3.0]], [[-2.0, 0.0]]]])  # means 2 and -1
    # 2 * [1, 2] - [3, -1] = [-1, 5], cut at zero
    found = grad_cam([features], [gradient], torch.zeros(1, 1, 2, dtype=torch.bool))
    assert found.flatten().tolist() == [0, 5]
    twice = grad_cam([features, features], [gradient, None], torch.zeros(1, 1, 2, dtype=torch.bool))
    assert torch.equal(twice, found)


def test_padded_cells_have_no_part():
    features, gradient = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    alone = grad_cam([features], [gradient], torch.zeros(1, 8, 8, dtype=torch.bool))
    wide, wide_gradient = (torch.cat([x, torch.full((1, 3, 4, 2), 9.0)], 3) for x in (features, gradient))
    pad_mask = torch.zeros(1, 8, 12, dtype=torch.bool)
    pad_mask[:, :, 8:] = True
    together = grad_cam([wide], [wide_gradient], pad_mask)
    assert torch.allclose(together[..., :8], alone, atol=1e-6)
    assert together[..., 8:].eq(0).all()


def test_normalised_maps_sum_to_one():
    both = torch.stack([torch.rand(1, 4, 4), torch.zeros(1, 4, 4)])
    assert torch.allclose(normalise(both).sum((1, 2, 3)), torch.tensor([1.0, 0.0]))


# On a model

TARGETS: list[Target] = [
    {"boxes": torch.tensor([[8.0, 10.0, 30.0, 40.0]]), "labels": torch.tensor([0])},
    {"boxes": torch.tensor([[20.0, 10.0, 60.0, 40.0], [4.0, 30.0, 20.0, 60.0]]), "labels": torch.tensor([1, 2])},
]
IMAGES = [torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(n)) for n in range(2)]
DETERMINISTIC = {"num_queries": 12, "faster_rcnn.roi_samples": 400, "faster_rcnn.roi_positive_fraction": 1.0}


@pytest.mark.parametrize("heads", [(), ("atss", "faster_rcnn"), ("retinanet", "fcos", "paa", "gfl")])
def test_every_head_of_a_model_has_a_map(heads: tuple[str, ...]):
    torch.manual_seed(0)
    model = create_model("lab_co_k2", aux_heads=heads, **DETERMINISTIC)
    found = class_activation_maps(model.trace(ImageBatch.from_images(IMAGES), TARGETS, grad=True))
    assert list(found) == ["original", *heads]
    for cam in found.values():
        assert cam.shape == (2, 1, 64, 64)
        assert torch.allclose(cam.sum((1, 2, 3)), torch.ones(2), atol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_map_is_the_gradient_of_the_logits_at_the_positives():
    """The ATSS head alone, recomputed: its own forward pass, its assignment, autograd, the formula."""
    torch.manual_seed(0)
    model = create_model("lab_co_k1", **DETERMINISTIC).eval()
    trace = model.trace(ImageBatch.from_images(IMAGES), TARGETS, grad=True)
    levels = [level.detach().requires_grad_() for level in trace.memory]
    logits = model.heads["atss"](model.pyramid(levels)).logits
    score = sum(
        logits[image, candidate, a.target["labels"][a.gt_index[candidate]]]
        for image, a in enumerate(trace.heads["atss"].assignments)
        for candidate in a.positive.nonzero()[:, 0].tolist()
    )
    gradients = torch.autograd.grad(score, levels)
    expected = torch.zeros(2, 1, 64, 64)
    for level, gradient in zip(levels, gradients, strict=True):
        cam = (gradient.mean((2, 3), keepdim=True) * level).sum(1, keepdim=True).relu()
        expected += torch.nn.functional.interpolate(cam, size=(64, 64), mode="bilinear", align_corners=False)
    expected = expected / expected.sum((1, 2, 3), keepdim=True)
    assert torch.allclose(class_activation_maps(trace)["atss"], expected.detach(), atol=1e-7)


def test_a_batch_gives_the_maps_of_its_images():
    torch.manual_seed(0)
    model = create_model("lab_co_k2", **DETERMINISTIC)
    together = class_activation_maps(model.trace(ImageBatch.from_images(IMAGES), TARGETS, grad=True))
    for number, (image, target) in enumerate(zip(IMAGES, TARGETS, strict=True)):
        alone = class_activation_maps(model.trace(ImageBatch.from_images([image]), [target], grad=True))
        for name in ("original", "atss"):
            assert torch.allclose(alone[name][0], together[name][number], atol=1e-6), name


def test_images_without_objects_have_no_map_and_no_part():
    torch.manual_seed(0)
    model = create_model("lab_co_k1", num_queries=12)
    nothing: Target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    found = class_activation_maps(model.trace(ImageBatch.from_images(IMAGES), [TARGETS[0], nothing], grad=True))
    assert [float(found[name][1].sum()) for name in ("original", "atss")] == [0, 0]
    both, one = RelationMatrix(), RelationMatrix()
    both.add(found)
    one.add({name: cam[:1] for name, cam in found.items()})
    assert both.matrix() == one.matrix()


def test_maps_need_targets_and_the_graph():
    torch.manual_seed(0)
    model = create_model("lab_co_k1", num_queries=12)
    batch = ImageBatch.from_images(IMAGES)
    for trace in (model.trace(batch, TARGETS), model.trace(batch, grad=True)):
        with pytest.raises(AnalysisError, match="needs targets and the graph"):
            class_activation_maps(trace)


# Eq. 9 and 10 over a data set


def test_matrix_and_averages_by_hand():
    relation = RelationMatrix()
    a, b = maps([0.5, 0.5], [0.5, 0.5]), maps([0.25, 0.75], [0.5, 0.5])
    for image in range(2):
        relation.add({"original": a[image : image + 1], "atss": b[image : image + 1]})
    matrix = relation.matrix()
    assert matrix["original"]["atss"] == pytest.approx(float(head_distance(a[:1], b[:1])) / 2)
    assert matrix["atss"]["original"] == pytest.approx(float(head_distance(b[:1], a[:1])) / 2)
    assert matrix["atss"]["atss"] == 0
    expected = (matrix["original"]["atss"] + matrix["atss"]["original"]) / 2
    assert average_distances(matrix) == {"atss": pytest.approx(expected)}


def test_averages_are_among_auxiliary_heads_where_there_are_several():
    matrix = {
        "original": {"original": 0.0, "a": 9.0, "b": 9.0, "c": 9.0},
        "a": {"original": 9.0, "a": 0.0, "b": 1.0, "c": 2.0},
        "b": {"original": 9.0, "a": 3.0, "b": 0.0, "c": 4.0},
        "c": {"original": 9.0, "a": 5.0, "b": 6.0, "c": 0.0},
    }
    assert average_distances(matrix) == {"a": 11 / 4, "b": 14 / 4, "c": 17 / 4}
    with pytest.raises(AnalysisError, match="needs two heads"):
        average_distances({"original": {"original": 0.0}})
