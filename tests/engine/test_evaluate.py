"""COCO numbers against the reference numbers, against pycocotools, and through a model to the file's own pixels."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from codetr_lab.data.dataset import DetectionDataset
from codetr_lab.data.shapes import Shapes
from codetr_lab.engine.evaluate import (
    METRIC_NAMES,
    CocoMetrics,
    EvaluationError,
    FirstImages,
    coco_metrics,
    detect_all,
    evaluate,
    format_metrics,
)
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.config import ConfigError
from codetr_lab.models.presets import create_model
from codetr_lab.structures import Detections, ImageBatch, Target


def pycocotools_stats(truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str = "bbox") -> list[float]:
    """The reference's 12 numbers."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [value if value > -1 else math.nan for value in evaluator.stats.tolist()]


def made_up(seed: int, images: int = 12, classes: int = 4) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Random objects, a tenth of them crowd, one class without any; and results near them, with ties in the scores."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(images):
        for _ in range(int(rng.integers(0, 7))):
            x, y, w, h = rng.uniform(0, 100), rng.uniform(0, 100), rng.uniform(4, 150), rng.uniform(4, 150)
            label = int(rng.integers(1, classes))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": 10 * image, "category_id": 7 * label, "bbox": [x, y, w, h],
                 "area": w * h, "iscrowd": int(rng.random() < 0.1)}
            )  # fmt: skip
            for _ in range(int(rng.integers(0, 4))):
                jitter = rng.normal(0, 6, 4)
                guess = label if rng.random() < 0.8 else int(rng.integers(1, classes + 1))
                box = [x + jitter[0], y + jitter[1], max(1.0, w + jitter[2]), max(1.0, h + jitter[3])]
                results.append(
                    {"image_id": 10 * image, "category_id": 7 * guess, "bbox": box,
                     "score": round(float(rng.random()), 1)}
                )  # fmt: skip
    truth = {
        "images": [{"id": 10 * image, "width": 256, "height": 256} for image in range(images)],
        "annotations": annotations,
        "categories": [{"id": 7 * label, "name": f"class {label}"} for label in range(1, classes + 1)],
    }
    return truth, results


# The numbers


def test_reference_numbers_of_val2014(golden: Path):
    folder = golden / "eval"
    truth = json.loads((folder / "coco_val2014_100_gt.json").read_text())
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    before = copy.deepcopy((truth, results))
    metrics = coco_metrics(truth, results)
    expected = json.loads((folder / "pycocotools_expected_stats.json").read_text())
    assert list(metrics.stats) == list(METRIC_NAMES)
    for name, value in zip(METRIC_NAMES, expected, strict=True):
        assert metrics[name] == pytest.approx(value, abs=1e-9), name
    assert (metrics.ap, metrics.ap50) == (metrics["AP"], metrics["AP50"])
    assert metrics.images == 100
    defined = [ap for ap in metrics.per_class.values() if not math.isnan(ap)]
    assert len(metrics.per_class) == 80
    assert sum(defined) / len(defined) == pytest.approx(metrics.ap, abs=1e-12)
    assert (truth, results) == before  # the caller's records are not written into


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_pycocotools_with_crowd_ties_and_an_empty_class(seed: int):
    truth, results = made_up(seed)
    assert any(annotation["iscrowd"] for annotation in truth["annotations"])
    metrics = coco_metrics(truth, results)
    assert list(metrics.stats.values()) == pytest.approx(pycocotools_stats(truth, results), abs=1e-9, nan_ok=True)
    assert math.isnan(metrics.per_class["class 4"])
    for label in (1, 2, 3):
        alone = copy.deepcopy(truth)
        alone["annotations"] = [a for a in alone["annotations"] if a["category_id"] == 7 * label]
        kept = [r for r in results if r["category_id"] == 7 * label]
        assert metrics.per_class[f"class {label}"] == pytest.approx(pycocotools_stats(alone, kept)[0], abs=1e-9)


def test_masks_equal_pycocotools():
    dataset = Shapes("val", images=6)
    truth = dataset.to_coco()
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "segmentation": a["segmentation"],
         "score": 1 / (1 + a["id"])}
        for a in truth["annotations"]
        if a["id"] % 4
    ]  # fmt: skip
    metrics = coco_metrics(truth, results, "segm")
    expected = pycocotools_stats(truth, results, "segm")
    assert list(metrics.stats.values()) == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert 0.5 < metrics.ap < 1


def test_nothing_found_is_zero_and_nothing_to_find_is_nan():
    truth, results = made_up(0)
    none_found = coco_metrics(truth, [])
    assert none_found.ap == none_found["AR100"] == 0
    assert math.isnan(none_found.per_class["class 4"])
    assert none_found.per_class["class 1"] == 0
    nothing_there = coco_metrics({**truth, "annotations": []}, results)
    assert all(math.isnan(value) for value in nothing_there.stats.values())
    assert all(math.isnan(value) for value in nothing_there.per_class.values())
    plain = none_found.to_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert (plain["per_class"]["class 4"], plain["stats"]["AP"], plain["images"]) == (None, 0, 12)


