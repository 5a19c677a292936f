"""FiftyOne datasets against a real database: build, rebuild, reopen, round trips, faults."""

from __future__ import annotations

import http.server
import importlib.util
import logging
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import codetr_lab
from codetr_lab import doctor
from codetr_lab.analysis import Look
from codetr_lab.commands.common import open_data
from codetr_lab.data.coco import CocoFolder
from codetr_lab.data.dataset import DataError, export
from codetr_lab.data.shapes import Shapes
from codetr_lab.integrations.fiftyone import (
    FiftyOneData,
    actions,
    build_dataset,
    describe_database,
    from_coco_results,
    summary,
    to_coco_results,
)
from codetr_lab.integrations.fiftyone.app import install_plugin
from codetr_lab.integrations.fiftyone.build import build_lock
from codetr_lab.integrations.fiftyone.look import MARK
from codetr_lab.integrations.records import IntegrationError, records
from codetr_lab.models.codetr import CoDETR
from codetr_lab.viz.colors import head_color

pytestmark = [pytest.mark.fiftyone, pytest.mark.slow]


@pytest.fixture(scope="module")
def models() -> dict[str, CoDETR]:
    return {name: codetr_lab.load(name) for name in ("lab_co_k1", "lab_baseline")}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def built(fiftyone: Any, models: dict[str, CoDETR], shapes: Shapes, media: Path) -> Any:
    """The last image is left out at first, as if the build had been stopped before it."""
    build_dataset(models, shapes, "lab", media=media, limit=len(shapes) - 1, progress=False)
    return fiftyone.load_dataset("lab")


def test_fields_hold_the_records(built: Any, models: dict[str, CoDETR], shapes: Shapes, media: Path) -> None:
    paths = [media / "images" / shapes.file_name(index) for index in range(len(shapes))]
    record = next(iter(records(models, shapes, paths, indices=[1])))
    sample = built.match({"image_id": 1}).first()
    assert Path(sample.filepath) == paths[1].resolve()
    np.testing.assert_array_equal(np.asarray(Image.open(sample.filepath)), shapes.image(1))
    for field in ("detr", "atss", "lab_baseline_detr", "queries_atss", "matched_queries"):
        kept = sample[field].detections
        assert [item.label for item in kept] == [mark.label for mark in record.boxes[field]]
        np.testing.assert_allclose(
            [item.bounding_box for item in kept], [mark.box for mark in record.boxes[field]], atol=1e-5
        )
    owner = {item["object"]: item.id for item in sample["ground_truth"].detections}
    for item in sample["queries_atss"].detections:
        assert item["kind"] in ("positive", "ground-truth box", "padding negative")
        assert (item["kind"] == "padding negative") == (item["object"] == -1)
        assert item["object"] == -1 or item["matched"] == owner[item["object"]]
    assert len(sample["queries"].keypoints) == 50
    for field in ("encoder_map", "decoder_map", "lab_baseline_encoder_map"):
        np.testing.assert_array_equal(np.asarray(Image.open(sample[field].map_path)), record.maps[field])
    assert sample["iof_iob_area"] == pytest.approx(record.numbers["iof_iob_area"], rel=1e-5)
    # FiftyOne's evaluation and the library's own verdicts agree.
    for head in ("detr", "atss", "lab_baseline_detr"):
        for ours, theirs in (("right", "tp"), ("false", "fp"), ("missed", "fn")):
            assert sample[f"eval_{head}_{theirs}"] == record.numbers[f"{head}_{ours}"]


def test_the_look(built: Any) -> None:
    config = built.app_config
    shades = {field["path"]: field["fieldColor"] for field in config.color_scheme.fields}
    assert shades["atss"] == shades["queries_atss"] == head_color("atss") and shades["detr"] == head_color("detr")
    assert {scale["name"] for scale in config.color_scheme.colorscales} == {"viridis"}
    assert config.active_fields.paths == ["ground_truth", "detr"]
    grouped = [path for group in config.sidebar_groups for path in group.paths]
    assert len(grouped) == len(set(grouped)) and {"atss", "lab_baseline_queries", "gains", "encoder_map"} <= set(
        grouped
    )
    assert {"Co-DETR finds, baseline misses", "Heads disagree", "Few positives"} <= set(built.list_saved_views())
    gained = built.load_saved_view("Co-DETR finds, baseline misses")
    assert len(gained) == sum(value > 0 for value in built.values("gains"))
    assert built.list_workspaces()


