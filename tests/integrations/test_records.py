"""Records hold what the library says, field by field."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from codetr_lab.data.shapes import Shapes
from codetr_lab.data.transforms import collate, evaluation_sample
from codetr_lab.integrations.page import write_page
from codetr_lab.integrations.records import IOB_GRID, ImageRecord, IntegrationError, fingerprint, records
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.presets import create_model

MIN_SCORE = 0.2


@pytest.fixture(scope="module")
def made(models: dict[str, CoDETR], shapes: Shapes) -> list[ImageRecord]:
    paths = [Path(shapes.file_name(index)) for index in range(len(shapes))]
    return list(records(models, shapes, paths, min_score=MIN_SCORE))


def test_detections_are_the_models_own(made: list[ImageRecord], models: dict[str, CoDETR], shapes: Shapes) -> None:
    for index, record in enumerate(made):
        found = models["lab_co_k2"].predict([shapes.image(index)], heads=("detr", "atss", "faster_rcnn"))[0]
        for head, detections in found.items():
            kept = detections.select(detections.scores >= MIN_SCORE)
            assert [mark.score for mark in record.boxes[head]] == pytest.approx(kept.scores.tolist(), abs=1e-5)
            boxes = torch.tensor([mark.box for mark in record.boxes[head]]).reshape(-1, 4) * 128
            order = kept.boxes.sum(1).argsort()  # ties of float noise may come in another order
            own = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
            torch.testing.assert_close(own[own.sum(1).argsort()], kept.boxes[order], atol=1e-2, rtol=0)
        assert record.boxes.keys() >= {"lab_baseline_detr", "lab_baseline_queries"}


def test_queries_and_positives_are_the_traces(
    made: list[ImageRecord], models: dict[str, CoDETR], shapes: Shapes
) -> None:
    model = models["lab_co_k2"]
    batch, targets = collate([evaluation_sample(shapes, 1, model.config.image)])
    trace = model.trace(batch, targets)
    record = made[1]
    assert len(record.boxes["queries"]) == model.config.num_queries
    assert len(record.boxes["matched_queries"]) == len(shapes.target(1)["boxes"]) == len(record.truth)
    for head in ("atss", "faster_rcnn"):
        marks = record.boxes[f"queries_{head}"]
        expected = trace.groups[head].assignments[-1][0].gt_index.clamp(min=-1).tolist()
        assert [mark.values["object"] for mark in marks] == expected
        counts = trace.heads[head].assignments[0].count_per_object().tolist()
        assert [mark.values[f"positives_{head}"] for mark in record.truth] == counts
        assert record.numbers[f"positives_per_object_{head}"] == pytest.approx(sum(counts) / len(counts))
    total = float(sum(trace.losses.values()))
    shown = sum(value for name, value in record.numbers.items() if name.startswith("loss_"))
    assert shown == pytest.approx(total, rel=1e-4)


def test_numbers_agree_with_one_another(made: list[ImageRecord]) -> None:
    for record in made:
        objects = len(record.truth)
        assert record.numbers["detr_right"] + record.numbers["detr_missed"] == objects
        assert record.numbers["detr_right"] + record.numbers["detr_false"] == len(record.boxes["detr"])
        curve = record.curves["iof_curve"]
        assert len(curve) == len(IOB_GRID) and curve == sorted(curve, reverse=True)
        assert record.numbers["iof_at_iob_20"] == curve[4]
        for score_map in record.maps.values():
            assert score_map.shape == record.size and score_map.min() == 1 and score_map.max() == 255
        assert {"encoder_map", "decoder_map", "lab_baseline_encoder_map"} <= record.maps.keys()


def test_a_crowd_does_not_shift_the_count(models: dict[str, CoDETR]) -> None:
    class Crowded(Shapes):
        def target(self, index: int, *, masks: bool = True) -> dict[str, torch.Tensor]:
            target = super().target(index, masks=masks)
            target["iscrowd"][0] = True
            return target

    crowded = Crowded("val", images=2)
    (record,) = records(models, crowded, [Path("0.png"), Path("1.png")], indices=[1])
    assert record.truth[0].values["crowd"] and "positives_atss" not in record.truth[0].values
    assert all("positives_atss" in mark.values for mark in record.truth[1:])
    assert {mark.values["object"] for mark in record.boxes["matched_queries"]} == set(range(1, len(record.truth)))


def test_the_fingerprint_knows_weights_and_settings(models: dict[str, CoDETR]) -> None:
    first = fingerprint(models, 0.2)
    assert fingerprint(models, 0.2) == first != fingerprint(models, 0.3)
    changed = create_model("lab_baseline")
    assert fingerprint({**models, "lab_baseline": changed}, 0.2) != first


def test_other_classes_are_refused(shapes: Shapes) -> None:
    model = create_model("lab_baseline", num_classes=3).eval()
    with pytest.raises(IntegrationError, match="three knows 3 classes, shapes has 6"):
        next(iter(records({"three": model}, shapes, [Path("0.png")] * 4)))


def test_the_page_holds_the_records(models: dict[str, CoDETR], shapes: Shapes, tmp_path: Path) -> None:
    page = write_page(models, shapes, tmp_path / "page", limit=2, progress=False)
    text = page.read_text(encoding="utf-8")
    assert "/*DATA*/" not in text and "http" not in text.replace("http-equiv", "")
    for name in ("images/000000.png", "maps/encoder_map/1.png", "maps/lab_baseline_decoder_map/0.png"):
        assert (page.parent / name).is_file(), name
    assert '"title": "ATSS queries"' in text and dataclasses.fields(ImageRecord)
