"""The RoI head of the released ViT configurations, and the heads' NMS."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from head_case import CONFIG, STRIDES, TARGETS, batch, check_gradients, pyramid
from torchvision.ops import batched_nms

from codetr_lab import boxes as box_ops
from codetr_lab.models.config import override
from codetr_lab.models.heads import ATSSHead, FasterRCNNHead, nms
from codetr_lab.ops.soft_nms import soft_nms

SETTINGS = {
    "faster_rcnn.roi_convs": 4, "faster_rcnn.roi_fcs": 1, "faster_rcnn.class_agnostic": True,
    "faster_rcnn.roi_stds": (0.05, 0.05, 0.1, 0.1), "faster_rcnn.soft_nms": True, "faster_rcnn.test_proposals": 30,
    "faster_rcnn.test_proposal_nms_iou": 0.9, "atss.soft_nms": True,
}  # fmt: skip


@pytest.fixture
def head() -> FasterRCNNHead:
    torch.manual_seed(0)
    return FasterRCNNHead(override(CONFIG, **SETTINGS), STRIDES)


def test_four_convolutions_one_layer_and_one_box_for_all_classes(head: FasterRCNNHead) -> None:
    assert (len(head.shared_convs), len(head.shared_fcs), head.fc_reg.out_features) == (4, 1, 4)
    features = torch.randn(5, 32, 7, 7)
    hidden = features
    for layer in head.shared_convs:
        hidden = F.relu(F.group_norm(F.conv2d(hidden, layer.conv.weight, padding=1), 8, layer.gn.weight, layer.gn.bias))
    hidden = F.relu(F.linear(hidden.flatten(1), head.shared_fcs[0].weight, head.shared_fcs[0].bias))
    logits, deltas = head.roi(features)
    torch.testing.assert_close(logits, head.fc_cls(hidden))
    torch.testing.assert_close(deltas, head.fc_reg(hidden)[:, None])


def test_losses_reach_every_parameter_and_use_the_deltas_scale(head: FasterRCNNHead) -> None:
    levels = pyramid()
    output = head.supervise(levels, batch(), TARGETS, torch.Generator().manual_seed(0))
    check_gradients(head, output)
    giou, count = 0.0, 0
    for image, rois in enumerate(output.assignments):
        chosen = rois.positive & rois.used
        boxes = rois.candidates.boxes[chosen]
        features = head.roi_features([level[image, None] for level in levels], [boxes])
        decoded = box_ops.decode_deltas(boxes, head.roi(features)[1][:, 0], (0.05, 0.05, 0.1, 0.1))
        giou += float((1 - box_ops.giou(decoded, rois.target_boxes[chosen])).detach().sum())
        count += int(rois.used.sum())
    weight = head.settings.weight_box * head.config.aux_loss_factor
    assert output.losses["roi_box"].item() == pytest.approx(weight * giou / count, rel=1e-4)


def test_detection_has_its_own_settings(head: FasterRCNNHead) -> None:
    images, levels = batch((128, 128)), pyramid(1)
    found = head.rpn(levels), head.anchors(levels, images)
    ((boxes, _),) = head.propose(*found[0], found[1], images, test=True)
    ((more, _),) = head.propose(*found[0], found[1], images)
    assert (len(boxes), len(more)) == (30, 60)
    (detections,) = head.predict(levels, images)
    assert len(detections) == 100 and detections.source_index.max() < 30
    assert (detections.scores[1:] <= detections.scores[:-1]).all()
    (hard,) = FasterRCNNHead.predict(_hard(head), levels, images)
    assert len(hard) <= 100 and detections.scores[0] == hard.scores[0]
    assert len(ATSSHead(override(CONFIG, **SETTINGS), STRIDES).predict(levels, images)[0]) == 100


def _hard(head: FasterRCNNHead) -> FasterRCNNHead:
    head.settings = replace(head.settings, soft_nms=False)
    return head


def test_nms_is_hard_or_soft_and_soft_class_by_class_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(120, 2, generator=generator) * 30
    boxes = torch.cat([corner, corner + 20 + torch.rand(120, 2, generator=generator) * 10], 1)
    scores, labels = torch.rand(120, generator=generator), torch.randint(3, (120,), generator=generator)
    keep, score = nms.class_nms(boxes, scores, labels, 0.5, soft=False)
    assert torch.equal(keep, batched_nms(boxes, scores, labels, 0.5)) and torch.equal(score, scores[keep])
    expected, lowered = soft_nms(boxes, scores, labels, 0.5)
    assert (lowered < scores[expected]).any()
    for split in (121, 120):
        monkeypatch.setattr(nms, "SPLIT", split)
        keep, score = nms.class_nms(boxes, scores, labels, 0.5, soft=True)
        assert torch.equal(keep, expected)
        torch.testing.assert_close(score, lowered, rtol=0, atol=1e-5)
