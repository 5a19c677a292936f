"""The detectors that the ablations are measured against: trained, kept, and asked, and through the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import tiny

from codetr_lab.cli import main
from codetr_lab.data.shapes import Shapes
from codetr_lab.engine.checkpoint import load
from codetr_lab.engine.options import TrainOptions
from codetr_lab.engine.train import train
from codetr_lab.models.presets import BASELINES

OPTIONS = TrainOptions(steps=2, eval_images=2, progress=False)


def detectors(name: str) -> tuple[str, ...]:
    """The heads of a baseline with one ATSS head, the main one first."""
    return ("atss",) if name == "dense" else ("detr", "atss")


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_trained_and_kept(name: str, tmp_path: Path) -> None:
    config = tiny("lab_co_k1", **BASELINES[name])
    result = train(config, Shapes("train", images=4), Shapes("val", images=2), tmp_path / "run", OPTIONS)
    assert list(result.metrics) == [detectors(name)[0]]
    again = load(tmp_path / "run")
    assert again.detectors == detectors(name)
    assert again.config == result.model.config
    image = Shapes("val", images=2).image(0)
    for ours, theirs in zip(again.predict([image]), result.model.predict([image]), strict=True):
        assert list(ours) == [detectors(name)[0]]
        assert torch.equal(ours[detectors(name)[0]].boxes, theirs[detectors(name)[0]].boxes)


def test_the_commands_know_that_there_is_no_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    config = tiny("lab_co_k2", **BASELINES["dense"])
    train(config, Shapes("train", images=4), None, run, OPTIONS)
    capsys.readouterr()
    assert main(["eval", run, "--limit", "2"]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert rows[:3] == ["head", "atss", "faster_rcnn"]
    assert main(["eval", run, "--limit", "2", "--heads", "detr"]) == 2
    assert "unknown head 'detr'" in capsys.readouterr().err

    picture, found = tmp_path / "image.png", tmp_path / "found.json"
    Image.fromarray(Shapes("val", images=1).image(0)).save(picture)
    assert main(["predict", str(picture), "--model", run, "--out", str(found)]) == 0
    assert list(json.loads(found.read_text())[0]["heads"]) == ["atss"]
