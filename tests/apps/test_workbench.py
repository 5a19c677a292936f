"""Starting, checking, and refusing to start; what the server gives away, and what it keeps to itself."""

from __future__ import annotations

import inspect
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apps_case
import pytest
from PIL import Image

from apps import style, workbench
from apps.bench import Bench
from apps.page import first_image, slow_words
from apps.stubs import no_stubs
from apps.workbench import WorkbenchError
from codetr_lab.data.shapes import Shapes
from codetr_lab.engine.checkpoint import save_model
from codetr_lab.models.presets import create_model
from codetr_lab.structures import Target


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    page = workbench.build(apps_case.models(), apps_case.images(), missing=["lab_co_k2"], notes=["Take note."])
    yield workbench.serve(page, workbench.free_port())
    page.close(verbose=False)


def fetch(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as answer:
        return answer.read()


def test_check_counts_every_candidate(url: str) -> None:
    model = apps_case.models()["lab_co_k2"]
    drawn = workbench.check(url, "lab_co_k2")
    # 340 anchors and 50 queries; the proposals vary.
    assert 340 + model.config.num_queries < drawn <= 340 + model.config.num_queries + 150 + 15


def test_check_says_what_is_wrong(url: str) -> None:
    with pytest.raises(WorkbenchError, match="gives no figure"):
        workbench.check(url, "no_such_model")


def test_served_to_this_machine_alone_and_without_other_hosts(url: str) -> None:
    assert url.startswith("http://127.0.0.1:")
    page = fetch(url).decode()
    assert "random weights" in page and "Take note." in page


def test_only_what_the_page_needs_is_served(url: str) -> None:
    from apps.plot import PLOTLY_SCRIPT

    assert len(fetch(f"{url}gradio_api/file={PLOTLY_SCRIPT}")) > 1_000_000
    assert json.loads(fetch(f"{url}notebooks/{style.notebooks()[0]}"))["nbformat"] == 4
    for other in (
        f"gradio_api/file={__file__}", f"gradio_api/file={PLOTLY_SCRIPT.parent / 'widgetbundle.js'}",
        "gradio_api/file=/etc/hostname", "notebooks/README.md", "notebooks/..%2FREADME.md", "parts/none",
        "parts/..%2F..%2Fetc%2Fhostname",
    ):  # fmt: skip
        with pytest.raises(urllib.error.HTTPError):
            fetch(url + other)


def test_gradio_finds_no_file_to_write_stubs_for() -> None:
    import gradio as gr
    from gradio.component_meta import create_or_modify_pyi

    before, stubs = inspect.getfile, Path(inspect.getfile(gr.Slider)).with_suffix(".pyi")
    kept = stubs.read_text()
    with no_stubs():
        create_or_modify_pyi(gr.Slider, "Slider", ["another_event"])
        assert inspect.getfile(Bench) == inspect.getsourcefile(Bench)
    assert inspect.getfile is before and stubs.read_text() == kept


def test_interface_tells_its_names(url: str) -> None:
    named = json.loads(fetch(f"{url}gradio_api/info"))["named_endpoints"]
    assert {"/figure", "/heads_score", "/assign_atss_top_k", "/discriminability_share", "/upload"} <= set(named)


def test_port_in_use_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(WorkbenchError, match=f"port {port} on 127.0.0.1 is in use; choose another with --port"):
            workbench.free_port(port)
        with pytest.raises(WorkbenchError, match=f"port {port}"):
            workbench.main(port=port)


def test_first_free_port_is_taken_if_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(workbench, "FIRST_PORT", port)
        assert workbench.free_port() > port
        monkeypatch.setattr(workbench, "PORTS_TRIED", 1)
        with pytest.raises(WorkbenchError, match="are all in use"):
            workbench.free_port()


@pytest.mark.parametrize("port", [0, 70000])
def test_ports_that_do_not_exist(port: int) -> None:
    with pytest.raises(WorkbenchError, match=f"port {port} does not exist"):
        workbench.free_port(port)


def test_missing_weights_are_told_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "shipped_models", dict)
    models, missing = workbench.lab_models(("lab_baseline",))
    assert missing == ["lab_baseline"]
    assert not models["lab_baseline"].training


def test_smoke_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert workbench.main(smoke=True) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("the workbench answers at http://127.0.0.1:")


def coco_folder(folder: Path, names: tuple[str, ...]) -> Path:
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (64, 48), "red").save(folder / "images" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 5, 16, 20]}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
    }  # fmt: skip
    (folder / "val.json").write_text(json.dumps(content))
    return folder


def test_own_models_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(create_model("lab_baseline", classes=("brick", "tile")).eval(), tmp_path / "run")
    data = coco_folder(tmp_path / "data", ("brick", "tile"))
    assert workbench.main(smoke=True, models=[str(tmp_path / "run")], data=str(data), run=tmp_path) == 0
    assert "its first figure holds 50 candidates" in capsys.readouterr().out
    (model,) = workbench.own_models([str(tmp_path / "run")], None).values()
    dataset, notes = workbench.own_dataset(None, {"run": model})
    assert dataset.classes == ("brick", "tile") and "brick, tile" in notes[0]
    assert len(dataset.target(0)["boxes"]) == 0 and dataset.image(0).shape == (128, 128, 3)
    assert dataset.to_coco()["annotations"] == []
    with pytest.raises(WorkbenchError, match="has the classes cat, but the models know brick, tile"):
        workbench.own_dataset(str(coco_folder(tmp_path / "cats", ("cat",))), {"run": model})
    with pytest.raises(WorkbenchError, match="cannot be compared: run knows brick, tile; lab_co_k1 knows circle, squ"):
        workbench.own_models([str(tmp_path / "run"), "lab_co_k1"], None)


def test_a_model_without_class_names_takes_those_of_a_fitting_data_set(tmp_path: Path) -> None:
    nameless = create_model("lab_baseline", num_classes=2, classes=()).eval()
    dataset, notes = workbench.own_dataset(str(coco_folder(tmp_path / "two", ("brick", "tile"))), {"m": nameless})
    assert dataset.classes == ("brick", "tile") and not notes
    with pytest.raises(WorkbenchError, match="has the classes cat, but the models know class 0, class 1"):
        workbench.own_dataset(str(coco_folder(tmp_path / "one", ("cat",))), {"m": nameless})


def test_a_slow_model_is_announced() -> None:
    bench = Bench(apps_case.models(), apps_case.images())
    quick = slow_words(bench, 1)
    assert set(bench.seconds) == {"lab_baseline", "lab_co_k2"} and min(bench.seconds.values()) > 0
    bench.seconds = {"lab_baseline": 0.4, "lab_co_k2": 12.4}
    (words,) = slow_words(bench, 1)
    assert words.startswith("Co-DETR, K = 2 took 12 s") and len(quick) <= 2


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(WorkbenchError, match="--weights belong to one model, but --model names none"):
        workbench.main(weights=Path("x.pth"))
    with pytest.raises(WorkbenchError, match="there is no such folder"):
        workbench.main(run=Path("no such folder"))


def test_first_image_has_a_few_objects() -> None:
    dataset = apps_case.images()
    assert 4 <= len(dataset.target(first_image(dataset))["labels"]) <= 6

    class Empty(Shapes):
        def target(self, index: int, *, masks: bool = True) -> Target:
            target: Any = super().target(index, masks=masks)
            return {key: value[:0] if value.ndim else value for key, value in target.items()}

    assert first_image(Empty(split="val", images=3)) == 0
