"""The quick experiment end to end with a few steps, and what is said about its numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codetr_lab.data.shapes import Shapes
from codetr_lab.engine.checkpoint import load_model, load_state
from codetr_lab.engine.evaluate import evaluate
from codetr_lab.engine.train import Stopped
from codetr_lab.experiments.cell import Cell, ExperimentError, Record, Setting, run_cell
from codetr_lab.experiments.measure import measure
from codetr_lab.experiments.quick import QuickOptions, quick_cells, run_quick, table, verdict
from codetr_lab.models.config import ConfigError
from codetr_lab.models.presets import create_model

TINY = QuickOptions(steps=3, train_images=12, val_images=6, keep_models=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"seeds": ()}, "seeds must be different whole numbers"),
        ({"seeds": (1, 1)}, "seeds must be different"),
        ({"seeds": (-1,)}, r"got \(-1,\)"),
    ],
)
def test_wrong_options_are_named(wrong: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        QuickOptions(**wrong)


def cell_of(k: int, options: QuickOptions) -> Cell:
    """The cell of the first seed."""
    return quick_cells(options)[k]


# What is said


def record(k: int, seed: int, ap: float, seconds: float = 60, area: float = 0.5) -> Record:
    heads = ["atss", "faster_rcnn"][:k]
    return {
        "k": k, "seed": seed, "steps": 100, "seconds": seconds * (k + 1), "ap": ap, "ap50": ap + 0.2,
        "positives_per_object": 1 + 5.0 * k, "iof_iob_area": area, "aux_heads": heads,
    }  # fmt: skip


def test_the_table_has_a_line_per_record():
    lines = table([record(0, 3, 0.25), record(2, 3, 0.5)]).splitlines()
    assert lines[1].split() == ["0", "none", "3", "100", "60", "0.250", "0.450", "1.0", "0.500"]
    assert lines[2].split() == ["2", "atss", "+", "faster_rcnn", "3", "100", "180", "0.500", "0.700", "11.0", "0.500"]
    assert len({len(line) for line in lines}) == 1


def test_the_verdict_is_honest_about_one_seed():
    text = verdict([record(0, 0, 0.40), record(1, 0, 0.35), record(2, 0, 0.49)])
    assert "K = 1 is not above K = 0 (-0.050 AP); the steps took 2.0 times as long" in text
    assert "K = 2 is above K = 0 (+0.090 AP); the steps took 3.0 times" in text
    assert "K = 2 does not reach the AP of 0.50 that is expected of it (0.490)" in text
    assert "This is one seed" in text


def test_the_verdict_counts_seeds():
    records = [record(0, s, 0.4) for s in (0, 1)] + [record(1, 0, 0.5), record(1, 1, 0.38)]
    text = verdict([*records, record(2, 0, 0.5), record(2, 1, 0.5)])
    assert "K = 1 is above K = 0 (+0.040 AP on average, above in 1 of 2 seeds)" in text
    assert "K = 2 reaches the AP of 0.50" in text
    assert "one seed" not in text


# What is measured


def test_measures_are_those_of_the_library_and_leave_the_model_as_it_was():
    torch.manual_seed(0)
    model, dataset = create_model("lab_co_k2").train(), Shapes("val", images=5)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measured = measure(model, dataset, batch_size=2)
    metrics = evaluate(model, dataset, heads=("detr", "atss", "faster_rcnn"), batch_size=2, progress=False)
    assert measured["ap_by_head"] == {head: m.ap for head, m in metrics.items()}
    assert (measured["ap"], measured["ap50"]) == (metrics["detr"].ap, metrics["detr"].ap50)
    by_head = measured["positives_by_head"]
    assert list(by_head) == ["original", "atss", "faster_rcnn"] == ["original", *measured["aux_heads"]]
    assert by_head["original"] == 1  # one-to-one, since there are more queries than objects
    assert by_head["atss"] > 1
    assert measured["positives_per_object"] == sum(by_head.values())
    assert 0 < measured["iof_iob_area"] < 1
    assert abs(measured["iof_iob_area"] - measured["iof_iob_area_per_image"]) < 0.2
    assert model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


# End to end


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuickOptions, list[Record]]:
    """Three real runs of three steps in their worker processes."""
    options = replace(TINY, out=tmp_path_factory.mktemp("quick"))
    return options, run_quick(options, progress=False)


@pytest.mark.slow
def test_three_runs_give_three_records(finished: tuple[QuickOptions, list[Record]]):
    options, records = finished
    assert json.loads((options.out / "quick.json").read_text()) == records
    assert [r["k"] for r in records] == [0, 1, 2]
    assert [r["aux_heads"] for r in records] == [[], ["atss"], ["atss", "faster_rcnn"]]
    for r in records:
        assert {"k", "seed", "steps", "seconds", "ap", "iof_iob_area", "positives_per_object"} <= set(r)
        assert (r["seed"], r["steps"], r["train_images"], r["val_images"]) == (0, 3, 12, 6)
        assert r["seconds"] > 0
    assert records[0]["positives_per_object"] == 1 < records[1]["positives_per_object"]


@pytest.mark.slow
def test_a_worker_measures_what_its_model_measures_here(finished: tuple[QuickOptions, list[Record]]):
    options, records = finished
    measured = measure(load_model(cell_of(2, options).folder), Shapes("val", images=6))
    for name in ("ap", "iof_iob_area", "positives_per_object"):
        assert measured[name] == pytest.approx(records[2][name], abs=1e-6), name


@pytest.mark.slow
def test_finished_runs_are_used_again(finished: tuple[QuickOptions, list[Record]], capsys: pytest.CaptureFixture[str]):
    options, records = finished
    written = [(cell_of(k, options).folder / "record.json").stat().st_mtime_ns for k in range(3)]
    assert run_quick(replace(options, keep_models=False), progress=False) == records
    assert [(cell_of(k, options).folder / "record.json").stat().st_mtime_ns for k in range(3)] == written
    captured = capsys.readouterr()
    assert captured.err.count("used again") == 3
    assert "IoF-IoB area" in captured.out
    assert str(options.out / "quick.json") in captured.out


@pytest.mark.slow
def test_a_failing_run_is_named(tmp_path: Path):
    options = replace(TINY, out=tmp_path / "quick", workers=1)
    damaged = cell_of(2, options).folder
    damaged.mkdir(parents=True)
    (damaged / "run.json").write_text("{")
    with pytest.raises(ExperimentError, match=r"K = 2 .*, seed 0: .*run\.json: not JSON"):
        run_quick(options, progress=False)
    assert not (options.out / "quick.json").exists()


class Stopping(Shapes):
    """Asks for the end of the run at its sixth training image, in the second step."""

    def image(self, index: int) -> Any:
        self.count = getattr(self, "count", 0) + 1
        if self.count == 6 and self.split == "train":
            os.kill(os.getpid(), signal.SIGTERM)
        return super().image(index)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_stopped_cell_goes_on_and_ends_as_if_it_had_not_been_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, stopped = (cell_of(0, replace(TINY, out=tmp_path / name, keep_models=False)) for name in "ab")
    expected = run_cell(whole)
    assert whole.record() == expected
    kept = sorted(path.name for path in whole.folder.iterdir())
    assert kept == ["config.json", "looks.jsonl", "metrics.jsonl", "record.json", "run.json"]
    assert cell_of(0, replace(TINY, out=tmp_path / "a")).record() is None  # its weights are gone

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="after step 2 of 3"):
        patch.setattr(Setting, "dataset", lambda self, split: Stopping(split, images=12 if split == "train" else 6))
        run_cell(stopped)
    assert stopped.record() is None
    ended = run_cell(stopped)
    assert {**ended, "seconds": 0, "eval_seconds": 0} == {**expected, "seconds": 0, "eval_seconds": 0}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_leaves_checkpoints_to_go_on_from(tmp_path: Path):
    script = tmp_path / "quick.py"
    script.write_text(
        "import signal\n"
        "from pathlib import Path\n"
        "from codetr_lab.experiments.quick import QuickOptions, run_quick\n"
        "if __name__ == '__main__':\n"
        # a shell starts background jobs, and what they start, with Ctrl-C ignored
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"    run_quick(QuickOptions(out=Path({str(tmp_path)!r}), steps=100000, train_images=8, val_images=4))\n"
    )
    running = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    options = QuickOptions(out=tmp_path, steps=100000, train_images=8, val_images=4)
    folders = [cell_of(k, options).folder for k in (2, 1)]
    deadline = time.monotonic() + 1200
    try:
        while not all(
            (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size for folder in folders
        ):
            assert running.poll() is None and time.monotonic() < deadline, "the runs did not get under way"
            time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=600)
    finally:
        running.kill()  # its workers notice, and stop
    assert "KeyboardInterrupt: stopped; the same command goes on" in errors
    assert "the runs save their checkpoints" in errors
    for folder in folders:
        assert load_state(folder).step >= 20
    assert not cell_of(0, options).folder.exists()
