"""The PAA head by hand: costs, losses, score voting."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from head_case import CONFIG, STRIDES, TARGETS, batch, pyramid

from codetr_lab import boxes as box_ops
from codetr_lab.assign import paa
from codetr_lab.models.config import override
from codetr_lab.models.heads.atss import STDS
from codetr_lab.models.heads.dense import Dense
from codetr_lab.models.heads.paa import PAAHead, vote
from codetr_lab.structures import Detections


@pytest.fixture
def head() -> PAAHead:
    torch.manual_seed(0)
    return PAAHead(override(CONFIG, lambda_2=1 / 3), STRIDES)


def test_costs_are_focal_plus_giou_loss_of_the_object_overlapped_most(head: PAAHead) -> None:
    anchors, output = head.anchors(pyramid(1), batch((128, 128))), head(pyramid(1))
    candidates = head.priced(anchors, output, 0, TARGETS[0])
    boxes = head.boxes(output, anchors)[0]
    overlap = box_ops.iou(candidates.boxes[:, None], TARGETS[0]["boxes"])
    for index in (overlap.amax(1) >= 0.1).nonzero()[:20, 0].tolist():
        own = int(overlap[index].argmax())
        cost = 1 - float(box_ops.giou(boxes[index], TARGETS[0]["boxes"][own]))
        for label, logit in enumerate(output.logits[0, index].tolist()):
            p = 1 / (1 + math.exp(-logit))
            cost += -0.25 * (1 - p) ** 2 * math.log(p) if label == own else -0.75 * p**2 * math.log(1 - p)
        assert float(candidates.costs[index]) == pytest.approx(cost, rel=1e-4)
    assert not candidates.costs.requires_grad


def test_the_assignment_is_paas_on_these_costs(head: PAAHead) -> None:
    output = head.supervise(pyramid(), batch(), TARGETS)
    for found, truth in zip(output.assignments, TARGETS, strict=True):
        again = paa(found.candidates, truth)
        assert torch.equal(found.gt_index, again.gt_index)
        assert found.count_per_object().min() >= 1


def test_what_the_head_learns_changes_its_positives(head: PAAHead) -> None:
    anchors, output = head.anchors(pyramid(1), batch((128, 128))), head(pyramid(1))
    (before,) = head.assign(anchors, TARGETS[:1], output)
    liked = before.positive.nonzero()[0]
    worse = output.logits.clone()
    worse[0, liked] = -9
    (after,) = head.assign(anchors, TARGETS[:1], Dense(worse, output.regression, output.quality))
    assert before.positive[liked] and not after.positive[liked]


def test_losses_by_hand(head: PAAHead) -> None:
    output = head.supervise(pyramid(1), batch((128, 128)), TARGETS[:1])
    said, found = head(pyramid(1)), output.assignments[0]
    positive = found.positive
    boxes = box_ops.decode_deltas(found.candidates.boxes[positive], said.regression[0, positive], STDS)
    overlap = box_ops.iou(boxes, found.target_boxes[positive])
    giou = 1 - box_ops.giou(boxes, found.target_boxes[positive])
    assert output.losses["box"].item() == pytest.approx(
        1.3 * float((giou * overlap).sum() / overlap.sum().clamp(min=1)), rel=1e-5
    )
    entropy = F.binary_cross_entropy(said.quality[0, positive].sigmoid(), overlap.detach(), reduction="sum")
    assert output.losses["iou"].item() == pytest.approx(0.5 * float(entropy) / int(positive.sum()), rel=1e-5)


def test_voting_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 10], [50, 50, 60, 60]])
    every = Detections(boxes, torch.tensor([0.8, 0.4, 0.9, 0.7]), torch.tensor([1, 1, 2, 1]), torch.arange(4))
    kept = every.select(torch.tensor([2, 0, 3]))
    voted = vote(kept, every)
    # IoU .8 of the second box with the first: weight .4 exp(-.2^2 / .025); of another class or far away: none.
    weight = 0.4 * math.exp(-0.04 / 0.025)
    height = (0.8 * 10 + weight * 8) / (0.8 + weight)
    assert voted.boxes[0].tolist() == pytest.approx([0, 0, 10, 10])
    assert voted.boxes[1].tolist() == pytest.approx([0, 0, 10, height])
    assert voted.boxes[2].tolist() == pytest.approx([50, 50, 60, 60])
    assert torch.equal(voted.scores, kept.scores) and torch.equal(voted.source_index, kept.source_index)
    empty = Detections(torch.tensor([[5.0, 5, 5, 9]]), torch.ones(1), torch.ones(1).long(), torch.zeros(1).long())
    assert vote(empty, empty).boxes.tolist() == [[5, 5, 5, 9]]


def test_voting_can_be_switched_off() -> None:
    found = []
    for voting in (True, False):
        torch.manual_seed(0)
        head = PAAHead(override(CONFIG, **{"paa.voting": voting}), STRIDES)
        found.append(head.predict(pyramid(1), batch((128, 128)))[0])
    assert torch.equal(found[0].scores, found[1].scores) and not torch.equal(found[0].boxes, found[1].boxes)
