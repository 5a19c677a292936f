"""Detections drawn with Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codetr_lab.structures import Detections
from codetr_lab.viz.annotate import annotate
from codetr_lab.viz.colors import head_color, rgb

CLASSES = ("circle", "square")


def found() -> Detections:
    boxes = torch.tensor([[100.0, 200.0, 300.0, 400.0], [0.0, 0.0, 20.0, 20.0]])
    return Detections(boxes, torch.tensor([0.9, 0.2]), torch.tensor([0, 1]), torch.arange(2))


def test_every_head_has_a_panel_in_its_colour() -> None:
    image = np.full((480, 640, 3), 90, np.uint8)
    picture = np.asarray(annotate(image, {"detr": found(), "faster_rcnn": found()}, CLASSES))
    assert picture.shape[1] > 2 * 640 and picture.shape[0] > 480
    caption = picture.shape[0] - 480
    second = picture.shape[1] - 640
    for left, head in ((0, "detr"), (second, "faster_rcnn")):
        assert tuple(picture[caption + 300, left + 101]) == rgb(head_color(head))  # the box's left side
        assert tuple(picture[caption + 300, left + 200]) == (90, 90, 90)  # its middle is untouched


def test_the_threshold_leaves_weak_detections_out() -> None:
    image = np.full((480, 640, 3), 90, np.uint8)
    strict, loose = (np.asarray(annotate(image, {"atss": found()}, CLASSES, t)) for t in (0.5, 0.1))
    caption = strict.shape[0] - 480
    corner = slice(caption, caption + 15), slice(0, 15)
    assert (strict[corner] == 90).all()
    assert (loose[corner] != 90).any()


def test_small_images_are_enlarged_and_nothing_found_is_fine() -> None:
    image = np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3)
    nothing = found().select(torch.zeros(2, dtype=torch.bool))
    picture = np.asarray(annotate(image, {"original": nothing}, ()))
    assert picture.shape[1] == 640
    np.testing.assert_array_equal(picture[-480::10, ::10], image)


def test_no_head_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one head"):
        annotate(np.zeros((10, 10, 3), np.uint8), {}, CLASSES)
