"""What is shipped is half the size, says how it was made, and detects what the run's model detects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from codetr_lab.engine.checkpoint import CheckpointError, load_model, save_model
from codetr_lab.experiments.cell import ExperimentError
from codetr_lab.experiments.ship import command, ship
from codetr_lab.models.presets import create_model
from codetr_lab.structures import ImageBatch

RECORD = {"k": 1, "seed": 3, "steps": 12, "train_images": 4000, "val_images": 4, "ap": 0.1}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "cell"
    torch.manual_seed(0)
    save_model(create_model("lab_co_k1"), folder)
    (folder / "record.json").write_text(json.dumps(RECORD))
    return folder


def test_a_shipped_model_is_small_complete_and_documented(run: Path, tmp_path: Path):
    content = ship(run, "lab_co_k1", tmp_path / "weights")
    shipped = tmp_path / "weights" / "lab_co_k1"
    assert sorted(path.name for path in shipped.iterdir()) == ["config.json", "metrics.json", "model.safetensors"]
    assert json.loads((shipped / "metrics.json").read_text()) == content
    assert content["command"] == "codetr experiment quick --keep-models --steps 12 --seeds 3 --val-images 4"
    assert content["record"] == RECORD
    assert list(content["metrics"]) == ["detr", "atss"]
    assert content["metrics"]["atss"]["images"] == 4
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (run, shipped)]
    assert sizes[1] < 0.56 * sizes[0]
    original, stored = load_model(run), load_model(shipped)
    assert list(stored.heads) == ["atss"]
    assert stored.config == original.config
    batch = ImageBatch.from_images([torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(0))])
    # The memory, since with random weights the order of the queries hangs on the last digit.
    expected, found = (model.trace(batch).memory[0] for model in (original, stored))
    assert 0 < (expected - found).abs().max() < 0.01


def test_a_command_names_only_what_is_not_usual():
    usual = {**RECORD, "val_images": 400}
    assert command(usual) == "codetr experiment quick --keep-models --steps 12 --seeds 3"
    assert command({**usual, "train_images": 8}).endswith(" --train-images 8")


def test_what_cannot_be_shipped_is_said(run: Path, tmp_path: Path):
    (run / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        ship(run, "lab_co_k1", tmp_path)
    (run / "record.json").unlink()
    with pytest.raises(ExperimentError, match=r"holds no record\.json; ship a finished run"):
        ship(run, "lab_co_k1", tmp_path)
