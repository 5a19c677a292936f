"""What the workbench computes equals what the library computes."""

from __future__ import annotations

import threading

import apps_case
import numpy as np
import pytest
import torch

from apps.bench import SHOWN_SIDE, Bench, Memory, Upload, titles
from codetr_lab import assign
from codetr_lab.images import prepare
from codetr_lab.structures import ImageBatch


def test_titles_say_k_and_stay_apart(bench: Bench) -> None:
    assert bench.titles == {"lab_baseline": "Baseline, K = 0", "lab_co_k2": "Co-DETR, K = 2"}
    twice = {"a": bench.models["lab_co_k2"], "b": bench.models["lab_co_k2"]}
    assert titles(twice) == {"a": "Co-DETR, K = 2 (a)", "b": "Co-DETR, K = 2 (b)"}


def test_seen_is_the_models_own_trace(bench: Bench) -> None:
    model, dataset = bench.models["lab_co_k2"], bench.dataset
    ready = prepare(dataset.image(1), model.config.image)
    trace = model.trace(ImageBatch.from_images([ready.pixels]), [dataset.target(1)])
    seen = bench.seen("lab_co_k2", 1)
    assert list(seen.assignments) == list(seen.detections) == bench.heads("lab_co_k2")
    assert seen.assignments["original"].gt_index.equal(trace.groups["original"].assignments[-1][0].gt_index)
    for head in ("atss", "faster_rcnn"):
        assert seen.assignments[head].gt_index.equal(trace.heads[head].assignments[0].gt_index)
        assert seen.detections[head].scores.equal(trace.heads[head].detections[0].scores)
    assert bench.seen("lab_co_k2", 1) is seen


def test_own_parameters_change_nothing(bench: Bench) -> None:
    config = bench.models["lab_co_k2"].config
    same = bench.assignments("lab_co_k2", 1, config.atss.top_k, config.faster_rcnn.roi_positive_iou)
    for head, assignment in bench.seen("lab_co_k2", 1).assignments.items():
        assert same[head] is assignment


def test_moved_sliders_assign_the_same_candidates_again(bench: Bench) -> None:
    seen = bench.seen("lab_co_k2", 1).assignments
    moved = bench.assignments("lab_co_k2", 1, 4, 0.4)
    atss = seen["atss"]
    assert moved["atss"].gt_index.equal(assign.atss(atss.candidates, atss.target, top_k=4).gt_index)
    roi = seen["faster_rcnn"]
    expected = assign.max_iou(roi.candidates, roi.target, positive=0.4, negative=0.4, low_quality=False)
    assert moved["faster_rcnn"].gt_index.equal(expected.gt_index)
    settings = bench.models["lab_co_k2"].config.faster_rcnn
    assert int(moved["faster_rcnn"].used.sum()) <= settings.roi_samples
    assert int(moved["faster_rcnn"].count_per_object().sum()) <= settings.roi_samples * settings.roi_positive_fraction
    assert moved["original"] is seen["original"]


def test_own_image_gives_predict_at_the_shown_size(bench: Bench) -> None:
    big = np.random.default_rng(0).integers(0, 255, (1000, 1600, 3), dtype=np.uint8)
    shown, found = bench.detect("lab_co_k2", Upload("key", big))
    assert shown.shape == (SHOWN_SIDE * 1000 // 1600, SHOWN_SIDE, 3)
    plain = bench.models["lab_co_k2"].predict([big], heads=("detr", "atss"))[0]
    torch.testing.assert_close(found["original"].boxes * 2, plain["detr"].boxes)
    torch.testing.assert_close(found["atss"].scores, plain["atss"].scores)
    assert bench.detect("lab_co_k2", Upload("key", big))[1] is found


def test_nothing_to_show_is_said(bench: Bench) -> None:
    with pytest.raises(ValueError, match="at least one model"):
        Bench({}, apps_case.images())


def test_memory_keeps_the_last_and_computes_once() -> None:
    memory, computed = Memory(2), []

    def compute(key: int) -> int:
        computed.append(key)
        return key * 10

    for key in (1, 2, 1, 3, 1, 2):
        assert memory.get(key, lambda key=key: compute(key)) == key * 10
    assert computed == [1, 2, 3, 2]
    threads = [threading.Thread(target=memory.get, args=(7, lambda: compute(7))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert computed.count(7) == 1