def test_a_found_crowd_region_is_no_false_positive():
    truth, _ = made_up(0)
    crowd = {"id": 1, "image_id": 0, "category_id": 7, "bbox": [0, 0, 100, 100], "area": 1e4, "iscrowd": 1}
    single = {"id": 2, "image_id": 0, "category_id": 7, "bbox": [150, 150, 40, 40], "area": 1600, "iscrowd": 0}
    results = [
        {"image_id": 0, "category_id": 7, "bbox": [10, 10, 30, 30], "score": 0.9},
        {"image_id": 0, "category_id": 7, "bbox": [150, 150, 40, 40], "score": 0.8},
    ]
    assert coco_metrics({**truth, "annotations": [crowd, single]}, results).ap == pytest.approx(1)
    assert coco_metrics({**truth, "annotations": [single]}, results).ap == pytest.approx(0.5)


def test_annotation_ids_from_zero_do_not_lose_a_match():
    truth, results = made_up(2)
    from_zero = copy.deepcopy(truth)
    for annotation in from_zero["annotations"]:
        annotation["id"] -= 1
    assert coco_metrics(from_zero, results).stats == pytest.approx(coco_metrics(truth, results).stats, nan_ok=True)


def _without(records: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != key} for record in records]


def test_records_that_do_not_fit_are_named():
    truth, results = made_up(0)
    with pytest.raises(EvaluationError, match="has no 'categories'"):
        coco_metrics({"images": [], "annotations": []}, [])
    with pytest.raises(EvaluationError, match="has no images"):
        coco_metrics({**truth, "images": []}, [])
    with pytest.raises(EvaluationError, match="annotation 1: has no 'area'"):
        coco_metrics({**truth, "annotations": _without(truth["annotations"], "area")}, [])
    with pytest.raises(EvaluationError, match="result 0: has no 'score'"):
        coco_metrics(truth, _without(results, "score"))
    with pytest.raises(EvaluationError, match="result 0: image_id 5 is not in"):
        coco_metrics(truth, [{**results[0], "image_id": 5}])
    with pytest.raises(EvaluationError, match="result 0: category_id 3 is not in"):
        coco_metrics(truth, [{**results[0], "category_id": 3}])
    with pytest.raises(EvaluationError, match="unknown iou_type 'mask'"):
        coco_metrics(truth, results, "mask")


# The table


def test_the_table_shows_every_head_and_class():
    stats = dict.fromkeys(METRIC_NAMES, 0.5) | {"AP": 0.1234, "APl": math.nan}
    detr = CocoMetrics(stats, {"circle": 0.25, "a long class name": math.nan}, 40)
    atss = CocoMetrics(dict.fromkeys(METRIC_NAMES, 0.75), {"circle": 1.0, "a long class name": 0.0}, 40)
    lines = format_metrics({"detr": detr, "atss": atss}).splitlines()
    assert lines[0].split() == ["head", *METRIC_NAMES]
    assert lines[1].split() == ["detr", "0.123", "0.500", "0.500", "0.500", "0.500", "-", *["0.500"] * 6]
    assert lines[2].split() == ["atss", *["0.750"] * 12]
    assert lines[4].split() == ["AP", "by", "class", "detr", "atss"]
    assert lines[5].split() == ["circle", "0.250", "1.000"]
    assert lines[6].split() == ["a", "long", "class", "name", "-", "0.000"]
    assert lines[-1] == "40 images"
    assert len({len(line) for line in lines[:3]}) == 1


# Through a model


class Oracle(CoDETR):
    """Finds every object, exactly with `detr`, and shifted by a quarter of its side with `atss`."""

    detectors = ("detr", "atss")

    def __init__(self, model: CoDETR, dataset: DetectionDataset) -> None:
        torch.nn.Module.__init__(self)
        self.config = model.config
        self.place = torch.nn.Parameter(torch.zeros(1))
        self.dataset, self.seen, self.heads_asked = dataset, 0, []

    def detect(self, batch: ImageBatch, heads: Any = ("detr",)) -> list[dict[str, Detections]]:
        self.heads_asked.append(tuple(heads))
        found = []
        for image in range(len(batch)):
            target = self.dataset.target(self.seen)
            self.seen += 1
            scale = torch.tensor([*batch.scales[image]] * 2)
            boxes = target["boxes"] * scale
            shift = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2) / 4
            scores = torch.linspace(1, 0.5, len(boxes))
            order = torch.arange(len(boxes))
            exact = Detections(boxes, scores, target["labels"], order)
            moved = Detections(boxes + shift, scores, target["labels"], order)
            found.append({head: exact if head == "detr" else moved for head in heads})
        return found


