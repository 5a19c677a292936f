"""The FCOS head against torchvision's, weights copied across."""

from __future__ import annotations

import pytest
import torch
from head_case import CONFIG, STRIDES, TARGETS, batch, pyramid, target
from torch import nn
from torchvision.models.detection.fcos import FCOSHead as TorchvisionHead
from torchvision.ops import batched_nms

from codetr_lab import boxes as box_ops
from codetr_lab.models.config import CoDETRConfig, override
from codetr_lab.models.heads.fcos import FCOSHead


@pytest.fixture
def pair() -> tuple[FCOSHead, TorchvisionHead]:
    torch.manual_seed(0)
    ours = FCOSHead(override(CONFIG, lambda_2=1 / 3, **{"fcos.stacked_convs": 2}), STRIDES)
    theirs = TorchvisionHead(32, 1, 6, num_convs=2)
    for branch in (theirs.classification_head, theirs.regression_head):
        # Torchvision's normalisation has 32 groups, ours 8.
        for index, layer in enumerate(branch.conv):
            if isinstance(layer, nn.GroupNorm):
                branch.conv[index] = nn.GroupNorm(8, 32)
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.bias)
    for tower, branch in ((ours.cls_convs, theirs.classification_head), (ours.reg_convs, theirs.regression_head)):
        for number, mine in enumerate(tower):
            mine.conv.weight.data.copy_(branch.conv[3 * number].weight)
    for mine, other in (
        (ours.conv_cls, theirs.classification_head.cls_logits),
        (ours.conv_reg, theirs.regression_head.bbox_reg),
        (ours.conv_centerness, theirs.regression_head.bbox_ctrness),
    ):
        nn.init.normal_(other.weight, std=0.1)
        nn.init.constant_(other.bias, 0.5)
        mine.load_state_dict(other.state_dict())
    return ours, theirs


def strides_as_boxes(ours: FCOSHead, images: int) -> list[torch.Tensor]:
    """Torchvision's candidates: squares of one stride around the points."""
    anchors = ours.anchors(pyramid(images), batch(*[(128, 128)] * images))
    centre, half = (anchors.boxes[:, :2] + anchors.boxes[:, 2:]) / 2, anchors.stride[:, None] / 2
    return [torch.cat([centre - half, centre + half], 1)] * images


def test_outputs_and_boxes_are_torchvisions(pair) -> None:
    ours, theirs = pair
    output, expected = ours(pyramid()), theirs(pyramid())
    assert torch.allclose(output.logits, expected["cls_logits"], atol=1e-5)
    assert torch.allclose(output.regression, expected["bbox_regression"], atol=1e-5)
    assert torch.allclose(output.quality, expected["bbox_ctrness"][..., 0], atol=1e-5)
    decoded = theirs.box_coder.decode(expected["bbox_regression"][0], strides_as_boxes(ours, 1)[0])
    boxes = ours.boxes(output, ours.anchors(pyramid(), batch()))
    assert torch.allclose(boxes[0], decoded, rtol=1e-4, atol=1e-3)


def test_losses_are_torchvisions(pair) -> None:
    ours, theirs = pair
    for truth in (TARGETS, [TARGETS[1], target()], [target(), target()]):
        output = ours.supervise(pyramid(), batch(), truth)
        matched = [assignment.gt_index for assignment in output.assignments]
        expected = theirs.compute_loss(truth, theirs(pyramid()), strides_as_boxes(ours, 2), matched)
        for mine, other in (
            ("classification", "classification"),
            ("box", "bbox_regression"),
            ("centerness", "bbox_ctrness"),
        ):
            assert output.losses[mine].item() == pytest.approx(expected[other].item(), rel=1e-4, abs=1e-6), mine


def test_detections_are_torchvisions_rule(pair) -> None:
    """Scores are the geometric mean of class and centerness, and rank what goes into the NMS."""
    ours, theirs = pair
    levels, images = pyramid(1), batch((128, 128))
    (found,) = ours.predict(levels, images)
    expected = theirs(levels)
    scores = torch.sqrt(expected["cls_logits"].sigmoid() * expected["bbox_ctrness"].sigmoid())[0].flatten()
    decoded = theirs.box_coder.decode(expected["bbox_regression"][0], strides_as_boxes(ours, 1)[0])
    boxes = box_ops.clip(decoded, (128, 128)).repeat_interleave(6, 0)
    keep = batched_nms(boxes, scores, torch.arange(6).repeat(340), 0.6)[:100]
    assert torch.allclose(found.scores, scores[keep], atol=1e-6)
    assert torch.allclose(found.boxes, boxes[keep], atol=1e-2)


def test_points_become_queries_of_eight_strides() -> None:
    """Table 1: (cx, cy) with w = h = 8 * 2^(2+j); points are the middles of cells."""
    strides = (8, 16, 32, 64, 128)
    config = override(CoDETRConfig(), **{"transformer.hidden_dim": 32, "transformer.norm_groups": 8})
    head = FCOSHead(config, strides)
    levels = [torch.zeros(1, 32, 128 // s, 128 // s) for s in strides]
    output = head.supervise(levels, batch((128, 128)), TARGETS[:1])
    (positives,) = output.positives
    stride = 8 * 2.0**positives.level
    assert torch.equal(positives.boxes[:, 2:] - positives.boxes[:, :2], (8 * stride)[:, None].expand(-1, 2))
    centre = (positives.boxes[:, :2] + positives.boxes[:, 2:]) / 2
    assert ((centre / stride[:, None]) % 1 == 0.5).all() and len(positives) > 4
