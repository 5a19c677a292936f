"""The RetinaNet head against torchvision's, weights copied across."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from head_case import CONFIG, STRIDES, TARGETS, batch, pyramid, target
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead as TorchvisionHead

from codetr_lab.assign import max_iou
from codetr_lab.models.config import CoDETRConfig, override
from codetr_lab.models.heads.anchors import anchor_sides
from codetr_lab.models.heads.retinanet import RetinaNetHead

SETTINGS = {"retinanet.stacked_convs": 4, "retinanet.weight_box": 1.0, "lambda_2": 1 / 3}


@pytest.fixture
def pair() -> tuple[RetinaNetHead, TorchvisionHead]:
    torch.manual_seed(0)
    ours = RetinaNetHead(override(CONFIG, **SETTINGS), STRIDES)
    theirs = TorchvisionHead(32, 9, 6, norm_layer=partial(nn.GroupNorm, 8))
    theirs.regression_head._loss_type = "giou"
    for tower, branch in ((ours.cls_convs, theirs.classification_head), (ours.reg_convs, theirs.regression_head)):
        for mine, other in zip(tower, branch.conv, strict=True):
            mine.conv.load_state_dict(other[0].state_dict())
            mine.gn.load_state_dict(other[1].state_dict())
    for mine, other in (
        (ours.retina_cls, theirs.classification_head.cls_logits),
        (ours.retina_reg, theirs.regression_head.bbox_reg),
    ):
        nn.init.normal_(other.weight, std=0.1)
        mine.load_state_dict(other.state_dict())
    return ours, theirs


def test_outputs_and_boxes_are_torchvisions(pair) -> None:
    ours, theirs = pair
    output, expected = ours(pyramid()), theirs(pyramid())
    assert torch.allclose(output.logits, expected["cls_logits"], atol=1e-5)
    assert torch.allclose(output.regression, expected["bbox_regression"], atol=1e-5)
    anchors = ours.anchors(pyramid(), batch())
    boxes = [
        theirs.regression_head.box_coder.decode_single(deltas, anchors.boxes) for deltas in expected["bbox_regression"]
    ]
    assert torch.allclose(ours.boxes(output, anchors), torch.stack(boxes), rtol=1e-4, atol=1e-3)


def test_losses_of_an_image_are_torchvisions(pair) -> None:
    """Torchvision divides image by image, so one at a time; it rounds its anchors to pixels, so ours are given."""
    ours, theirs = pair
    network = RetinaNet.__new__(RetinaNet)
    nn.Module.__init__(network)
    network.head = theirs
    from torchvision.models.detection._utils import Matcher

    network.proposal_matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    for truth in (*TARGETS, target()):
        output = ours.supervise(pyramid(1), batch((128, 128)), [truth])
        expected = network.compute_loss(
            [truth], theirs(pyramid(1)), [ours.anchors(pyramid(1), batch((128, 128))).boxes]
        )
        assert output.losses["classification"].item() == pytest.approx(expected["classification"].item(), rel=1e-4)
        assert output.losses["box"].item() == pytest.approx(expected["bbox_regression"].item(), rel=1e-4, abs=1e-6)


def test_anchors_have_the_papers_sides() -> None:
    """Against torchvision's generator, which rounds to pixels."""
    sizes = tuple(tuple(int(4 * s * 2 ** (i / 3)) for i in range(3)) for s in (8, 16))
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 2)
    head = RetinaNetHead(
        override(CoDETRConfig(), **{"transformer.hidden_dim": 8, "transformer.norm_groups": 2}), (8, 16)
    )
    levels = [torch.zeros(1, 8, 4, 5), torch.zeros(1, 8, 2, 3)]
    images = batch((32, 40))
    ours = head.anchors(levels, images)
    (theirs,) = generator(ImageList(images.pixels, [(32, 40)]), levels)
    # torchvision's second level has a stride of 16 by 13: only its first column agrees
    first = ours.level == 0
    assert (ours.boxes[first] - theirs[first]).abs().max() < 1
    assert anchor_sides(4, 3, (0.5, 1, 2))[3:6, 0].tolist() == pytest.approx([4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)])


def test_the_assignment_is_retinanets(pair) -> None:
    ours, _ = pair
    output = ours.supervise(pyramid(), batch(), TARGETS)
    for image, truth in enumerate(TARGETS):
        found = output.assignments[image]
        again = max_iou(found.candidates, truth, positive=0.5, negative=0.4)
        assert torch.equal(found.gt_index, again.gt_index)
        assert found.ignored.any() and found.explain(int(found.ignored.nonzero()[0])).startswith("RetinaNet (max IoU)")
