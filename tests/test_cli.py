"""The command line: what each command does, and that a user's mistake takes one line and exit code 2."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import codetr_lab
from codetr_lab import cli
from codetr_lab.cli import main
from codetr_lab.commands.common import settings
from codetr_lab.models.config import CoDETRConfig, ConfigError
from codetr_lab.models.presets import BASELINES, preset

ROOT = Path(codetr_lab.__file__).parents[1]
TINY = (
    "num_queries=10", "image.short=64", "image.long=64", "recipe.short_sides=64", "recipe.batch_size=2",
    'backbone.options={"channels": [8, 8, 16, 16], "stem_width": 8}', "transformer.hidden_dim=16",
    "transformer.heads=2", "transformer.points=2", "transformer.ffn_dim=32", "transformer.encoder_layers=1",
    "transformer.decoder_layers=2", "transformer.norm_groups=4", "queries.maximum=20",
)  # fmt: skip


def coco_folder(folder: Path, *, images: int = 4, label: int = 3) -> Path:
    """A COCO-format folder with train.json and val.json: one red box on grey in every image."""
    (folder / "images").mkdir(parents=True)
    for split in ("train", "val"):
        records, annotations = [], []
        for number in range(images):
            pixels = np.full((48, 64, 3), 128, np.uint8)
            x, y = 8 + 6 * number, 5 + 4 * number
            pixels[y : y + 20, x : x + 16] = (200, 30, 30)
            Image.fromarray(pixels).save(folder / "images" / f"{split}{number}.png")
            records.append({"id": number + 1, "file_name": f"{split}{number}.png", "width": 64, "height": 48})
            annotations.append(
                {"id": number + 1, "image_id": number + 1, "category_id": label, "bbox": [x, y, 16, 20], "area": 320,
                 "iscrowd": 0}
            )  # fmt: skip
        categories = [{"id": 3, "name": "brick"}, {"id": 7, "name": "tile"}]
        content = {"images": records, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def bricks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_folder(tmp_path_factory.mktemp("data") / "bricks")


@pytest.fixture(scope="module")
def trained(bricks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, made by the command itself."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    arguments = ["train", "--preset", "lab_co_k1", "--data", str(bricks), "--out", str(out), "--steps", "3"]
    assert main([*arguments, "--no-progress", "--set", *TINY]) == 0
    return out


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line on stderr that a command ends with, after checking that it is one and the exit code is 2."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("codetr: ")]
    assert len(lines) == 1 and error.endswith(lines[0] + "\n") and "Traceback" not in error, error
    return lines[0]


def test_settings_read_numbers_lists_and_text() -> None:
    config = settings(
        CoDETRConfig(),
        ["transformer.heads=4", "aux_heads=atss", "backbone.name=resnet18", "recipe.lr=1e-3", "backbone.weights=w.pth",
         "recipe.short_sides=64,96", "queries.features=false", "faster_rcnn.anchor_ratios=[1, 2]"],
    )  # fmt: skip
    assert config.transformer.heads == 4
    assert config.aux_heads == ("atss",)
    assert settings(config, ["aux_heads=atss,faster_rcnn"]).aux_heads == ("atss", "faster_rcnn")
    assert settings(config, ["aux_heads="]).aux_heads == ()
    assert (config.backbone.name, config.backbone.weights) == ("resnet18", "w.pth")
    assert config.recipe.lr == 1e-3 and config.recipe.short_sides == (64, 96)
    assert config.queries.features is False
    assert config.faster_rcnn.anchor_ratios == (1, 2)
    assert settings(config, ["preset=12"]).preset == "12"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("transformer.heads", "write it as name=value"),
        ("transformer.head=4", "unknown field of TransformerConfig 'head'; did you mean 'heads'"),
        ("transformer.heads=many", "heads must be a whole number, got 'many'"),
        ("transformer.heads=5", "not a multiple of its 5 heads"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(CoDETRConfig(), [setting])


def test_train_leaves_a_run_and_says_what_next(trained: Path) -> None:
    record = json.loads((trained / "run.json").read_text())
    assert record["finished"] and record["steps"] == 3
    assert record["config"]["classes"] == ["brick", "tile"]
    assert (trained / "model.safetensors").stat().st_size > 10_000
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["metrics"]["detr"]["AP"] <= 1


def test_train_again_and_resume(trained: Path, bricks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("train", "--preset", "lab_co_k1", "--data", bricks, "--out", trained, "--steps", "3", "--no-progress")
    assert "already holds a run" in fails(capsys, *arguments, "--set", *TINY)
    assert main([*map(str, arguments), "--resume", "--set", *TINY]) == 0
    assert f"codetr eval {trained}" in capsys.readouterr().out
    line = fails(capsys, *arguments, "--resume")
    assert "was started with backbone.options.channels = [8, 8, 16, 16], not [16, 32, 64, 128]" in line


def test_fine_tuning_takes_the_model_from_init(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "tuned", coco_folder(tmp_path / "data")
    for split in ("train", "val"):
        content = json.loads((data / f"{split}.json").read_text())
        content["categories"].append({"id": 9, "name": "slate"})
        (data / f"{split}.json").write_text(json.dumps(content))
    assert main(["train", "--init", str(trained), "--data", str(data), "--out", str(out), "--steps", "1"]) == 0
    assert "started afresh, since the classes differ:" in "".join(capsys.readouterr())
    config = json.loads((out / "config.json").read_text())
    assert config["classes"] == ["brick", "tile", "slate"] and config["num_queries"] == 10


def test_eval_prints_and_writes_the_numbers(
    trained: Path, bricks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "numbers.json"
    assert main(["eval", str(trained), "--data", str(bricks), "--out", str(out)]) == 0
    numbers = json.loads(out.read_text())
    assert list(numbers) == ["detr", "atss"]
    shown = capsys.readouterr().out
    assert f"{numbers['detr']['metrics']['AP50']:.3f}" in shown
    assert numbers["detr"]["per_class"]["tile"] is None  # no such object in the data
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert numbers["detr"]["metrics"]["AP"] == pytest.approx(last["metrics"]["detr"]["AP"], abs=1e-12)


def test_predict_writes_records_and_pictures(
    trained: Path, bricks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(bricks / "images" / "val0.png"), str(bricks / "images" / "val1.png")]
    arguments = ["predict", *images, "--model", str(trained), "--heads", "detr,atss", "--threshold", "0"]
    arguments += ["--batch-size", "1"]  # as below: near-equal scores then rank alike
    assert main([*arguments, "--out", str(tmp_path / "results.json"), "--save-images", str(tmp_path / "out")]) == 0
    records = json.loads((tmp_path / "results.json").read_text())
    assert [record["image"] for record in records] == images
    model = codetr_lab.load(trained)
    direct = [model.predict([image], heads=("detr", "atss"))[0] for image in images]
    for record, found in zip(records, direct, strict=True):
        assert list(record["heads"]) == ["detr", "atss"]
        for head, items in record["heads"].items():
            assert [item["score"] for item in items] == pytest.approx(found[head].scores.tolist(), abs=1e-5)
            np.testing.assert_allclose([item["box"] for item in items], found[head].boxes.numpy(), atol=0.005)
            assert {item["class"] for item in items} <= {"brick", "tile"}
    assert capsys.readouterr().out.count("detr") == 2
    for name in ("val0.png", "val1.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 2 * 64  # two panels, enlarged


def test_predict_on_folders_goes_on_after_bad_images(
    trained: Path, bricks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "results.json"
    folder.mkdir()
    for number in (3, 12):
        (folder / f"{number}.png").write_bytes((bricks / "images" / "val0.png").read_bytes())
    (folder / "7.png").write_bytes((bricks / "images" / "val0.png").read_bytes()[:60])
    arguments = ("predict", folder, "--model", trained, "--heads", "detr,atss", "--threshold", "0", "--out", out)
    line = fails(capsys, *arguments)
    assert "1 of 3 images could not be used; the results of the others are in" in line and "7.png" in line
    assert [Path(record["image"]).name for record in json.loads(out.read_text())] == ["12.png", "3.png"]

    (folder / "7.png").unlink()
    assert main([*map(str, arguments), "--format", "coco", "--batch-size", "2", "--device", "cpu"]) == 0
    for head in ("detr", "atss"):
        records = json.loads((tmp_path / f"results_{head}.json").read_text())
        assert {record["image_id"] for record in records} == {3, 12}
        assert {record["category_id"] for record in records} <= {1, 2} and len(records[0]["bbox"]) == 4
    assert main([*map(str, arguments[:4]), "--tta", "--threshold", "0", "--out", str(out)]) == 0
    assert len(json.loads(out.read_text())) == 2
    assert "at least 1, got 0" in fails(capsys, *arguments[:4], "--batch-size", "0")


def test_ctrl_c_keeps_what_is_predicted(
    trained: Path, bricks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from codetr_lab.engine import predict

    plain = predict.predictions

    def stopped(*arguments: object, **options: object):
        yield next(plain(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "predictions", stopped)
    out = tmp_path / "results.json"
    assert main(["predict", str(bricks / "images"), "--model", str(trained), "--out", str(out)]) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"codetr: stopped after 1 of 8 images; their results are in {out}"
    assert len(json.loads(out.read_text())) == 1


def test_released_weights_by_hand(
    trained: Path, bricks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = bricks / "images" / "val0.png"
    line = fails(capsys, "predict", image, "--model", "co_deformable_detr_r50.1x_coco")
    assert "Google Drive" in line and "--weights FILE.pth" in line
    (tmp_path / "a.pth").write_bytes(b"")
    arguments = ("--model", "co_deformable_detr_r50.1x_coco", "--weights", tmp_path / "a.pth")
    assert "a.pth is not a checkpoint: it is empty" in fails(capsys, "predict", image, *arguments)


def test_mistakes_take_one_line(
    trained: Path, bricks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = bricks / "images" / "val0.png", tmp_path / "out"
    line = fails(capsys, "train", "--preset", "lab_co_k3", "--out", out)
    assert "unknown model preset 'lab_co_k3'; did you mean 'lab_co_k" in line
    assert "did you mean 'shapes'" in fails(capsys, "train", "--data", "shape", "--out", out)
    assert "no such file or folder" in fails(capsys, "train", "--data", tmp_path / "no" / "x.json", "--out", out)
    assert "did you mean 'atss'" in fails(capsys, "train", "--set", "aux_heads=ats", "--out", out)
    assert "unknown run folder, shipped model or released weights 'nothing'" in fails(capsys, "eval", "nothing")
    assert "knows the classes brick, tile, but shapes has circle" in fails(capsys, "eval", trained)
    assert "did you mean 'atss'" in fails(capsys, "eval", trained, "--data", bricks, "--heads", "detr,ats")
    assert "no image given" in fails(capsys, "predict", "--model", trained)
    assert "no such file" in fails(capsys, "predict", tmp_path / "none.png", "--model", trained)
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:60])
    assert "broken.png" in fails(capsys, "predict", broken, "--model", trained)
    (tmp_path / "file").write_text("")
    line = fails(capsys, "predict", image, "--model", trained, "--out", tmp_path / "file" / "results.json")
    assert "cannot write" in line and "file/results.json" in line
    assert "cannot write" in fails(capsys, "train", "--data", bricks, "--out", tmp_path / "file" / "run")
    assert not out.exists()


def test_an_invalid_data_set_takes_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = coco_folder(tmp_path / "data", label=4)
    assert "4" in fails(capsys, "train", "--data", data, "--out", tmp_path / "out")
    empty = coco_folder(tmp_path / "empty", images=0)
    assert "no images" in fails(capsys, "train", "--data", empty, "--out", tmp_path / "out")
    assert main(["data", "check", str(data)]) == 2
    assert "problem" in capsys.readouterr().out


def test_data_check_and_export(bricks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(bricks)]) == 0
    assert "brick (3): 4" in capsys.readouterr().out
    assert main(["data", "export", "--data", str(bricks), "--split", "val", "--out", str(tmp_path / "copy")]) == 0
    assert main(["data", "check", str(tmp_path / "copy")]) == 0
    assert "exists already" in fails(capsys, "data", "export", "--data", bricks, "--out", tmp_path / "copy")


def test_models_lists_presets_with_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert "co_deformable_detr_r50" in shown and "trained models in this package" in shown
    line = next(line for line in shown.splitlines() if line.startswith("lab_co_k1"))
    model = codetr_lab.create_model("lab_co_k1")
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M" in line
    for name, changes in BASELINES.items():
        line = next(line for line in shown.splitlines() if line.startswith(f"  {name} "))
        assert settings(preset("lab_co_k1"), line.split()[1:]) == preset("lab_co_k1", **changes)
    line = next(line for line in shown.splitlines() if line.startswith("co_dino_5scale_r50.1x_coco"))
    for word in ("52.1", "not measured", "Apache-2.0", "261 MB", "download.openmmlab.com"):
        assert word in line
    assert "codetr eval co_dino_5scale_r50.1x_coco --data COCO" in shown


def test_doctor_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) in (0, 1)
    assert "torch" in capsys.readouterr().out


def test_experiment_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from codetr_lab.experiments import quick

    seen: list[quick.QuickOptions] = []
    monkeypatch.setattr(quick, "run_quick", seen.append)
    assert main(["experiment", "quick", "--steps", "2", "--seeds", "0", "1", "--out", str(tmp_path)]) == 0
    assert (seen[0].steps, seen[0].seeds, seen[0].out) == (2, (0, 1), tmp_path)


def test_demo_on_a_port_in_use_takes_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "in use" in fails(capsys, "demo", "--port", str(taken.getsockname()[1]))


def test_demo_without_its_sources_or_gradio(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name == "apps" or name.startswith("apps.")]:
        monkeypatch.delitem(sys.modules, name)
    assert "needs gradio; install it with" in fails(capsys, "demo")
    monkeypatch.setattr(codetr_lab, "__file__", str(tmp_path / "codetr_lab" / "__init__.py"))
    assert "comes with the source tree" in fails(capsys, "demo")


def test_a_crash_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: cli.Models) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(cli.Models, "run", crash)
    with pytest.raises(ValueError, match="a bug"):
        main(["models"])


def test_ctrl_c_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(self: cli.Models) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Models, "run", stop)
    assert main(["models"]) == 130
    assert capsys.readouterr().err.strip() == "codetr: stopped"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Expected one of {demo, train, eval, predict, experiment, models, data, fiftyone, bench, build-ops, "),
        ("trian", "Unrecognized options: trian; Available subcommands: demo, train"),
        ("train", "Missing from codetr train: --out PATH The run's folder. (required); For full helptext, run: codetr"),
        ("train --out x --step 3", "Unrecognized options: --step, 3; did you mean --steps?; For full helptext"),
        ("train --out x --precision fp4", "invalid choice 'fp4' for argument '--precision'. Expected one of"),
        ("train --out x --steps many", "Error parsing --steps: "),
        ("train --out x --steps 1 --epochs 1", "give steps or epochs, not both; For full helptext"),
        ("experiment quick --workers 0", "workers must be at least 1, got 0; For full helptext"),
    ],
)
def test_wrong_usage_takes_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"codetr: {message}") and error.count("\n") == 1
    assert not set(error) & set("│─╭╰") and "---" not in error


def test_wrong_usage_takes_one_line_in_a_terminal() -> None:
    """Where stdout is UTF-8, the complaint comes in a drawn frame."""
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "codetr_lab.cli", "train", "--out", "x", "--step", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("codetr: Unrecognized options: --step, 3; did you mean --steps?; For full helptext")
    assert done.stderr.count("\n") == 1


def test_help_imports_nothing_heavy() -> None:
    """Torch alone takes seconds to import."""
    script = """
