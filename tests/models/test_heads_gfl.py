"""The GFL head on an example small enough to be worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from head_case import CONFIG, STRIDES, TARGETS, batch, pyramid

from codetr_lab.assign import atss
from codetr_lab.models.config import override
from codetr_lab.models.heads.dense import Dense
from codetr_lab.models.heads.gfl import GFLHead, distribution_focal_loss, expectation

log = math.log


def test_expectation_by_hand() -> None:
    # Bins 0, 1, 2 with shares 1/4, 1/4, 1/2: expected 1.25.
    side = torch.tensor([log(0.25), log(0.25), log(0.5)])
    assert expectation(side.expand(4, 3)).tolist() == pytest.approx([1.25] * 4)


def test_distribution_focal_loss_by_hand() -> None:
    side = torch.tensor([log(0.25), log(0.25), log(0.5)]).expand(4, 3)
    goal = torch.tensor([0.0, 0.5, 1.25, 7])
    # A side of 1.25 strides is 3/4 of bin 1 and 1/4 of bin 2; one beyond the last bin is clamped to 1.9.
    expected = [
        -log(0.25), -0.5 * log(0.25) - 0.5 * log(0.25), -0.75 * log(0.25) - 0.25 * log(0.5),
        -0.1 * log(0.25) - 0.9 * log(0.5),
    ]  # fmt: skip
    assert distribution_focal_loss(side, goal).tolist() == pytest.approx(expected, rel=1e-5)


def test_losses_by_hand() -> None:
    """One level of 2 x 2 cells of 8 pixels, two classes, anchors of 2 strides around the cells' corners, 3 bins.

    The object (-4, -4, 4, 4) has its centre on anchor 0, the only positive. All sides say: one stride with certainty,
    so anchor 0 predicts (-8, -8, 8, 8), whose IoU with the object is 64 / 256 = 1/4, as is its GIoU.
    """
    config = override(
        CONFIG, num_classes=2, lambda_2=1 / 3, **{"gfl.anchor_scale": 2.0, "gfl.bins": 2, "gfl.weight_box": 1.0}
    )
    head = GFLHead(config, (8,))
    truth = {"boxes": torch.tensor([[-4.0, -4, 4, 4]]), "labels": torch.tensor([1])}
    anchors = head.anchors([torch.zeros(1, 32, 2, 2)], batch((16, 16)))
    assert anchors.boxes[0].tolist() == [-8, -8, 8, 8]
    (found,) = head.assign(anchors, [truth], None)
    assert found.gt_index.tolist() == [0, -1, -1, -1] and found.rule == "ATSS"

    logits = torch.tensor([[[log(1 / 3), log(3.0)]] + [[log(1 / 9), log(1 / 9)]] * 3])  # scores 1/4, 3/4; 1/10
    sides = torch.tensor([-30.0, 0, -30]).repeat(1, 4, 4)
    losses = head.losses(Dense(logits, sides), anchors, [found])
    # Quality focal loss: |target - score|^2 times cross-entropy; the target is the IoU, 1/4, for class 1 of anchor 0.
    positive = 0.5**2 * -(0.25 * log(0.75) + 0.75 * log(0.25))
    negative = 0.25**2 * -log(0.75) + 6 * 0.1**2 * -log(0.9)
    assert losses["classification"].item() == pytest.approx(positive + negative, rel=1e-5)
    # The only positive's weight, its best score, cancels against the sum of the weights.
    assert losses["box"].item() == pytest.approx(1 - 0.25, rel=1e-5)
    # The true sides are half a stride: bins 0 and 1 by halves; the head gives bin 1 all and bin 0 exp(-30).
    assert losses["distribution"].item() == pytest.approx(0.25 * 0.5 * 30, rel=1e-5)
    boxes = head.boxes(Dense(logits, sides), anchors)
    assert boxes[0, 0].tolist() == pytest.approx([-8, -8, 8, 8])
    assert boxes[0, 3].tolist() == pytest.approx([0, 0, 16, 16])


def test_better_scored_positives_weigh_more() -> None:
    torch.manual_seed(0)
    head = GFLHead(override(CONFIG, lambda_2=1 / 3), STRIDES)
    output = head.supervise(pyramid(1), batch((128, 128)), TARGETS[:1])
    said, (found,) = head(pyramid(1)), output.assignments
    positive = found.positive
    anchors = head.anchors(pyramid(1), batch((128, 128)))
    boxes = head.boxes(said, anchors)[0, positive]
    weight = said.logits[0, positive].sigmoid().amax(-1)
    from codetr_lab.losses import giou_loss

    expected = 2 * (giou_loss(boxes, found.target_boxes[positive]) * weight).sum() / weight.sum()
    assert output.losses["box"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(found.gt_index, atss(found.candidates, TARGETS[0]).gt_index)
