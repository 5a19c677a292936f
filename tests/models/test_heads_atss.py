"""The ATSS head."""

from __future__ import annotations

import math

import pytest
import torch
from golden_case import SIZES, Golden
from golden_case import batch as golden_batch
from golden_case import targets as golden_targets
from head_case import CONFIG, EMPTY, STRIDES, TARGETS, batch, check_gradients, pyramid, target

from codetr_lab import boxes as box_ops
from codetr_lab import draws
from codetr_lab.assign import atss
from codetr_lab.models.config import CoDETRConfig, override
from codetr_lab.models.heads.atss import STDS, ATSSHead
from codetr_lab.models.heads.dense import Dense, centerness_target
from codetr_lab.structures import POSITIVE


@pytest.fixture
def head() -> ATSSHead:
    torch.manual_seed(0)
    return ATSSHead(CONFIG, STRIDES)


@pytest.mark.parametrize("case", SIZES)
def test_released_assignment(case: str) -> None:
    golden, images = Golden(f"train_co_deformable_detr_r50_1x_coco_{case}"), golden_batch(case)
    config, count = CoDETRConfig(), len(images)
    shapes = [(count, 256, 32, 40), (count, 256, 16, 20), (count, 256, 8, 10), (count, 256, 4, 5), (count, 256, 2, 3)]
    strides = (8, 16, 32, 64, 128)
    anchors = ATSSHead(config, strides).anchors([torch.zeros(1).expand(shape) for shape in shapes], images)
    for image, truth in enumerate(golden_targets(golden, case)):
        found = atss(anchors.candidates(image), truth, top_k=config.atss.top_k)
        where = f"aux1_atss/{image}"
        assert found.positive.nonzero()[:, 0].tolist() == golden[f"{where}/pos_inds"].tolist()
        assert found.candidates.boxes[found.positive].tolist() == golden[f"{where}/pos_coords"].tolist()
        assert found.target_boxes[found.positive].tolist() == golden[f"{where}/pos_targets"].tolist()
        assert found.labels[found.positive].tolist() == golden[f"{where}/pos_labels"].tolist()
        assert len(found.candidates) == int(golden[f"{where}/n_candidates"][0])