def test_another_process_sees_it(built: Any) -> None:
    program = """
        import fiftyone as fo
        dataset = fo.load_dataset("lab")
        print(dataset.persistent, len(dataset), len(dataset.first()["ground_truth"].detections) > 0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip().splitlines()[-1] == f"True {len(built)} True", done.stderr


def test_summaries_follow_the_view(built: Any) -> None:
    whole, part = summary.positives_per_object(built), summary.positives_per_object(built.limit(1))
    assert whole["lab_co_k1"]["original"] == part["lab_co_k1"]["original"] == 1
    assert whole["lab_co_k1"]["atss"] != part["lab_co_k1"]["atss"]
    counts = [c for c in built.values("ground_truth.detections.positives_atss", unwind=True) if c is not None]
    assert whole["lab_co_k1"]["atss"] == pytest.approx(sum(counts) / len(counts))
    iob, iof = summary.mean_curves(built.limit(1))["lab_co_k1"]
    assert iof == pytest.approx(built.first()["iof_curve"]) and len(iob) == 21
    fields, matrix = summary.agreement(built)
    assert fields == ["detr", "atss", "lab_baseline_detr"]
    assert all(matrix[i][i] == 1 for i in range(3)) and all(0 <= value <= 1 for row in matrix for value in row)


def test_a_panel_follows_filters_on_a_saved_view(built: Any, repository: Path) -> None:
    from fiftyone.operators.executor import ExecutionContext

    spec = importlib.util.spec_from_file_location("plugin", repository / "apps" / "fiftyone_plugin" / "__init__.py")
    assert spec is not None and spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    built.save_view("later ones", built.match({"image_id": {"$gte": 1}}), overwrite=True)
    request = {"dataset_name": "lab", "view_name": "later ones"}
    filtered = request | {"filters": {"image_id": {"range": [0, 1], "exclude": False, "isMatching": True}}}
    context = ExecutionContext(filtered)
    assert plugin.shown(context).view.values("image_id") == [1]
    assert context.target_view().values("image_id") == [1]
    assert plugin.shown(ExecutionContext(request)).view.values("image_id") == [1, 2]
    built.delete_saved_view("later ones")


def test_operators(built: Any) -> None:
    view = built.limit(1)
    count = actions.reassign(view, "atss", "again", top_k=3)
    items = built.first()["again"].detections
    assert count == len(items) > 0 and "positive" in items[0]["why"], items[0]["why"]
    found = actions.run_model(view, "lab_baseline", "detr", "tried")
    assert found == len(built.first()["tried"].detections) > 0
    built.delete_sample_fields(["again", "tried"])
    link = actions.workbench_link(built, built.match({"image_id": 2}).first().id, "http://127.0.0.1:7861/")
    assert link == "http://127.0.0.1:7861/?tab=assign&image=2"
    with pytest.raises(IntegrationError, match=r"lab has no sample 0{24}"):
        actions.workbench_link(built, "0" * 24)
    with pytest.raises(IntegrationError, match="no rule 'nms'; choose from atss"):
        actions.reassign(view, "nms", "again")


@pytest.fixture
def zoo(repository: Path, tmp_path: Path) -> Iterator[str]:
    """The zoo source as an archive behind an address, as a stranger would register it."""
    shutil.make_archive(str(tmp_path / "zoo"), "zip", repository / "apps", "fiftyone_zoo")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/zoo.zip"
        server.shutdown()


def test_a_zoo_source_applies_models(built: Any, zoo: str) -> None:
    import fiftyone.brain as fob
    import fiftyone.zoo as foz

    foz.register_zoo_model_source(zoo)
    assert "codetr_lab/lab_co_k1" in foz.list_zoo_models()
    model = foz.load_zoo_model("codetr_lab/lab_co_k1", head="atss")
    view = built.limit(2)
    view.apply_model(model, label_field="zoo", batch_size=2, progress=False)
    for sample in view:
        scores = [item.confidence for item in sample["zoo"].detections]
        own = [item.confidence for item in sample["atss"].detections]
        assert scores[: len(own)] == pytest.approx(own, abs=1e-4)
    vectors = np.asarray(built.compute_embeddings(model, batch_size=2, progress=False))
    assert vectors.shape == (len(built), 64) and np.isfinite(vectors).all()
    fob.compute_similarity(built, embeddings=vectors, brain_key="alike", backend="sklearn")
    assert built.sort_by_similarity(built.first().id, brain_key="alike").first().id == built.first().id
    points = fob.compute_visualization(built, embeddings=vectors, method="pca", brain_key="plane", verbose=False)
    assert points.points.shape == (len(built), 2)
    built.delete_sample_field("zoo")


def test_recorded_instability_is_a_number_to_sort_by(
    built: Any, models: dict[str, CoDETR], shapes: Shapes, media: Path, caplog: pytest.LogCaptureFixture
) -> None:
    looks = [Look(step, [{}, {step: 0}]) for step in range(3)]  # image 1's object changes its query twice
    file = media / "looks.jsonl"
    file.write_text("".join(look.to_json() + "\n" for look in looks))
    keep = {"limit": len(shapes) - 1, "media": media, "progress": False}
    build_dataset(models, shapes, "lab", looks={"lab_co_k1": file}, **keep)
    assert dict(zip(*built.values(["image_id", "instability"]), strict=True)) == {0: 0, 1: 2, 2: None}
    assert built.load_saved_view("Most unstable").values("image_id") == [1, 0]
    file.write_text("".join(Look(step, [{3: 99}]).to_json() + "\n" for step in range(2)))
    build_dataset(models, shapes, "lab", looks={"lab_baseline": file}, **keep)
    assert "its probe images are not the first of shapes" in caplog.text
    assert "lab_baseline_instability" not in built.get_field_schema()


def test_round_trip_through_coco(built: Any) -> None:
    out = to_coco_results(built, "atss")
    from_coco_results(built, out, "returned")
    for before, after in zip(built.values("atss.detections"), built.values("returned.detections"), strict=True):
        assert [item.label for item in before] == [item.label for item in after]
        np.testing.assert_allclose([i.bounding_box for i in before], [i.bounding_box for i in after], atol=1e-12)
        assert [i.confidence for i in before] == [i.confidence for i in after]
        assert [i["source"] for i in before] == [i["source"] for i in after]
    built.delete_sample_field("returned")
    with pytest.raises(IntegrationError, match="record 0: lab has no image 99"):
        from_coco_results(built, [{**out[0], "image_id": 99}], "returned")
    with pytest.raises(IntegrationError, match="lab has no field 'nothing'"):
        to_coco_results(built, "nothing")


def test_a_dataset_in_fiftyone_can_be_trained_on(built: Any, shapes: Shapes) -> None:
    data = open_data("fiftyone:lab", "train")
    assert isinstance(data, FiftyOneData) and data.classes == shapes.classes
    by_id = {int(shapes.target(index)["image_id"]): index for index in range(len(shapes))}
    for row in range(len(data)):
        target = data.target(row)
        expected = shapes.target(by_id[int(target["image_id"])])
        torch.testing.assert_close(target["boxes"], expected["boxes"])
        assert torch.equal(target["labels"], expected["labels"])
        np.testing.assert_array_equal(data.image(row), shapes.image(by_id[int(target["image_id"])]))
    truth = data.to_coco()
    assert len(truth["annotations"]) == sum(len(shapes.target(index)["boxes"]) for index in range(len(data)))
    with pytest.raises(IntegrationError, match="FiftyOne has no dataset 'nobody'; it has"):
        open_data("fiftyone:nobody", "train")
    with pytest.raises(IntegrationError, match="no field 'objects'"):
        FiftyOneData("lab", field="objects")


def test_names_that_are_taken(
    built: Any, fiftyone: Any, models: dict[str, CoDETR], shapes: Shapes, tmp_path: Path
) -> None:
    fiftyone.Dataset("theirs")
    with pytest.raises(IntegrationError, match="a dataset theirs exists already and was not built here"):
        build_dataset(models, shapes, "theirs", media=tmp_path, progress=False)
    fiftyone.delete_dataset("theirs")
    with pytest.raises(IntegrationError, match="lab was built from shapes, not from shapes:hard"):
        build_dataset(models, Shapes("val", images=1, difficulty="hard"), "lab", media=tmp_path, progress=False)
    with build_lock("lab"), pytest.raises(IntegrationError, match="another build of lab is at work"):
        build_dataset(models, shapes, "lab", media=tmp_path, progress=False)


def test_a_vanished_image_is_left_out(
    fiftyone: Any, models: dict[str, CoDETR], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = export(Shapes("val", images=3), tmp_path / "folder")
    data = CocoFolder(folder)
    (folder / "images" / "000001.png").unlink()
    one = {"lab_baseline": models["lab_baseline"]}
    with caplog.at_level(logging.WARNING):
        dataset = build_dataset(one, data, "vanished", media=tmp_path / "media", progress=False)
    assert dataset.values("image_id") == [0, 2] and "1 images are left out" in caplog.text
    assert "000001.png" in caplog.text
    fiftyone.delete_dataset("vanished")


def test_no_samples_and_strange_labels(fiftyone: Any, tmp_path: Path) -> None:
    dataset = fiftyone.Dataset("few")
    dataset.add_sample_field("ground_truth", fiftyone.EmbeddedDocumentField, embedded_doc_type=fiftyone.Detections)
    with pytest.raises(DataError, match="fiftyone:few: has no samples"):
        FiftyOneData("few")
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    box = fiftyone.Detection(label="yeti", bounding_box=[0.1, 0.1, 0.5, 0.5])
    sample = fiftyone.Sample(filepath=str(tmp_path / "a.png"), ground_truth=fiftyone.Detections(detections=[box]))
    dataset.add_sample(sample)
    assert FiftyOneData("few").classes == ("yeti",)
    dataset.default_classes = ["cat"]
    dataset.save()
    with pytest.raises(DataError, match="label 'yeti' is not among the dataset's classes"):
        FiftyOneData("few")
    fiftyone.delete_dataset("few")


def test_what_is_said_about_the_database(fiftyone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIFTYONE_DATABASE_URI")
    assert "FiftyOne's own mongod" in describe_database()
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", "mongodb://me:secret@127.0.0.1:1")
    words = describe_database()
    assert "the running server at mongodb://127.0.0.1:1" in words and "secret" not in words
    monkeypatch.delenv("FIFTYONE_DATABASE_URI")
    monkeypatch.setattr(doctor, "find_mongod", lambda: None)
    with pytest.raises(IntegrationError, match="FiftyOne has no database here"):
        describe_database()


def test_the_plugin_is_found(fiftyone: Any) -> None:
    import fiftyone.operators as foo
    import fiftyone.plugins as fop

    assert install_plugin(Path(fiftyone.config.plugins_dir)) is not None
    assert "@codetr_lab/label_assignment" in fop.list_plugins() or any(
        plugin.name == "@codetr_lab/label_assignment" for plugin in fop.list_plugins()
    )
    names = {operator.name for operator in foo.list_operators()}
    assert {"trace_sample", "reassign", "run_model"} <= names


# Last: its second rebuild leaves the dataset without FiftyOne's evaluation.
def test_building_again_keeps_what_people_added(
    built: Any, models: dict[str, CoDETR], shapes: Shapes, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = built.match({"image_id": 0}).first()
    sample.tags.append("mine")
    sample["ground_truth"].detections[0].tags.append("odd")
    sample.save()
    built.save_view("Few positives", built.limit(1), description="my own", overwrite=True)
    identity, modified = (
        sample["ground_truth"].detections[0].id,
        dict(zip(*built.values(["image_id", "detr.detections.id"]), strict=True)),
    )
    again = build_dataset(models, shapes, "lab", media=media, progress=False)  # goes on with the last image
    assert len(again) == len(shapes) and set(again.values("image_id")) == set(range(len(shapes)))
    after = dict(zip(*again.values(["image_id", "detr.detections.id"]), strict=True))
    assert all(after[image] == ids for image, ids in modified.items())  # untouched
    monkeypatch.setattr("codetr_lab.integrations.fiftyone.build.judge", lambda *_, **__: None)  # it takes long
    changed = build_dataset(models, shapes, "lab", media=media, min_score=0.3, progress=False)
    sample = changed.match({"image_id": 0}).first()
    assert sample.tags == ["mine"] and sample["ground_truth"].detections[0].tags == ["odd"]
    assert sample["ground_truth"].detections[0].id == identity
    assert min(changed.values("detr.detections.confidence", unwind=True)) >= 0.3
    info = {name: changed.get_saved_view_info(name)["description"] for name in changed.list_saved_views()}
    assert info["Few positives"] == "my own" and info["Heads disagree"].startswith(MARK)
