"""The Mask R-CNN head: Faster R-CNN's box branch, and masks against torchvision's."""

from __future__ import annotations

import pytest
import torch
from head_case import CONFIG, EMPTY, STRIDES, TARGETS, batch, pyramid
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from codetr_lab.models.config import ConfigError, override
from codetr_lab.models.heads.faster_rcnn import FasterRCNNHead
from codetr_lab.models.heads.mask_rcnn import MaskRCNNHead, crop_masks
from codetr_lab.models.targets import TargetError


@pytest.fixture
def head() -> MaskRCNNHead:
    torch.manual_seed(0)
    return MaskRCNNHead(override(CONFIG, lambda_2=1 / 3), STRIDES)


def test_the_box_branch_is_faster_rcnns(head: MaskRCNNHead) -> None:
    plain = FasterRCNNHead(override(CONFIG, lambda_2=1 / 3), STRIDES)
    missing = plain.load_state_dict(head.state_dict(), strict=False)
    assert not missing.missing_keys and all(key.startswith("mask_") for key in missing.unexpected_keys)
    first, second = (h.supervise(pyramid(), batch(), TARGETS, torch.Generator().manual_seed(0)) for h in (head, plain))
    for name, value in second.losses.items():
        assert torch.equal(first.losses[name], value)
    for mine, other in zip(head.predict(pyramid(), batch()), plain.predict(pyramid(), batch()), strict=True):
        assert torch.equal(mine.boxes, other.boxes) and torch.equal(mine.scores, other.scores)


def test_mask_targets_are_torchvisions() -> None:
    masks, boxes = TARGETS[0]["masks"], torch.tensor([[8.0, 8, 52, 44], [55, 60, 110, 118], [12, 14, 40, 38]])
    gt_index = torch.tensor([0, 1, 0])
    # Torchvision's pixels have their middles at whole numbers, and it leaves the edge soft.
    expected = project_masks_on_boxes(masks, boxes - 0.5, gt_index, 28)
    assert torch.equal(crop_masks(masks, boxes, gt_index, 28), (expected >= 0.5).float())


def test_the_loss_is_cross_entropy_of_the_own_class(head: MaskRCNNHead) -> None:
    output = head.supervise(pyramid(1), batch((128, 128)), TARGETS[:1])
    (found,) = output.assignments
    drawn = found.positive & found.used
    boxes, gt_index = found.candidates.boxes[drawn], found.gt_index[drawn]
    logits = head.masks(pyramid(1), [boxes])
    own = torch.stack([logits[n, label] for n, label in enumerate(TARGETS[0]["labels"][gt_index].tolist())])
    goal = crop_masks(TARGETS[0]["masks"], boxes, gt_index, 28)
    expected = torch.nn.functional.binary_cross_entropy(own.sigmoid(), goal)
    assert own.shape == goal.shape == (int(drawn.sum()), 28, 28)
    assert output.losses["mask"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_masks_of_detections_have_the_images_size(head: MaskRCNNHead) -> None:
    images = batch((128, 128), (64, 80))
    for found, size in zip(head.predict(pyramid(), images), images.valid_sizes, strict=True):
        assert found.masks.shape == (len(found), *size) and found.masks.dtype == torch.bool
        for box, mask in zip(found.boxes, found.masks, strict=True):
            y, x = mask.nonzero(as_tuple=True)
            if len(y):
                assert x.min() >= box[0] - 2 and x.max() <= box[2] + 2 and y.min() >= box[1] - 2
    larger = found.to_original((0.5, 0.5), (128, 160))
    assert larger.masks.shape == (len(found), 128, 160)


def test_missing_masks_are_named(head: MaskRCNNHead) -> None:
    bare = {key: value for key, value in TARGETS[1].items() if key != "masks"}
    with pytest.raises(TargetError, match="target of image 1 has no 'masks', which mask_rcnn learns"):
        head.supervise(pyramid(), batch(), [TARGETS[0], bare])
    nothing = {key: value for key, value in EMPTY[0].items() if key != "masks"}
    assert head.supervise(pyramid(), batch(), [TARGETS[0], nothing]).losses["mask"] > 0


def test_too_many_levels_are_named() -> None:
    with pytest.raises(ConfigError, match="mask_rcnn: roi_levels is 5, but the pyramid has 4 levels"):
        MaskRCNNHead(override(CONFIG, **{"mask_rcnn.roi_levels": 5}), STRIDES)
