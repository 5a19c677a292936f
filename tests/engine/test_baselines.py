"""The detectors that the ablations are measured against, through the commands: train, eval, predict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny import tiny

from codetr_lab.cli import main
from codetr_lab.data.shapes import Shapes
from codetr_lab.engine.checkpoint import load
from codetr_lab.engine.options import TrainOptions
from codetr_lab.engine.train import train
from codetr_lab.models.presets import BASELINES


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_trained_evaluated_and_asked(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = ("atss",) if name == "dense" else ("detr", "atss")
    data = Shapes("train", images=4)
    options = TrainOptions(steps=2, eval_images=2, progress=False)
    result = train(tiny("lab_co_k1", **BASELINES[name]), data, Shapes("val", images=2), tmp_path / "run", options)
    assert list(result.metrics) == [heads[0]]
    assert load(tmp_path / "run").detectors == heads
    capsys.readouterr()

    assert main(["eval", str(tmp_path / "run"), "--limit", "2", "--heads", ",".join(heads)]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert rows[1 : 1 + len(heads)] == list(heads)

    Image.fromarray(data.image(0)).save(tmp_path / "image.png")
    found = tmp_path / "found.json"
    assert main(["predict", str(tmp_path / "image.png"), "--model", str(tmp_path / "run"), "--out", str(found)]) == 0
    assert list(json.loads(found.read_text())[0]["heads"]) == [heads[0]]
