"""What the auxiliary heads share: anchors, RoIAlign, and building them by name."""

from __future__ import annotations

import pytest
import torch
import torchvision

from codetr_lab.models.config import CoDETRConfig, ConfigError, override
from codetr_lab.models.heads import ATSSHead, FasterRCNNHead, build_heads
from codetr_lab.models.heads.anchors import make_anchors, tokens
from codetr_lab.models.heads.roi_align import SMALL_MAP, roi_align, roi_align_matrices
from codetr_lab.structures import ImageBatch


def test_anchors_stand_on_the_corners_of_cells_and_end_with_the_padded_size() -> None:
    batch = ImageBatch.from_images([torch.zeros(3, 32, 48), torch.zeros(3, 20, 30)])
    pyramid = [torch.zeros(2, 4, 2, 3), torch.zeros(2, 4, 1, 2)]
    anchors = make_anchors(pyramid, (16, 32), torch.tensor([[1.0, 2], [4, 4]]), batch)
    assert anchors.boxes.shape == (16, 4)
    assert anchors.boxes[0].tolist() == [-8, -16, 8, 16]
    assert anchors.boxes[1].tolist() == [-32, -32, 32, 32]
    assert anchors.boxes[4].tolist() == [24, -16, 40, 16]  # row 0, column 2
    assert anchors.boxes[6].tolist() == [-8, 0, 8, 32]  # row 1, column 0
    assert anchors.boxes[12].tolist() == [-16, -32, 16, 32]
    assert anchors.level.tolist() == [0] * 12 + [1] * 4
    assert anchors.stride.tolist() == [16] * 12 + [32] * 4
    assert anchors.valid[0].all()
    # 20 x 30 pixels reach into 2 x 2 cells of 16 and one of 32.
    assert anchors.valid[1].reshape(-1, 2)[:, 0].tolist() == [True, True, False, True, True, False, True, False]
    assert (anchors.candidates(1).valid == anchors.valid[1]).all()


def test_tokens_are_row_major_and_levels_follow_each_other() -> None:
    first, second = torch.arange(12.0).view(1, 2, 2, 3), torch.arange(2.0).view(1, 2, 1, 1) + 100
    assert tokens([first, second])[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 100]
    assert tokens([first, second])[0, :, 1].tolist() == [6, 7, 8, 9, 10, 11, 101]


@pytest.mark.parametrize("stride", [8, 16])
def test_roi_align_by_matrices_equals_torchvision(stride: int) -> None:
    generator = torch.Generator().manual_seed(stride)
    feature = torch.randn(3, 5, 96 // stride, 128 // stride, generator=generator, requires_grad=True)
    corner = torch.rand(40, 2, generator=generator) * 110 - 10
    boxes = torch.cat([corner, corner + torch.rand(40, 2, generator=generator) * 90], 1)
    boxes[:3] = torch.tensor([[0.0, 0, 128, 96], [5, 5, 5, 5], [150, 150, 200, 200]])
    image = torch.tensor([0] * 25 + [2] * 15)
    weight = torch.randn(40, 5, 7, 7, generator=generator)
    ours = roi_align_matrices(feature, boxes, image, 7, 1 / stride)
    numbered = torch.cat([image[:, None].float(), boxes], 1)
    theirs = torchvision.ops.roi_align(feature, numbered, 7, 1 / stride, sampling_ratio=-1, aligned=True)
    assert torch.allclose(ours, theirs, atol=2e-5)
    gradients = [torch.autograd.grad((pooled * weight).sum(), feature)[0] for pooled in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-4)


def test_roi_align_takes_torchvision_on_large_maps() -> None:
    side = int(SMALL_MAP**0.5) + 1
    feature, boxes = torch.randn(1, 2, side, side), torch.tensor([[10.0, 10, 90, 60]])
    image = torch.zeros(1, dtype=torch.long)
    assert torch.allclose(
        roi_align(feature, boxes, image, 7, 1 / 8), roi_align_matrices(feature, boxes, image, 7, 1 / 8), atol=1e-5
    )


@pytest.mark.parametrize("side", [4, 40])
def test_roi_align_without_boxes_stays_in_the_graph(side: int) -> None:
    feature = torch.randn(2, 3, side, side, requires_grad=True)
    pooled = roi_align(feature, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 7, 1 / 8)
    assert pooled.shape == (0, 3, 7, 7)
    assert torch.autograd.grad(pooled.sum(), feature)[0].abs().max() == 0


def test_repeated_heads_are_numbered() -> None:
    config = override(CoDETRConfig(), aux_heads=("atss", "faster_rcnn", "atss"), **{"faster_rcnn.roi_hidden": 8})
    heads = build_heads(config, (8, 16, 32, 64, 128))
    assert list(heads) == ["atss", "faster_rcnn", "atss_2"]
    assert [head.name for head in heads.values()] == list(heads)
    assert isinstance(heads["atss_2"], ATSSHead) and isinstance(heads["faster_rcnn"], FasterRCNNHead)
    assert len(build_heads(override(config, aux_heads=()), (8, 16))) == 0


def test_unknown_heads_and_too_few_levels() -> None:
    with pytest.raises(ConfigError, match=r"unknown auxiliary head 'atts'; did you mean 'atss'\?"):
        build_heads(override(CoDETRConfig(), aux_heads=("atts",)), (8, 16))
    with pytest.raises(ConfigError, match=r"roi_levels is 4, but the pyramid has 3 levels"):
        FasterRCNNHead(CoDETRConfig(), (8, 16, 32))
