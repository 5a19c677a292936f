"""Weights on disk: round trips, damage, other models, full disks, class changes."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import tiny

from codetr_lab.engine import checkpoint
from codetr_lab.engine.checkpoint import CheckpointError, TrainingState, load, load_model, save_model
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.config import ConfigError


@pytest.fixture(scope="module")
def model() -> CoDETR:
    torch.manual_seed(0)
    return CoDETR(tiny())


def test_what_is_saved_is_loaded(model: CoDETR, tmp_path: Path) -> None:
    save_model(model, tmp_path / "run")
    before = torch.get_rng_state()
    loaded = load(tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())
    assert not loaded.training
    assert loaded.config == model.config
    assert loaded.config.classes[0] == "circle"
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "model.safetensors"]


def test_half_precision_halves_matrices_and_keeps_vectors(model: CoDETR, tmp_path: Path) -> None:
    save_model(model, tmp_path, half=True)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert (stored[name].dtype == torch.float16) == (tensor.is_floating_point() and tensor.ndim > 1), name
    loaded = load_model(tmp_path)
    for name, tensor in loaded.state_dict().items():
        expected = model.state_dict()[name]
        assert tensor.dtype == expected.dtype
        torch.testing.assert_close(tensor, expected, rtol=2**-11, atol=2**-24)


def test_half_precision_refuses_what_does_not_fit(tmp_path: Path) -> None:
    model = CoDETR(tiny())
    with torch.no_grad():
        model.encoder.level_embeds[0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"encoder.level_embeds does not fit half precision; save .* half=False"):
        save_model(model, tmp_path, half=True)
    assert not list(tmp_path.iterdir())


def test_the_backbones_own_file_is_not_needed_again(tmp_path: Path) -> None:
    model = CoDETR(tiny())
    backbone = tmp_path / "backbone.pth"
    torch.save(model.backbone.net.state_dict(), backbone)
    save_model(CoDETR(tiny(**{"backbone.weights": str(backbone)})), tmp_path / "run")
    backbone.unlink()
    assert load(tmp_path / "run").config.backbone.weights is None


def test_another_models_weights_name_keys_and_shapes(model: CoDETR, tmp_path: Path) -> None:
    save_model(model, tmp_path / "a")
    save_model(CoDETR(tiny(num_queries=11)), tmp_path / "b")
    (tmp_path / "a" / "config.json").write_text((tmp_path / "b" / "config.json").read_text())
    with pytest.raises(
        CheckpointError, match=r"a/model.safetensors holds another model: \S+ is \(10, \d+\) in the fil"
    ):
        load(tmp_path / "a")
    weights = safetensors.torch.load_file(tmp_path / "b" / "model.safetensors")
    weights["extra"] = weights.pop("encoder.level_embeds")
    safetensors.torch.save_file(weights, tmp_path / "b" / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"the file lacks encoder.level_embeds; the file has extra, the model does"
    ):
        load(tmp_path / "b")


def test_damaged_and_missing_files_take_one_line(model: CoDETR, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    for cut in (0, 5, 100, len(content) // 2, len(content) - 1):
        weights.write_bytes(content[:cut])
        with pytest.raises(CheckpointError, match=r"model.safetensors: damaged or cut short") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"num_querie')
    with pytest.raises(CheckpointError, match=r"config.json: not a model configuration"):
        load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config.json"):
        load(tmp_path)
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is a file; give the folder"):
        load(weights)


def test_shipped_models_are_found_by_name(model: CoDETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.resources, "files", lambda package: tmp_path)
    with pytest.raises(ConfigError, match="unknown run folder, shipped model or released weights 'lab_co_k2'"):
        load("lab_co_k2")
    save_model(model, tmp_path / "weights" / "lab_co_k2", half=True)
    assert load("lab_co_k2").config == model.config
    with pytest.raises(ConfigError, match="released weights 'lab_co_k3'; did you mean 'lab_co_k2'"):
        load("lab_co_k3")
    with pytest.raises(
        ConfigError, match=r"released weights 'co_dino_r50'; did you mean 'co_dino_5scale_r50\.\dx_coco'"
    ):
        load("co_dino_r50")
    with pytest.raises(ConfigError, match="'yolo'; codetr models lists them"):
        load("yolo")
    with pytest.raises(ConfigError, match="there is no folder runs/nothing"):
        load("runs/nothing")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.write_atomically(path, b"old")

    def full(descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*model.safetensors: No space left on device; free some"):
        checkpoint.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file size are POSIX")
def test_a_file_size_limit_leaves_the_old_file(tmp_path: Path) -> None:
    """The operating system itself cuts the write short."""
    path = tmp_path / "state.pt"
    path.write_bytes(b"old")
    script = f"""
        import resource, signal
        from pathlib import Path
        from codetr_lab.engine.checkpoint import CheckpointError, write_atomically
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_atomically(Path({str(path)!r}), bytes(100_000))
        except CheckpointError as error:
            print(error)
    """
    root = Path(checkpoint.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=root, check=True
    )
    assert "cannot write" in done.stdout and "File too large" in done.stdout
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*file/run/model: Not a directory"):
        checkpoint.write_atomically(tmp_path / "file" / "run" / "model", b"")


def test_fine_tuning_resets_what_depends_on_the_classes(model: CoDETR, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    other = CoDETR(tiny(classes=("cell", "platelet")))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    fresh = checkpoint.initialise(other, tmp_path)
    assert fresh and all("decoder" in name or "class" in name or "cls" in name for name in fresh), fresh
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, before[name] if name in fresh else model.state_dict()[name]), name


def test_fine_tuning_with_as_many_other_classes_resets_them_too(model: CoDETR, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    assert checkpoint.initialise(CoDETR(tiny(classes=tuple("abcdef"))), tmp_path)
    assert checkpoint.initialise(CoDETR(tiny()), tmp_path) == []
    with pytest.raises(CheckpointError, match="holds another model"):
        checkpoint.initialise(CoDETR(tiny(num_queries=7)), tmp_path)


def test_training_state_and_generators_come_back(tmp_path: Path) -> None:
    state = TrainingState({"w": torch.ones(2)}, {"state": {}}, 3, 1, 2, 4.5, checkpoint.random_state())
    checkpoint.save_state(state, tmp_path)
    first = (random.random(), np.random.rand(), torch.rand(3))
    loaded = checkpoint.load_state(tmp_path)
    checkpoint.set_random_state(loaded.random)
    second = (random.random(), np.random.rand(), torch.rand(3))
    assert first[:2] == second[:2] and torch.equal(first[2], second[2])
    assert (loaded.step, loaded.epoch, loaded.batch, loaded.seconds) == (3, 1, 2, 4.5)


def test_damaged_training_state_takes_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        checkpoint.load_state(tmp_path)
    checkpoint.save_state(TrainingState({}, {}, 0, 0, 0, 0.0, checkpoint.random_state()), tmp_path)
    path = tmp_path / "state.pt"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"garbage"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"state.pt: damaged or cut short") as caught:
            checkpoint.load_state(tmp_path)
        assert "\n" not in str(caught.value)
    torch.save({"step": 1}, path)
    with pytest.raises(CheckpointError, match=r"state.pt: damaged or cut short"):
        checkpoint.load_state(tmp_path)
