"""What the workbench computes equals what the library computes."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path

import apps_case
import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from apps.bench import SHOWN_SIDE, Bench, found_by_heads, titles
from apps.memory import Memory, held_bytes
from apps.parts import PARTS, Parts, figure_json
from apps.picture import Picture, Upload
from apps.runs import find_runs, read
from codetr_lab import assign
from codetr_lab.analysis import InstabilityRecorder, cross_attention, discriminability, iof_iob_curve
from codetr_lab.engine.evaluate import evaluate
from codetr_lab.images import prepare
from codetr_lab.structures import ImageBatch
from codetr_lab.viz import image_figure
from codetr_lab.viz.sketch import Sketch

MODEL = "lab_co_k2"


def test_titles_say_k_and_stay_apart(bench: Bench) -> None:
    assert bench.titles == {"lab_baseline": "Baseline, K = 0", MODEL: "Co-DETR, K = 2"}
    twice = {"a": bench.models[MODEL], "b": bench.models[MODEL]}
    assert titles(twice) == {"a": "Co-DETR, K = 2 (a)", "b": "Co-DETR, K = 2 (b)"}


def test_seen_is_the_models_own_trace(bench: Bench) -> None:
    model, dataset = bench.models[MODEL], bench.dataset
    ready = prepare(dataset.image(1), model.config.image)
    trace = model.trace(ImageBatch.from_images([ready.pixels]), [dataset.target(1)])
    seen = bench.seen(MODEL, Picture(1))
    assert list(seen.assignments) == ["original", "atss", "faster_rcnn.rpn", "faster_rcnn"]
    assert seen.assignments["original"].gt_index.equal(trace.groups["original"].assignments[-1][0].gt_index)
    for head in ("atss", "faster_rcnn"):
        assert seen.assignments[head].gt_index.equal(trace.heads[head].assignments[0].gt_index)
        assert bench.detections(MODEL, Picture(1))[head].scores.equal(trace.heads[head].detections[0].scores)
    assert bench.seen(MODEL, Picture(1)) is seen


def test_turned_knobs_assign_the_same_candidates_again(bench: Bench) -> None:
    seen = bench.seen(MODEL, Picture(1)).assignments
    same = bench.assignments(MODEL, Picture(1), {"atss": {"top_k": 9}})
    assert all(same[head] is assignment for head, assignment in seen.items())
    moved = bench.assignments(MODEL, Picture(1), {"atss": {"top_k": 4}, "faster_rcnn": {"positive": 0.4}})
    atss = seen["atss"]
    assert moved["atss"].gt_index.equal(assign.atss(atss.candidates, atss.target, top_k=4).gt_index)
    settings = bench.models[MODEL].config.faster_rcnn
    assert int(moved["faster_rcnn"].used.sum()) <= settings.roi_samples
    assert moved["original"] is seen["original"]


def test_drawn_objects_take_the_place_of_the_images_own(bench: Bench) -> None:
    picture = Picture(1, drawn=((10, 10, 60, 70, 2),))
    seen = bench.seen(MODEL, picture)
    assert seen.target["boxes"].tolist() == [[10, 10, 60, 70]] and seen.target["labels"].tolist() == [2]
    atss = seen.assignments["atss"]
    assert int(atss.count_per_object()[0]) > 0
    own = bench.seen(MODEL, Picture(1)).assignments["atss"]
    assert atss.candidates.boxes.equal(own.candidates.boxes)
    added = Picture(1).with_box((70, 20, 40, 500, 1), bench.dataset)
    count = len(bench.dataset.target(1)["labels"])
    assert added.drawn is not None and len(added.drawn) == count + 1
    assert added.drawn[-1] == (40, 20, 70, 128, 1)
    assert Picture(1).with_box((200, 5, 300, 50, 1), bench.dataset) == Picture(1)


def test_detections_without_nms_and_with_one_for_all(bench: Bench) -> None:
    own, raw = (bench.detections(MODEL, Picture(1), nms) for nms in ("own", "none"))
    everywhere = bench.detections(MODEL, Picture(1), "all", 0.6)
    assert list(own) == list(raw) == list(everywhere) == ["original", "atss", "faster_rcnn"]
    atss = raw["atss"]
    assert len(atss) > len(own["atss"])
    # ATSS's own NMS is at 0.6, too, and keeps the best 100.
    torch.testing.assert_close(everywhere["atss"].scores[:100], own["atss"].scores)
    torch.testing.assert_close(everywhere["atss"].boxes[:100], own["atss"].boxes)
    kept = batched_nms(raw["original"].boxes, raw["original"].scores, raw["original"].labels, 0.6)
    assert everywhere["original"].scores.equal(raw["original"].scores[kept])
    assert raw["original"].scores[:100].equal(own["original"].scores)


def test_maps_and_curves_are_the_analyses(bench: Bench) -> None:
    trace = bench.seen(MODEL, Picture(1)).trace
    combined = bench.score_map(MODEL, Picture(1), "encoder", -1)
    assert combined.equal(discriminability(trace.memory, (128, 128))[0, 0])
    assert bench.score_map(MODEL, Picture(1), "encoder", 1).equal(discriminability(trace.memory[1:2], (128, 128))[0, 0])
    assert bench.score_map(MODEL, Picture(1), "matched", 2).equal(cross_attention(trace, layer=2)[0, 0])
    curve = bench.curve(MODEL, Picture(1), "encoder", -1)
    assert curve is not None
    assert curve.area() == iof_iob_curve(combined, bench.foreground(MODEL, Picture(1))).area()
    assert bench.curve(MODEL, Picture(1, drawn=()), "encoder", -1) is None


def test_own_image_gives_predict_and_a_finer_picture(bench: Bench) -> None:
    big = np.random.default_rng(0).integers(0, 255, (1000, 1600, 3), dtype=np.uint8)
    picture = Picture(0, Upload("key", "big.png", big))
    seen = bench.seen(MODEL, picture)
    assert seen.scene.target is None and not len(seen.target["boxes"])
    plain = bench.models[MODEL].predict([big], heads=("detr", "atss"))[0]
    found = found_by_heads(seen.trace)
    torch.testing.assert_close(found["atss"].scores, plain["atss"].scores)
    scale = torch.tensor([*seen.scene.batch.scales[0]] * 2)
    torch.testing.assert_close(found["original"].boxes / scale, plain["detr"].boxes)
    part = PARTS.get(seen.backdrop.removeprefix("parts/"))
    assert part is not None and part[1] == "image/jpeg"
    assert max(seen.scene.image.shape) < SHOWN_SIDE


def test_ap_is_evaluates(bench: Bench) -> None:
    metrics = bench.metrics("lab_baseline", 2)
    assert metrics["detr"].stats == pytest.approx(
        evaluate(bench.models["lab_baseline"], bench.dataset, limit=2, progress=False)["detr"].stats, nan_ok=True
    )


def test_relation_of_heads(bench: Bench) -> None:
    shares: list[float] = []
    matrix = bench.relation(MODEL, [Picture(0), Picture(1)], shares.append).matrix()
    assert list(matrix) == ["original", "atss", "faster_rcnn"] and shares == [0.5, 1.0]
    assert matrix["atss"]["atss"] == 0 < matrix["atss"]["faster_rcnn"]


def test_nothing_to_show_is_said() -> None:
    with pytest.raises(ValueError, match="at least one model"):
        Bench({}, apps_case.images())


def test_memory_computes_once_and_keeps_what_fits() -> None:
    memory, computed = Memory(300), []

    def compute(key: int) -> np.ndarray:
        computed.append(key)
        return np.full(100, key, dtype=np.uint8)

    for key in (1, 2, 1, 3, 4, 1, 2):
        assert memory.get(key, lambda key=key: compute(key))[0] == key
    assert computed == [1, 2, 3, 4, 2]
    threads = [threading.Thread(target=memory.get, args=(7, lambda: compute(7))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert computed.count(7) == 1
    assert held_bytes({"a": [torch.zeros(3), (np.zeros(2),)], "b": Picture()}) == 12 + 16
    assert len(memory.get("larger than all", lambda: np.zeros(5000))) == 5000


def test_large_parts_are_kept_by_content() -> None:
    parts = Parts(kept=100)
    key, new = parts.put(b"x" * 60, "text/plain")
    assert new and parts.put(b"x" * 60, "text/plain") == (key, False) and parts.get(key) == (b"x" * 60, "text/plain")
    parts.put(b"y" * 60, "text/plain")
    assert parts.get(key) is None and parts.get("../etc/passwd") is None
    figure = image_figure(np.zeros((4, 4, 3), dtype=np.uint8))
    assert "base64" not in figure_json(figure) and '"source":"parts/' in figure_json(figure)
    for same in (figure, image_figure.sketch(np.zeros((4, 4, 3), dtype=np.uint8))):
        shown = json.loads(figure_json(same, "parts/finer"))
        assert [picture["source"] for picture in shown["layout"]["images"]] == ["parts/finer"]


def test_a_large_trace_is_sent_whole_once() -> None:
    sketch = Sketch()
    sketch.add("scatter", x=np.random.default_rng(7).random(1000), y=[0], name="many")
    sketch.add("scatter", x=[1], y=[2])
    (first, small), (second, _) = (json.loads(figure_json(sketch))["data"] for _ in range(2))
    assert small == {"type": "scatter", "x": [1], "y": [2]}
    assert first["trace"]["name"] == "many" and second == {"part": first["part"]}
    kept = PARTS.get(first["part"])
    assert kept is not None and json.loads(kept[0]) == first["trace"]


def test_arrays_of_a_sketch_reach_the_page() -> None:
    sketch = Sketch([], {"meta": np.float32(0.5)})
    sketch.add("scatter", x=np.array([0.5, np.nan]), y=np.array([[1, 2], [3, -4]]), text=np.array(["a", "b"]), z=[None])
    shown = json.loads(figure_json(sketch))
    trace = shown["data"][0]
    assert shown["layout"] == {"meta": 0.5} and trace["text"] == ["a", "b"] and trace["z"] == [None]
    x = np.frombuffer(base64.b64decode(trace["x"]["bdata"]), trace["x"]["dtype"])
    np.testing.assert_array_equal(x, np.array([0.5, np.nan], dtype=np.float32))
    y = np.frombuffer(base64.b64decode(trace["y"]["bdata"]), trace["y"]["dtype"])
    assert trace["y"]["shape"] == "2, 2" and y.tolist() == [1, 2, 3, -4]
    with pytest.raises(TypeError, match="not JSON serializable: object"):
        figure_json(Sketch([{"x": object()}]))


def test_runs_are_found_and_read(tmp_path: Path) -> None:
    for name in ("a/one", "two"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "losses": {"encoder.x": 1.0}}\n{"step": 2, "lo')
    assert list(find_runs(tmp_path)) == ["a/one", "two"]
    assert list(find_runs(tmp_path / "two")) == ["two"]
    model, images = apps_case.models()["lab_baseline"], apps_case.images()
    pixels = prepare(images.image(0), model.config.image).pixels
    recorder = InstabilityRecorder(
        [(ImageBatch.from_images([pixels]), [images.target(0)])], tmp_path / "two" / "looks.jsonl", every=1
    )
    recorder(model, 1)
    (tmp_path / "two" / "run.json").write_text('{"finished": true}')
    run = read(tmp_path / "two")
    assert [record["step"] for record in run.records] == [1]
    assert [look.step for look in run.looks] == [1] and run.finished
    assert not read(tmp_path / "a" / "one").looks
