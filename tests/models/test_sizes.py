"""Images whose sides are no multiples of 32, by hand: cells, padding, valid shares, anchors; targets at the edge."""

from __future__ import annotations

import pytest
import torch
from conftest_models import DINO, objects

from codetr_lab.models.heads.anchors import make_anchors
from codetr_lab.models.targets import TargetError
from codetr_lab.structures import ImageBatch

VARIANTS = {"deformable": {}, "dino": DINO}
SIZES = [(45, 61), (20, 33)]


def batch(divisor: int = 1) -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    return ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in SIZES], divisor=divisor)


@pytest.mark.parametrize("variant", VARIANTS)
def test_levels_round_up_and_masks_take_the_nearest_pixel(small, variant) -> None:
    model = small(("atss",), **VARIANTS[variant])
    trace = model.trace(batch())
    assert [tuple(level.shape[-2:]) for level in trace.memory] == [(6, 8), (3, 4), (2, 2)]
    assert [tuple(level.shape[-2:]) for level in trace.pyramid] == [(6, 8), (3, 4), (2, 2), (1, 1)]
    assert trace.strides == (8, 16, 32, 64)
    memory = model.encoder(trace.memory, trace.batch.pad_mask)
    # Rows of the second image that are read at stride 8: 0, 7, 15 of 0, 7, 15, 22, 30, 37. Columns: 0, 7, 15, 22, 30 of
    # 0, 7, 15, 22, 30, 38, 45, 53. Stride 16: rows 0, 15; columns 0, 15, 30. Stride 32: row 0, columns 0, 30.
    expected = torch.tensor([[5 / 8, 3 / 6], [3 / 4, 2 / 3], [2 / 2, 1 / 2]])
    assert torch.allclose(memory.valid_ratios[0], torch.ones(3, 2))
    assert torch.allclose(memory.valid_ratios[1], expected)
    valid = ~memory.pad_mask[1]
    assert valid[:48].view(6, 8).nonzero().max(0).values.tolist() == [2, 4]
    assert valid[48:60].view(3, 4).nonzero().max(0).values.tolist() == [1, 2]
    assert valid[60:].view(2, 2).nonzero().max(0).values.tolist() == [0, 1]


def test_proposals_are_cell_centres_in_shares_of_the_valid_cells(small) -> None:
    model = small()
    images = batch()
    memory = model.encoder(model.neck(model.backbone(images.pixels)), images.pad_mask)
    prior, valid = model.selection._priors(memory)
    boxes = prior.sigmoid().detach()
    side = model.config.transformer.proposal_side
    # the first image's cell in row 1, column 2 of 6 x 8; the second's, of 3 valid rows and 5 valid columns
    assert torch.allclose(boxes[0, 10], torch.tensor([2.5 / 8, 1.5 / 6, side, side]), atol=1e-6)
    assert torch.allclose(boxes[1, 10], torch.tensor([2.5 / 5, 1.5 / 3, side, side]), atol=1e-6)
    assert torch.allclose(boxes[1, 48 + 5], torch.tensor([1.5 / 3, 1.5 / 2, 2 * side, 2 * side]), atol=1e-6)
    assert valid[1, :48].view(6, 8).nonzero().max(0).values.tolist() == [2, 4]
    assert (boxes[1][~valid[1]] == 1).all()


@pytest.mark.parametrize(
    ("divisor", "padded", "rows", "columns"),
    [(1, [(45, 61), (20, 33)], [3, 2, 1, 1], [5, 3, 2, 1]), (32, [(64, 64), (32, 64)], [4, 2, 1, 1], [8, 4, 2, 1])],
)
def test_anchors_end_with_each_images_own_padded_size(divisor: int, padded: list, rows: list, columns: list) -> None:
    images = batch(divisor)
    assert list(images.padded_sizes) == padded
    assert images.pixels.shape[-2:] == padded[0]
    assert images.valid_sizes == tuple(SIZES)
    assert (~images.pad_mask).sum((1, 2)).tolist() == [45 * 61, 20 * 33]
    strides = (8, 16, 32, 64)
    height, width = padded[0]
    pyramid = [torch.zeros(2, 4, -(-height // s), -(-width // s)) for s in strides]
    anchors = make_anchors(pyramid, strides, torch.tensor([[2.0, 2.0]]), images)
    assert anchors.valid[0].all()
    start = 0
    for feature, stride, row, column in zip(pyramid, strides, rows, columns, strict=True):
        shape = feature.shape[-2:]
        level = slice(start, start + shape.numel())
        assert anchors.valid[1, level].view(shape).sum() == row * column
        assert anchors.valid[1, level].view(shape)[:row, :column].all()
        corner = torch.tensor([-stride, -stride, stride, stride])
        assert torch.equal(anchors.boxes[start], corner.float())  # no half cell's offset
        start += shape.numel()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("divisor", [1, 32])
def test_odd_images_train_and_detect_inside_their_valid_size(small, variant, divisor) -> None:
    model = small(("atss", "faster_rcnn"), **VARIANTS[variant])
    images = batch(divisor)
    # one-pixel objects, objects that stick out, objects at the last pixel
    targets = (
        objects((44, 30, 45, 31, 0), (-9, -9, 70, 50, 1), (60, 44, 61, 45, 2)), objects((32.5, 19.5, 33, 20, 5)),
    )  # fmt: skip
    losses = model.train()(images, targets)
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    for (height, width), found in zip(SIZES, model.eval().detect(images, ("detr", "atss", "faster_rcnn")), strict=True):
        for detections in found.values():
            assert (detections.boxes >= 0).all()
            assert (detections.boxes <= torch.tensor([width, height, width, height])).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_smaller_than_a_cell(small, variant) -> None:
    model = small(("atss", "faster_rcnn"), **VARIANTS[variant])
    images = ImageBatch.from_images([torch.ones(3, 1, 1), torch.ones(3, 5, 9)])
    losses = model.train()(images, (objects((0, 0, 1, 1, 0)), objects()))
    assert all(torch.isfinite(value) for value in losses.values())
    assert len(model.eval()(images)) == 2


def test_whole_numbers_will_do_for_boxes_but_labels_must_be_whole(small) -> None:
    model = small(("atss", "faster_rcnn"), **DINO).train()
    target = {"boxes": torch.tensor([[4, 6, 40, 30]]), "labels": torch.tensor([2], dtype=torch.int32)}
    assert all(torch.isfinite(value) for value in model(batch(), (target, objects())).values())
    with pytest.raises(TargetError, match=r"target of image 1: labels must be whole numbers, got torch\.float32"):
        model(batch(), (target, {"boxes": torch.ones(1, 4), "labels": torch.ones(1)}))
    with pytest.raises(TargetError, match="image 1, box 0: has label outside"):
        model(batch(), (target, objects((1, 1, 9, 9, -1))))