import sys
from codetr_lab.cli import main
try:
    main(["train", "--help"])
except SystemExit as stop:
    assert stop.code == 0
assert not {"torch", "timm", "accelerate", "gradio", "plotly"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--batch-size" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file size are POSIX")
def test_a_full_disk_takes_one_line_and_leaves_the_checkpoint(trained: Path, bricks: Path, tmp_path: Path) -> None:
    """A fine-tuning run whose files may not grow beyond 20 kB fails at its first checkpoint."""
    import resource
    import signal

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    before = (trained / "model.safetensors").read_bytes()
    command = ["train", "--init", str(trained), "--data", str(bricks), "--out", str(tmp_path / "out"), "--steps", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "codetr_lab.cli", *command, "--no-progress"], cwd=ROOT, capture_output=True, text=True,
        preexec_fn=limit, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("codetr: cannot write") and "File too large" in last and "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*.part")) and not (tmp_path / "out" / "state.pt").exists()
    assert (trained / "model.safetensors").read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_ctrl_c_in_a_real_process_leaves_a_checkpoint_that_resumes(bricks: Path, tmp_path: Path) -> None:
    import signal

    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "codetr_lab.cli", "train", "--preset", "lab_baseline", "--data", str(bricks), "--out",
        str(out), "--steps", "4000", "--log-every", "1", "--eval-images", "0", "--set", *TINY,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text().count("\n") >= 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 130, error
    assert "stopped by SIGINT after step" in error and "--resume" in error and "Traceback" not in error
    step = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert 2 <= step < 4000
    assert codetr_lab.load(out).config.classes == ("brick", "tile")


def test_bench_and_build_ops_are_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert main(["bench", "op", "--cases", "lab decoder", "--out", str(out)]) == 0
    assert {row["case"] for row in json.loads(out.read_text())["rows"]} == {"lab decoder"}
    assert main(["bench", "op", "--cases", "lab"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["build-ops"]) == 0
    assert "compiled operator: " in capsys.readouterr().out
