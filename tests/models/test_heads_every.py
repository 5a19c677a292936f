"""What every auxiliary head does alike."""

from __future__ import annotations

import pytest
import torch
from head_case import CONFIG, EMPTY, STRIDES, TARGETS, batch, check_gradients, pyramid, target

from codetr_lab import boxes as box_ops
from codetr_lab.models.config import override
from codetr_lab.models.heads import HEADS, AuxHead
from codetr_lab.structures import GROUND_TRUTH

LOSSES = {
    "atss": {"classification", "box", "centerness"},
    "retinanet": {"classification", "box"},
    "fcos": {"classification", "box", "centerness"},
    "paa": {"classification", "box", "iou"},
    "gfl": {"classification", "box", "distribution"},
    "faster_rcnn": {"rpn_classification", "rpn_box", "roi_classification", "roi_box"},
    "mask_rcnn": {"rpn_classification", "rpn_box", "roi_classification", "roi_box", "mask"},
}
every_head = pytest.mark.parametrize("kind", HEADS)


def make(kind: str, **changes: object) -> AuxHead:
    torch.manual_seed(0)
    return HEADS[kind](override(CONFIG, **changes), STRIDES, kind)


def test_every_head_is_here() -> None:
    assert set(LOSSES) == set(HEADS)


@every_head
def test_the_same_losses_with_and_without_objects_reach_every_parameter(kind: str) -> None:
    head = make(kind)
    output = head.supervise(pyramid(), batch(), TARGETS)
    assert output.losses.keys() == LOSSES[kind] and output.name == kind
    check_gradients(head, output, finite_only=True)
    untouched = {name for name, parameter in head.named_parameters() if not parameter.grad.any()}
    assert untouched <= {"scales.2.scale", "scales.3.scale"}  # no object is large enough for the coarsest levels
    some = head.supervise(pyramid(), batch(), [TARGETS[0], EMPTY[1]])
    check_gradients(head, some, finite_only=True)
    none = head.supervise(pyramid(), batch(), EMPTY)
    check_gradients(head, none, finite_only=True)
    assert none.losses.keys() == some.losses.keys() == LOSSES[kind]
    assert [len(positives) for positives in none.positives] == [0, 0]
    assert not any(assignment.positive.any() for assignment in none.assignments)


@every_head
def test_losses_carry_the_factor_of_the_decoder(kind: str) -> None:
    once, twice = (
        make(kind, lambda_2=weight).supervise(pyramid(), batch(), TARGETS, torch.Generator().manual_seed(0)).losses
        for weight in (1.0, 2.0)
    )
    for name, value in once.items():
        assert twice[name].item() == pytest.approx(2 * value.item(), rel=1e-5), name


@every_head
def test_positives_are_where_the_assignment_says(kind: str) -> None:
    head, levels = make(kind), pyramid()
    output = head.supervise(levels, batch(), TARGETS)
    for positives, assignment, truth in zip(output.positives, output.assignments, TARGETS, strict=True):
        index = (assignment.positive & assignment.used).nonzero()[:, 0]
        assert len(positives) == len(index) > 0
        assert torch.equal(positives.boxes, assignment.candidates.boxes[index])
        assert torch.equal(positives.gt_index, assignment.gt_index[index])
        assert torch.equal(positives.target_boxes, truth["boxes"][positives.gt_index])
        assert torch.equal(positives.labels, truth["labels"][positives.gt_index])
        assert positives.features.shape == (len(index), 32) and len(positives.negative_boxes) > 0
        assert (positives.kind == GROUND_TRUTH).any() == (kind in ("faster_rcnn", "mask_rcnn"))
        assert "positive for object" in assignment.explain(int(index[-1]))


@pytest.mark.parametrize("kind", [kind for kind in HEADS if not kind.endswith("rcnn")])
def test_a_positive_carries_the_token_of_its_cell(kind: str) -> None:
    head, levels = make(kind), pyramid()
    output = head.supervise(levels, batch(), TARGETS)
    for image, positives in enumerate(output.positives):
        centre = (positives.boxes[:, :2] + positives.boxes[:, 2:]) / 2
        for n, level in enumerate(positives.level.tolist()):
            x, y = (centre[n] / STRIDES[level]).floor().long().tolist()
            assert torch.equal(positives.features[n], levels[level][image, :, y, x])


@every_head
def test_detections_are_clipped_sorted_suppressed_and_named(kind: str) -> None:
    head = make(kind)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if "cls" in name and name.endswith("weight"):
                parameter.mul_(30)
    images = batch((128, 128), (64, 80))
    for detections, (height, width) in zip(head.predict(pyramid(), images), images.valid_sizes, strict=True):
        assert 0 < len(detections) <= 100
        assert (detections.scores[1:] <= detections.scores[:-1]).all()
        assert (detections.boxes >= 0).all() and not detections.boxes.requires_grad
        assert (detections.boxes[:, [0, 2]] <= width).all() and (detections.boxes[:, [1, 3]] <= height).all()
        if kind != "paa":  # whose voting moves boxes after the NMS
            same = detections.labels[:, None] == detections.labels
            overlap = box_ops.iou(detections.boxes[:, None], detections.boxes).fill_diagonal_(0)
            assert (overlap * same).max() <= 0.6
        assert (detections.masks is not None) == (kind == "mask_rcnn")


@every_head
def test_crowds_are_background(kind: str) -> None:
    crowd = TARGETS[0] | {"iscrowd": torch.tensor([0, 1])}
    output = make(kind).supervise(pyramid(1), batch((128, 128)), [crowd])
    assert set(output.positives[0].gt_index.tolist()) == {0}


@every_head
def test_losses_in_reduced_precision_are_float32_and_near(kind: str) -> None:
    head = make(kind)
    exact = head.supervise(pyramid(), batch(), TARGETS, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rough = head.supervise(pyramid(), batch(), TARGETS, torch.Generator().manual_seed(0))
        assert len(head.predict(pyramid(), batch())) == 2
    for name, value in rough.losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact.losses[name].item(), rel=0.1, abs=0.05), name


@every_head
def test_an_image_is_learned_by_heart(kind: str) -> None:
    """Head and features are trained together: the losses fall, and the objects are the best detections."""
    head, truth = make(kind, lambda_2=1 / 3), target([10, 12, 50, 40], [60, 60, 110, 120])
    levels = [level.requires_grad_() for level in pyramid(1)]
    optimizer = torch.optim.Adam([{"params": list(head.parameters())}, {"params": levels, "lr": 0.06}], lr=6e-3)
    generator, totals = torch.Generator().manual_seed(0), []
    for _ in range(70):
        total = sum(head.supervise(levels, batch((128, 128)), [truth], generator).losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert sum(totals[-5:]) < 0.45 * sum(totals[:5])  # centerness keeps its entropy
    (found,) = head.predict([level.detach() for level in levels], batch((128, 128)))
    best = found.select(torch.arange(2))
    assert sorted(best.labels.tolist()) == [0, 1]
    order = best.labels.argsort()
    assert box_ops.iou(best.boxes[order], truth["boxes"]).min() > 0.8
    if best.masks is not None:
        masks, goal = best.masks[order], truth["masks"]
        assert ((masks & goal).sum((1, 2)) / (masks | goal).sum((1, 2))).min() > 0.75
