"""Soft-NMS against a plain loop over the definition."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou, nms

from codetr_lab.ops.soft_nms import soft_nms


def by_definition(boxes, scores, labels, iou=0.8, min_score=1e-3) -> list[tuple[int, float]]:
    """Take the best that is left, lower the rest, drop what falls below `min_score`; repeat."""
    left = {i: float(score) for i, score in enumerate(scores.double())}
    overlaps = box_iou(boxes.double(), boxes.double())
    taken = []
    while left:
        best = max(left, key=lambda i: left[i])
        taken.append((best, left.pop(best)))
        for i in list(left):
            if labels[i] == labels[best] and overlaps[i, best] >= iou:
                left[i] *= 1 - float(overlaps[i, best])
            if left[i] < min_score:
                del left[i]
    return taken


def crowd(count: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes heaped around few centres."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randint(3, (count, 1), generator=generator) * 60.0 + 40
    corner = centre + torch.rand(count, 2, generator=generator) * 6
    size = 40 + torch.rand(count, 2, generator=generator) * 6
    scores = torch.rand(count, generator=generator)
    return torch.cat([corner, corner + size], 1), scores, torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize(("count", "classes", "iou"), [(1, 1, 0.8), (60, 1, 0.8), (120, 3, 0.6), (200, 80, 0.8)])
def test_scores_and_order_are_those_of_the_definition(count: int, classes: int, iou: float) -> None:
    boxes, scores, labels = crowd(count, classes, seed=count)
    keep, lowered = soft_nms(boxes, scores, labels, iou)
    expected = by_definition(boxes, scores, labels, iou)
    assert [index for index, _ in expected] == keep.tolist()
    # 80 classes side by side in float32 cost some digits of an IoU, as in the release
    assert torch.allclose(lowered, torch.tensor([score for _, score in expected]), atol=3e-4 if classes > 3 else 1e-5)
    assert count == 1 or (lowered < scores[keep]).any()


def test_of_boxes_without_a_neighbour_nothing_changes() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 0, 60, 10], [50, 0, 60, 10]])
    keep, scores = soft_nms(boxes, torch.tensor([0.4, 0.9, 0.8]), torch.tensor([0, 0, 1]))
    assert (keep.tolist(), scores.tolist()) == ([1, 2, 0], pytest.approx([0.9, 0.8, 0.4]))


def test_what_falls_below_the_least_score_goes_except_the_best() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [50, 0, 60, 10]])
    keep, _ = soft_nms(boxes, torch.tensor([0.9, 0.8, 5e-4]), torch.tensor([0, 0, 0]))
    assert keep.tolist() == [0] == nms(boxes[:2], torch.tensor([0.9, 0.8]), 0.8).tolist()
    keep, _ = soft_nms(boxes, torch.tensor([2e-4, 1e-4, 5e-4]), torch.tensor([0, 0, 0]))
    assert keep.tolist() == [2]


def test_empty_boxes_and_no_boxes() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5]])
    keep, scores = soft_nms(boxes, torch.tensor([0.5, 0.6]), torch.tensor([0, 0]))
    assert (keep.tolist(), scores.tolist()) == ([1, 0], pytest.approx([0.6, 0.5]))
    keep, scores = soft_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert len(keep) == len(scores) == 0
