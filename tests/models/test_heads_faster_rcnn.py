"""The Faster R-CNN head."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from golden_case import SIZES, Golden
from golden_case import batch as golden_batch
from golden_case import targets as golden_targets
from head_case import CONFIG, EMPTY, STRIDES, TARGETS, batch, check_gradients, pyramid
from torch import Tensor

from codetr_lab import boxes as box_ops
from codetr_lab import draws
from codetr_lab.assign import max_iou
from codetr_lab.models.config import CoDETRConfig, override
from codetr_lab.models.heads.faster_rcnn import FasterRCNNHead, sample
from codetr_lab.structures import GROUND_TRUTH, POSITIVE, Candidates

RELEASED_STRIDES = (8, 16, 32, 64, 128)


@pytest.fixture
def head() -> FasterRCNNHead:
    torch.manual_seed(0)
    return FasterRCNNHead(CONFIG, STRIDES)


@pytest.fixture(scope="module")
def released() -> FasterRCNNHead:
    return FasterRCNNHead(override(CoDETRConfig(), **{"transformer.hidden_dim": 8}), RELEASED_STRIDES)


@pytest.mark.parametrize("case", SIZES)
def test_released_rpn_samples(released: FasterRCNNHead, case: str) -> None:
    golden, images = Golden(f"train_co_deformable_detr_r50_1x_coco_{case}"), golden_batch(case)
    count = len(images)
    pyramid = [torch.zeros(1).expand(count, 8, *size) for size in ((32, 40), (16, 20), (8, 10), (4, 5), (2, 3))]
    anchors = released.anchors(pyramid, images)
    for image, truth in enumerate(golden_targets(golden, case)):
        found = max_iou(anchors.candidates(image), truth, positive=0.7, negative=0.3, min_positive=0.3)
        with draws.first_k():
            draw, _ = sample(found, 256, 0.5, None)
        valid = anchors.valid[image]
        # The release counts among the anchors inside the image's padded size.
        place = valid.cumsum(0) - 1
        assert place[draw.positive].tolist() == golden[f"rpn_sample/{image}/pos_inds"].tolist()
        assert place[draw.negative].tolist() == golden[f"rpn_sample/{image}/neg_inds"].tolist()
        expected = torch.from_numpy(golden[f"rpn_sample/{image}/pos_anchors"])
        assert torch.allclose(anchors.boxes[draw.positive], expected, atol=1e-4)
        available = golden.notes["rpn_pos_neg_available"][image]
        assert [int(found.positive.sum()), int((found.negative & valid).sum())] == available


@pytest.mark.parametrize("case", SIZES)
def test_released_roi_samples(released: FasterRCNNHead, case: str) -> None:
    golden = Golden(f"train_co_deformable_detr_r50_1x_coco_{case}")
    for image, truth in enumerate(golden_targets(golden, case)):
        boxes, scores = torch.from_numpy(golden[f"rcnn_sample/{image}/proposals_in"]).split([4, 1], 1)
        found = released.assign_rois(boxes, scores[:, 0], truth)
        with draws.first_k():
            draw, found = sample(found, 512, 0.25, None)
        where = f"rcnn_sample/{image}"
        assert draw.positive.tolist() == golden[f"{where}/pos_inds"].tolist()
        assert draw.negative.tolist() == golden[f"{where}/neg_inds"].tolist()
        assert found.gt_index[draw.positive].tolist() == golden[f"{where}/pos_assigned_gt_inds"].tolist()
        assert found.candidates.boxes[draw.negative].tolist() == golden[f"{where}/neg_bboxes"].tolist()
        assert int(found.used.sum()) == 512


def test_released_roi_levels(released: FasterRCNNHead) -> None:
    golden = Golden("golden_co_deformable_detr_r50_1x_coco_two")
    rois = torch.from_numpy(golden["roi/rois"])[:, 1:]
    assert released.roi_level(rois).tolist() == golden["roi/levels"].tolist()
    sides = torch.tensor([1.0, 111, 112, 223, 224, 448, 5000])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    assert released.roi_level(boxes).tolist() == [0, 0, 0, 0, 1, 2, 3]


def test_released_anchor_shapes(released: FasterRCNNHead) -> None:
    anchors = released.anchors([torch.zeros(1, 8, 1, 1)] * 5, golden_batch("one"))
    boxes = anchors.boxes[:9]
    sides = boxes[:, 2:] - boxes[:, :2]
    scales = [4 * 2 ** (i / 3) * 8 for i in range(3)]
    expected = [[scale / math.sqrt(r), scale * math.sqrt(r)] for r in (0.5, 1, 2) for scale in scales]
    assert torch.allclose(sides, torch.tensor(expected), rtol=1e-5)
    assert ((boxes[:, 2:] + boxes[:, :2]).abs() < 1e-4).all()


def test_released_initial_values() -> None:
    settings = {"transformer.hidden_dim": 64, "faster_rcnn.roi_hidden": 128}
    head = FasterRCNNHead(override(CoDETRConfig(), **settings), RELEASED_STRIDES)
    for layer, std in ((head.rpn_conv, 0.01), (head.rpn_cls, 0.01), (head.fc_cls, 0.01), (head.fc_reg, 0.001)):
        assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.1)
    bound = math.sqrt(6 / (64 * 49 + 128))
    assert float(head.shared_fcs[0].weight.detach().abs().max()) == pytest.approx(bound, rel=1e-3)
    assert all(not parameter.any() for name, parameter in head.named_parameters() if name.endswith("bias"))
    assert head.fc_cls.out_features == 81 and head.fc_reg.out_features == 320


def test_sampler_prefers_positives_up_to_their_share() -> None:
    boxes = torch.zeros(20, 4)
    boxes[:, 2:] = 10
    boxes[8:] += 50
    assignment = max_iou(Candidates.of_boxes(boxes), {"boxes": boxes[:1], "labels": torch.zeros(1).long()})
    with draws.first_k():
        draw, used = sample(assignment, 12, 0.25, None)
    assert draw.positive.tolist() == [0, 1, 2]
    assert draw.negative.tolist() == [*range(8, 17)]
    assert used.used.nonzero()[:, 0].tolist() == draw.both().tolist()
    assert "did not draw it" in used.explain(5) and "did not draw it" not in used.explain(0)
    draw, _ = sample(assignment, 100, 0.25, None)
    assert (len(draw.positive), len(draw.negative)) == (8, 12)
    draws_of = [sample(assignment, 12, 0.25, torch.Generator().manual_seed(s))[0].both().tolist() for s in (1, 1, 2)]
    assert draws_of[0] == draws_of[1] != draws_of[2]


def test_rpn_equals_its_convolutions(head: FasterRCNNHead) -> None:
    levels = pyramid()
    with torch.no_grad():
        objectness, deltas = head.rpn(levels)
        hidden = F.relu(head.rpn_conv(levels[1]))
        at = (16 * 16 + 3 * 8 + 5) * 9 + 4
        assert torch.allclose(objectness[:, at], head.rpn_cls(hidden)[:, 4, 3, 5], atol=1e-6)
        assert torch.allclose(deltas[:, at], head.rpn_reg(hidden)[:, 16:20, 3, 5], atol=1e-6)


def test_proposals_by_hand(head: FasterRCNNHead) -> None:
    """One level is NMSed apart from the other; boxes outside the image go; the best come first."""
    images = batch((64, 64))
    levels = [torch.zeros(1, 32, 8, 8), torch.zeros(1, 32, 4, 4)]
    two = FasterRCNNHead(override(CONFIG, **{"faster_rcnn.roi_levels": 2}), STRIDES[:2])
    anchors = two.anchors(levels, images)
    count = len(anchors.boxes)
    objectness, deltas = torch.full((1, count), -9.0), torch.zeros(1, count, 4)
    first, twin, other_level = 9 * (3 * 8 + 3) + 4, 9 * (3 * 8 + 3) + 5, 64 * 9 + 9 * 5 + 4
    objectness[0, [first, twin, other_level]] = torch.tensor([3.0, 2.0, 2.5])
    wanted = torch.tensor([[10.0, 10, 40, 40], [11, 10, 40, 40], [10, 10, 40, 40]])
    deltas[0, [first, twin, other_level]] = box_ops.encode_deltas(anchors.boxes[[first, twin, other_level]], wanted)
    objectness[0, 0] = 9.0
    deltas[0, 0] = box_ops.encode_deltas(anchors.boxes[0], torch.tensor([-50.0, -50, -10, -10]))
    ((boxes, scores),) = two.propose(objectness, deltas, anchors, images, test=True)
    assert torch.allclose(boxes[:2], wanted[[0, 2]], atol=1e-3)
    assert scores[:2].tolist() == pytest.approx(torch.tensor([3.0, 2.5]).sigmoid().tolist())
    assert len(boxes) <= 60 and (scores[1:] <= scores[:-1]).all()
    assert not (box_ops.iou(boxes, wanted[1]) > 0.99).any()
    assert (boxes >= 0).all() and (boxes <= 64).all() and (box_ops.area(boxes) > 0).all()


def test_losses_of_an_image_by_hand(head: FasterRCNNHead) -> None:
    levels, images = pyramid(1), batch((128, 128))
    with draws.first_k():
        output = head.supervise(levels, images, TARGETS[:1])
    factor = 2.0 * 3
    rpn = output.stages["rpn"][0]
    objectness, deltas = (value.detach()[0] for value in head.rpn(levels))
    positive, negative = (rpn.positive & rpn.used), (rpn.negative & rpn.used)
    count = int(positive.sum()) + int(negative.sum())
    entropy = F.softplus(-objectness[positive]).sum() + F.softplus(objectness[negative]).sum()
    assert count == 64
    assert output.losses["rpn_classification"].item() == pytest.approx(factor * float(entropy) / count, rel=1e-5)
    goal = box_ops.encode_deltas(rpn.candidates.boxes[positive], rpn.target_boxes[positive])
    box = (deltas[positive] - goal).abs().sum()
    assert output.losses["rpn_box"].item() == pytest.approx(factor * float(box) / count, rel=1e-5)

    rois = output.assignments[0]
    index = torch.cat([(rois.positive & rois.used).nonzero()[:, 0], (rois.negative & rois.used).nonzero()[:, 0]])
    boxes = rois.candidates.boxes[index]
    logits, roi_deltas = (value.detach() for value in head.roi(head.roi_features(levels, [boxes])))
    labels = torch.where(rois.labels[index] >= 0, rois.labels[index], 6)
    expected = factor * float(F.cross_entropy(logits, labels))
    assert output.losses["roi_classification"].item() == pytest.approx(expected, rel=1e-5)
    chosen = rois.positive[index].nonzero()[:, 0]
    decoded = box_ops.decode_deltas(boxes[chosen], roi_deltas[chosen, labels[chosen]], head.config.faster_rcnn.roi_stds)
    giou = (1 - box_ops.giou(decoded, rois.target_boxes[index][chosen])).sum()
    assert output.losses["roi_box"].item() == pytest.approx(factor * 10 * float(giou) / len(index), rel=1e-4)


def test_positives_start_with_the_objects_themselves(head: FasterRCNNHead) -> None:
    levels = pyramid()
    output = head.supervise(levels, batch(), TARGETS, torch.Generator().manual_seed(0))
    for image, positives in enumerate(output.positives):
        own = len(TARGETS[image]["boxes"])
        assert positives.kind[:own].tolist() == [GROUND_TRUTH] * own
        assert (positives.kind[own:] == POSITIVE).all()
        assert (positives.boxes[:own] == TARGETS[image]["boxes"]).all()
        assert positives.gt_index[:own].tolist() == list(range(own))
        assert (positives.target_boxes == TARGETS[image]["boxes"][positives.gt_index]).all()
        pooled = head.roi_features([level[image, None] for level in levels], [positives.boxes])
        assert torch.allclose(positives.features, pooled.mean((2, 3)), atol=1e-6)
        assert (positives.level == head.roi_level(positives.boxes)).all()
        spare = positives.negative_boxes
        pooled = head.roi_features([level[image, None] for level in levels], [spare])
        assert 0 < len(spare) <= 40
        assert torch.allclose(positives.negative_features, pooled.mean((2, 3)), atol=1e-6)


def test_equal_objects_each_keep_their_own_box(head: FasterRCNNHead) -> None:
    twins = {"boxes": TARGETS[1]["boxes"].expand(2, 4), "labels": torch.tensor([1, 4])}
    output = head.supervise(pyramid(1), batch((128, 128)), [twins])
    assert output.positives[0].gt_index[:2].tolist() == [0, 1]


def test_features_reach_the_pyramid_and_proposals_do_not(head: FasterRCNNHead) -> None:
    levels = pyramid(grad=True)
    output = head.supervise(levels, batch(), TARGETS)
    gradient = torch.autograd.grad(output.positives[0].features.sum(), levels, allow_unused=True)
    assert sum(g.abs().sum() for g in gradient if g is not None) > 0
    assert not output.assignments[0].candidates.boxes.requires_grad


def test_every_parameter_gets_a_gradient_with_and_without_objects(head: FasterRCNNHead) -> None:
    check_gradients(head, head.supervise(pyramid(), batch(), TARGETS))
    one_empty = head.supervise(pyramid(), batch(), [TARGETS[0], EMPTY[1]])
    check_gradients(head, one_empty)
    output = head.supervise(pyramid(), batch(), EMPTY)
    check_gradients(head, output, finite_only=True)
    assert output.losses.keys() == {"rpn_classification", "rpn_box", "roi_classification", "roi_box"}
    assert output.losses["rpn_box"].item() == output.losses["roi_box"].item() == 0
    assert [len(p) for p in output.positives] == [0, 0]
    assert len(output.positives[0].negative_boxes) > 0


def test_an_image_in_the_padding_counts_like_one_alone(head: FasterRCNNHead) -> None:
    """Anchors beyond an image's padded size are not sampled, and its proposals end at its valid size."""
    images = batch((128, 128), (64, 80))
    output = head.supervise(pyramid(), images, [TARGETS[0], {k: v[:0] for k, v in TARGETS[1].items()}])
    rpn = output.stages["rpn"][1]
    assert not (rpn.used & ~rpn.candidates.valid).any()
    boxes = output.assignments[1].candidates.boxes
    assert (boxes[:, 2] <= 80).all() and (boxes[:, 3] <= 64).all()