def test_released_initial_values() -> None:
    head = ATSSHead(override(CoDETRConfig(), num_classes=6), (8, 16))
    for conv in (head.cls_convs[0].conv, head.reg_convs[0].conv, head.atss_cls, head.atss_reg, head.atss_centerness):
        assert float(conv.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert head.cls_convs[0].conv.bias is None
    assert head.atss_cls.bias.tolist() == pytest.approx([math.log(0.01 / 0.99)] * 6)
    assert head.atss_reg.bias.tolist() == [0] * 4 and head.atss_centerness.bias.tolist() == [0]
    assert [scale.scale.item() for scale in head.scales] == [1, 1]


def test_forward_equals_one_convolution_after_the_other(head: ATSSHead) -> None:
    levels = pyramid()
    with torch.no_grad():
        for index, scale in enumerate(head.scales):
            scale.scale.fill_(index + 0.5)
        logits, deltas, centerness = head(levels)
        level, start = 1, 16 * 16
        reg = head.reg_convs[0](levels[level])
        expected = head.atss_reg(reg) * 1.5
        assert torch.allclose(deltas[:, start + 3 * 8 + 5], expected[:, :, 3, 5], atol=1e-6)
        assert torch.allclose(centerness[:, start + 3 * 8 + 5], head.atss_centerness(reg)[:, 0, 3, 5], atol=1e-6)
        expected = head.atss_cls(head.cls_convs[0](levels[level]))
        assert torch.allclose(logits[:, start + 3 * 8 + 5], expected[:, :, 3, 5], atol=1e-6)


def test_losses_of_an_image_by_hand(head: ATSSHead) -> None:
    output = head.supervise(pyramid(1), batch((128, 128)), TARGETS[:1])
    logits, deltas, centerness = (value.detach()[0] for value in head(pyramid(1)))
    found = output.assignments[0]
    positive = found.positive.nonzero()[:, 0]
    factor = 2.0 * 3  # lambda_2, decoder layers
    focal = 0.0
    for index in range(len(logits)):
        for label in range(6):
            p = float(logits[index, label].double().sigmoid())
            if int(found.labels[index]) == label:
                focal += -0.25 * (1 - p) ** 2 * math.log(p)
            else:
                focal += -0.75 * p**2 * math.log(1 - p)
    assert output.losses["classification"].item() == pytest.approx(factor * focal / len(positive), rel=1e-4)

    goal = centerness_target(found.candidates.boxes[positive], found.target_boxes[positive])
    decoded = box_ops.decode_deltas(found.candidates.boxes[positive], deltas[positive], STDS)
    giou = 1 - box_ops.giou(decoded, found.target_boxes[positive])
    box = factor * 2 * float((giou * goal).sum()) / max(1.0, float(goal.sum()))
    assert output.losses["box"].item() == pytest.approx(box, rel=1e-5)
    p = centerness[positive].sigmoid()
    entropy = -(goal * p.log() + (1 - goal) * (1 - p).log()).sum()
    assert output.losses["centerness"].item() == pytest.approx(factor * float(entropy) / len(positive), rel=1e-5)


def test_centerness_is_one_in_the_middle() -> None:
    box = torch.tensor([[0.0, 0, 10, 20]]).expand(3, 4)
    anchors = torch.tensor([[4.0, 9, 6, 11], [0, 0, 4, 20], [1.5, 4, 3.5, 6]])
    expected = [1.0, math.sqrt(2 / 8), math.sqrt(2.5 / 7.5 * 5 / 15)]
    assert centerness_target(anchors, box).tolist() == pytest.approx(expected)


def test_positives_carry_the_tokens_of_their_cells(head: ATSSHead) -> None:
    levels = pyramid()
    output = head.supervise(levels, batch(), TARGETS, torch.Generator().manual_seed(0))
    flat = torch.cat([level.flatten(2) for level in levels], 2)
    for image, (positives, assignment) in enumerate(zip(output.positives, output.assignments, strict=True)):
        index = assignment.positive.nonzero()[:, 0]
        assert len(positives) == len(index) > 0
        assert (positives.features == flat[image, :, index].T).all()
        assert (positives.boxes == assignment.candidates.boxes[index]).all()
        assert (positives.level == assignment.candidates.level[index]).all()
        assert (positives.target_boxes == TARGETS[image]["boxes"][positives.gt_index]).all()
        assert (positives.labels == TARGETS[image]["labels"][positives.gt_index]).all()
        assert (positives.kind == POSITIVE).all()
        assert positives.negative_boxes.shape == (40, 4) and positives.negative_features.shape == (40, 32)


def test_features_reach_the_pyramid(head: ATSSHead) -> None:
    levels = pyramid(grad=True)
    output = head.supervise(levels, batch(), TARGETS)
    gradient = torch.autograd.grad(output.positives[0].features.sum(), levels, allow_unused=True)
    assert gradient[0].sum() > 0


def test_anchors_in_the_padding_are_no_loss_but_spare_boxes_of_zeros(head: ATSSHead) -> None:
    images = batch((128, 128), (64, 80))
    with draws.first_k():
        config = override(CONFIG, **{"queries.maximum": 400})
        wide = ATSSHead(config, STRIDES)
        wide.load_state_dict(head.state_dict())
        output = wide.supervise(pyramid(), images, TARGETS)
    spare, assignment = output.positives[1], output.assignments[1]
    negative = assignment.negative.nonzero()[:, 0]
    valid = assignment.candidates.valid[negative]
    assert not valid.all()
    assert (spare.negative_boxes[~valid] == 0).all()
    assert (spare.negative_boxes[valid] == assignment.candidates.boxes[negative][valid]).all()

    # What the padding holds does not matter to the loss of classification.
    logits, deltas, centerness = wide(pyramid())
    anchors = wide.anchors(pyramid(), images)
    assignments = [atss(anchors.candidates(i), t) for i, t in enumerate(TARGETS)]
    first = wide.losses(Dense(logits, deltas, centerness), anchors, assignments)
    second = wide.losses(Dense(logits + 5 * ~anchors.valid[..., None], deltas, centerness), anchors, assignments)
    assert first["classification"].item() == second["classification"].item()


def test_every_parameter_gets_a_gradient_with_and_without_objects(head: ATSSHead) -> None:
    check_gradients(head, head.supervise(pyramid(), batch(), TARGETS), finite_only=True)
    with_one_empty = head.supervise(pyramid(), batch(), [TARGETS[0], EMPTY[1]])
    assert with_one_empty.losses.keys() == {"classification", "box", "centerness"}
    check_gradients(head, with_one_empty, finite_only=True)
    output = head.supervise(pyramid(), batch(), EMPTY)
    check_gradients(head, output, finite_only=True)
    assert output.losses["box"].item() == output.losses["centerness"].item() == 0
    assert [len(p) for p in output.positives] == [0, 0]
    assert output.positives[0].features.shape == (0, 32)


def test_the_same_seed_draws_the_same_negatives(head: ATSSHead) -> None:
    outputs = [head.supervise(pyramid(), batch(), TARGETS, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    first, again, other = (output.positives[0].negative_boxes for output in outputs)
    assert (first == again).all() and not (first == other).all()


def test_crowds_are_background(head: ATSSHead) -> None:
    crowd = TARGETS[0] | {"iscrowd": torch.tensor([0, 1])}
    output = head.supervise(pyramid(1), batch((128, 128)), [crowd])
    assert set(output.positives[0].gt_index.tolist()) == {0}


def test_detections_are_clipped_sorted_and_suppressed(head: ATSSHead) -> None:
    with torch.no_grad():
        head.atss_cls.weight.mul_(30)
    images = batch((128, 128), (64, 80))
    for detections, (height, width) in zip(head.predict(pyramid(), images), images.valid_sizes, strict=True):
        assert 0 < len(detections) <= 100
        assert (detections.scores[1:] <= detections.scores[:-1]).all()
        assert (detections.boxes >= 0).all()
        assert (detections.boxes[:, [0, 2]] <= width).all() and (detections.boxes[:, [1, 3]] <= height).all()
        assert detections.source_index.max() < 340
        for label in detections.labels.unique():
            same = detections.boxes[detections.labels == label]
            overlap = box_ops.iou(same[:, None], same).fill_diagonal_(0)
            assert overlap.max() <= 0.6
        assert not detections.boxes.requires_grad


def test_the_best_scores_of_a_level_come_from_class_scores_alone() -> None:
    config = override(CONFIG, num_classes=1, **{"atss.nms_pre": 1, "atss.max_detections": 9})
    head = ATSSHead(config, STRIDES[:1])

    def outputs(_: object) -> Dense:
        logits = torch.zeros(1, 4, 1)
        logits[0, 2] = 1
        centerness = torch.tensor([[9.0, 9, -1, 9]])
        return Dense(logits, torch.zeros(1, 4, 4), centerness)

    head.forward = outputs
    (found,) = head.predict([torch.zeros(1, 32, 2, 2)], batch((16, 16)))
    assert found.source_index.tolist() == [2]
    assert float(found.scores[0]) == pytest.approx(float(torch.tensor(1.0).sigmoid() * torch.tensor(-1.0).sigmoid()))
    assert found.boxes.tolist() == [[0, 0, 12, 16]]


def test_a_target_that_covers_no_anchor_counts_as_one(head: ATSSHead) -> None:
    tiny = target([33, 33, 34, 34])
    output = head.supervise(pyramid(1), batch((128, 128)), [tiny])
    empty = head.supervise(pyramid(1), batch((128, 128)), EMPTY[:1])
    assert len(output.positives[0]) == 0
    assert output.losses["classification"].item() == pytest.approx(empty.losses["classification"].item())


def test_losses_in_reduced_precision_are_float32_and_near(head: ATSSHead) -> None:
    exact = head.supervise(pyramid(), batch(), TARGETS, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rough = head.supervise(pyramid(), batch(), TARGETS, torch.Generator().manual_seed(0))
        assert len(head.predict(pyramid(), batch())) == 2
    for name, value in rough.losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact.losses[name].item(), rel=0.05, abs=0.01), name
