"""Box algebra against torchvision and by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import ops

from codetr_lab import boxes as box_ops


@st.composite
def xyxy(draw: st.DrawFn, count: int = 5) -> torch.Tensor:
    """Boxes with sides of 1 to 50 pixels."""
    rows = draw(st.lists(st.tuples(*[st.floats(0, 50, width=32)] * 2, *[st.floats(1, 50, width=32)] * 2),
                         min_size=count, max_size=count))  # fmt: skip
    table = torch.tensor(rows)
    return torch.cat([table[:, :2], table[:, :2] + table[:, 2:]], 1)


@given(xyxy(), xyxy())
def test_iou_and_giou_agree_with_torchvision(a: torch.Tensor, b: torch.Tensor) -> None:
    assert torch.allclose(box_ops.iou(a[:, None], b), ops.box_iou(a, b), atol=1e-5)
    assert torch.allclose(box_ops.giou(a[:, None], b), ops.generalized_box_iou(a, b), atol=1e-5)


@given(xyxy())
def test_conversions_are_inverse(a: torch.Tensor) -> None:
    assert torch.allclose(box_ops.cxcywh_to_xyxy(box_ops.xyxy_to_cxcywh(a)), a, atol=1e-4)
    assert torch.allclose(box_ops.xyxy_to_cxcywh(a), ops.box_convert(a, "xyxy", "cxcywh"), atol=1e-4)


@given(xyxy(), xyxy())
def test_deltas_are_inverse(anchors: torch.Tensor, boxes: torch.Tensor) -> None:
    stds = (0.1, 0.1, 0.2, 0.2)
    deltas = box_ops.encode_deltas(anchors, boxes, stds)
    assert torch.allclose(box_ops.decode_deltas(anchors, deltas, stds), boxes, atol=1e-2)


def test_decoding_limits_growth_and_clips_to_the_image() -> None:
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    grown = box_ops.decode_deltas(anchor, torch.tensor([[0.0, 0.0, 100.0, 100.0]]))
    assert grown[0, 2] - grown[0, 0] == pytest.approx(1000, rel=1e-4)
    clipped = box_ops.decode_deltas(anchor, torch.tensor([[0.0, 0.0, 100.0, 100.0]]), size=(20, 30))
    assert clipped.tolist() == [[0, 0, 30, 20]]


def test_degenerate_boxes_have_no_area_and_finite_overlap() -> None:
    flat, box = torch.tensor([5.0, 5.0, 5.0, 9.0]), torch.tensor([0.0, 0.0, 10.0, 10.0])
    assert box_ops.area(flat) == 0
    assert box_ops.iou(flat, box) == 0
    assert torch.isfinite(box_ops.giou(flat, flat))


def test_inverse_sigmoid() -> None:
    x = torch.tensor([0.1, 0.5, 0.9])
    assert torch.allclose(box_ops.inverse_sigmoid(x).sigmoid(), x, atol=1e-6)
    assert torch.isfinite(box_ops.inverse_sigmoid(torch.tensor([-3.0, 0.0, 1.0, 7.0]))).all()