def test_crowds_give_no_rois(head: FasterRCNNHead) -> None:
    crowd = TARGETS[0] | {"iscrowd": torch.tensor([1, 0])}
    output = head.supervise(pyramid(1), batch((128, 128)), [crowd])
    positives = output.positives[0]
    assert set(positives.gt_index.tolist()) == {1}
    assert (positives.kind == GROUND_TRUTH).sum() == 1
    assert (positives.labels == 1).all()


def test_detections_are_clipped_sorted_and_suppressed(head: FasterRCNNHead) -> None:
    images = batch((128, 128), (64, 80))
    for detections, (height, width) in zip(head.predict(pyramid(), images), images.valid_sizes, strict=True):
        assert 0 < len(detections) <= 100
        assert (detections.scores[1:] <= detections.scores[:-1]).all()
        assert (detections.boxes >= 0).all()
        assert (detections.boxes[:, [0, 2]] <= width).all() and (detections.boxes[:, [1, 3]] <= height).all()
        assert detections.labels.max() < 6 and detections.source_index.max() < 60
        for label in detections.labels.unique():
            same = detections.boxes[detections.labels == label]
            assert box_ops.iou(same[:, None], same).fill_diagonal_(0).max() <= 0.5


def test_detections_come_from_their_proposal_and_class(head: FasterRCNNHead) -> None:
    def roi(features: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.zeros(len(features), 7)
        logits[0, 2], logits[0, 6] = 8, 4
        return logits, torch.zeros(len(features), 6, 4)

    head.roi = roi
    images = batch((128, 128))
    (found,) = head.predict(pyramid(1), images)
    proposals = head.propose(*head.rpn(pyramid(1)), head.anchors(pyramid(1), images), images, test=True)
    assert (int(found.labels[0]), int(found.source_index[0])) == (2, 0)
    assert torch.allclose(found.boxes[0], proposals[0][0][0], atol=1e-4)
    share = math.exp(8) / (math.exp(8) + math.exp(4) + 5)
    assert float(found.scores[0]) == pytest.approx(share, rel=1e-5)


def test_losses_in_reduced_precision_are_float32_and_near(head: FasterRCNNHead) -> None:
    exact = head.supervise(pyramid(), batch(), TARGETS, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rough = head.supervise(pyramid(), batch(), TARGETS, torch.Generator().manual_seed(0))
        assert len(head.predict(pyramid(), batch())) == 2
    for name, value in rough.losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact.losses[name].item(), rel=0.05, abs=0.01), name