class Wide(Shapes):
    """Images that are resized with unequal rounding, and ids that are no indices."""

    category_ids = (3, 1, 9, 12, 40, 41)

    def image(self, index: int) -> Any:
        return super().image(index)[: 97 if index % 2 else 128]

    def target(self, index: int, *, masks: bool = True) -> Target:
        target = super().target(index, masks=False)
        boxes = target["boxes"]
        boxes[:, 1::2] = boxes[:, 1::2].clamp(max=97 if index % 2 else 128)
        kept = boxes[:, 3] - boxes[:, 1] > 2
        return {
            "boxes": boxes[kept], "labels": target["labels"][kept], "iscrowd": target["iscrowd"][kept],
            "area": target["area"][kept], "image_id": torch.tensor(1000 + index),
        }  # fmt: skip

    def to_coco(self) -> dict[str, Any]:
        truth = super().to_coco()
        return {**truth, "images": [{**image, "id": 1000 + image["id"]} for image in truth["images"]]}


@pytest.fixture(scope="module")
def model() -> CoDETR:
    torch.manual_seed(0)
    return create_model("lab_co_k1", **{"image.short": 75, "image.long": 211}).eval()


def test_boxes_come_back_in_the_files_pixels_with_the_data_sets_ids(model: CoDETR):
    dataset = Wide("val", images=5)
    oracle = Oracle(model, dataset)
    metrics = evaluate(oracle, dataset, heads=("detr", "atss"), batch_size=2, progress=False)
    assert list(metrics) == ["detr", "atss"]
    assert metrics["detr"].ap == pytest.approx(1)
    assert metrics["detr"].images == 5
    assert metrics["atss"].ap < 0.1  # IoU 0.39
    assert len(oracle.heads_asked) <= 5 and set(oracle.heads_asked) == {("detr", "atss")}  # one pass serves both heads


def test_a_limit_evaluates_on_the_first_images_only(model: CoDETR):
    dataset = Wide("val", images=8)
    oracle = Oracle(model, dataset)
    metrics = evaluate(oracle, dataset, batch_size=2, limit=3, progress=False)["detr"]
    assert (metrics.images, oracle.seen) == (3, 3)
    assert metrics.ap == pytest.approx(1)  # the other images' objects are not missed
    first = FirstImages(dataset, 3)
    assert isinstance(first, DetectionDataset)
    assert first.file_name(2) == dataset.file_name(2)
    assert np.array_equal(first.image(2), dataset.image(2))
    with pytest.raises(IndexError, match="the first 3 images"):
        first.image(3)
    assert len(FirstImages(dataset, 100)) == 8


def test_a_real_model_gives_the_same_numbers_in_any_batch_size_and_exports_them(model: CoDETR, tmp_path: Path):
    dataset = Shapes("val", images=5)
    model.train()
    one = evaluate(model, dataset, heads=("detr", "atss"), batch_size=1, progress=False)
    assert model.training  # as it was
    many = evaluate(
        model, dataset, heads=("detr", "atss"), batch_size=4, device="cpu", progress=False, export=tmp_path / "numbers"
    )
    for head in one:
        assert one[head].stats == pytest.approx(many[head].stats, abs=1e-4, nan_ok=True)
    truth = dataset.to_coco()
    for head in many:
        records = json.loads((tmp_path / "numbers" / f"results_{head}.json").read_text())
        assert {record["image_id"] for record in records} == set(range(5))
        assert {record["category_id"] for record in records} <= set(dataset.category_ids)
        assert all(r["bbox"][0] >= 0 and r["bbox"][0] + r["bbox"][2] <= 128 + 1e-3 for r in records)
        expected = pycocotools_stats(truth, records)
        assert list(many[head].stats.values()) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_what_cannot_be_evaluated_is_said(model: CoDETR):
    dataset = Shapes("val", images=2)
    with pytest.raises(EvaluationError, match="no head to evaluate"):
        detect_all(model, dataset, heads=(), progress=False)
    with pytest.raises(ConfigError, match="unknown head 'atts'; did you mean 'atss'"):
        detect_all(model, dataset, heads=("atts",), progress=False)
    with pytest.raises(EvaluationError, match="0 images"):
        evaluate(model, dataset, limit=0, progress=False)
    three = create_model("lab_baseline", num_classes=3)
    with pytest.raises(EvaluationError, match="shapes: has 6 classes, the model knows 3"):
        evaluate(three, dataset, progress=False)
    empty = FirstImages(dataset, 1)
    empty.count = 0
    with pytest.raises(EvaluationError, match="has no images"):
        detect_all(model, empty, progress=False)
