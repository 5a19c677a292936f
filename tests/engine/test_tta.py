"""Test-time augmentation: views, merging, and what a mirrored view gives back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny

import codetr_lab
from codetr_lab.data.shapes import Shapes
from codetr_lab.engine.evaluate import evaluate
from codetr_lab.engine.predict import predictions
from codetr_lab.engine.tta import TTA, _merged, _mirrored, detect
from codetr_lab.models.codetr import CoDETR
from codetr_lab.structures import Detections

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = torch.tensor(rows).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long(), torch.arange(len(rows)))


def test_one_view_is_the_plain_prediction_after_soft_nms() -> None:
    torch.manual_seed(0)
    model = CoDETR(tiny("lab_co_k2")).eval()
    one = TTA(scales=(1.0,), flip=False, iou=1.1, min_score=0.0)  # nothing is lowered
    expected = model.predict([IMAGE], heads=("detr", "atss"))[0]
    for head, detections in detect(model, IMAGE, ("detr", "atss"), one).items():
        assert torch.equal(detections.boxes, expected[head].boxes)
        assert torch.equal(detections.scores, expected[head].scores)


def test_views_are_scaled_and_mirrored() -> None:
    """A detector that finds the brightest column finds it at the same place in every view."""

    class Brightest(torch.nn.Module):
        config = tiny("lab_baseline")

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen: list[tuple[int, ...]] = []

        def detect(self, batch, heads=None):
            self.seen.append(tuple(batch.pixels.shape))
            results = []
            for pixels in batch.pixels:
                column = float(pixels.sum((0, 1)).argmax())
                height = pixels.shape[1]
                results.append({"detr": found((column, 0, column + 1, height, 0.9, 2))})
            return results

    image = np.zeros((60, 90, 3), np.uint8)
    image[:, 20:23] = 255
    model = Brightest()
    merged = detect(model, image, None, TTA(scales=(0.5, 1.0, 2.0), iou=0.2))["detr"]  # type: ignore[arg-type]
    assert model.seen == [(2, 3, 21, 32), (2, 3, 43, 64), (2, 3, 85, 128)]
    assert len(merged) == 1  # as many as one view gives
    box = merged.boxes[0].tolist()
    assert 19 <= box[0] <= 23 and 20 <= box[2] <= 24 and box[1] == 0 and box[3] == pytest.approx(60, abs=0.5)


def test_mirroring_twice_is_nothing() -> None:
    boxes = found((1, 2, 5, 7, 0.5, 0))
    mirrored = _mirrored(boxes, 90)
    assert mirrored.boxes.tolist() == [[85, 2, 89, 7]]
    assert torch.equal(_mirrored(mirrored, 90).boxes, boxes.boxes)


def test_merging_lowers_repeats_of_a_class() -> None:
    first = found((0, 0, 10, 10, 0.9, 0), (50, 50, 60, 60, 0.4, 1))
    second = found((0, 0, 10, 10.5, 0.8, 0), (0, 0, 10, 10, 0.7, 1))
    merged = _merged([first, second], TTA())
    assert merged.scores.tolist() == pytest.approx([0.9, 0.7]) and merged.labels.tolist() == [0, 1]
    more = _merged([first, replace(second, scores=second.scores)], TTA(iou=0.99))  # not alike enough
    assert more.scores.tolist() == pytest.approx([0.9, 0.8])
    assert len(_merged([found(), found()], TTA())) == 0


def test_tta_in_evaluation_and_streams() -> None:
    model, data = codetr_lab.load("lab_co_k2"), Shapes("val", images=3)
    tta = TTA(scales=(1.0,))
    ((number, by_head),) = predictions(model, [data.image(0)], ("detr",), tta=tta)
    assert (number == 0 and len(by_head["detr"]) == model.config.max_detections == 100) or len(by_head["detr"]) <= 100
    metrics = evaluate(model, data, heads=("detr", "atss"), tta=tta, progress=False)
    plain = evaluate(model, data, heads=("detr", "atss"), progress=False)
    for head in ("detr", "atss"):
        assert abs(metrics[head].ap - plain[head].ap) < 0.3 and metrics[head].ap > 0.2


def test_scales_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="scales above zero"):
        TTA(scales=())
    with pytest.raises(ValueError, match="scales above zero"):
        TTA(scales=(0.0, 1.0))
