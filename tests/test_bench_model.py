"""The benchmark of whole detectors measures what it says; not how fast."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from codetr_lab.bench import common, model
from codetr_lab.bench.common import BenchError
from codetr_lab.ops import compiled

TINY = {
    "inference": model.Case("lab_co_k2", (48, 64), 2, "inference"),
    "training": model.Case("lab_co_k1", (48, 64), 1, "training"),
    "heads": model.Case("lab_co_k2", (48, 64), 1, "heads"),
    "bfloat16": model.Case("lab_co_k2", (48, 64), 1, "bfloat16", weights=True),
}


@pytest.fixture(autouse=True)
def tiny_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "CASES", TINY)
    monkeypatch.setattr(model, "take_turns", lambda work, seconds, least: common.take_turns(work, 0, least))
    monkeypatch.setattr(model, "matrix_speed", lambda: 1e9)


def test_batch_holds_objects_inside_the_images() -> None:
    batch, targets = model.make_batch(TINY["inference"])
    assert batch.pixels.shape == (2, 3, 48, 64)
    for target in targets:
        assert target["boxes"].shape == (10, 4)
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
        assert target["boxes"].min() >= 0 and (target["boxes"].amax(0)[2:] <= torch.tensor([64, 48])).all()


def test_variants_differ_in_the_backend_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula's turns run the formula, and the environment is as before afterwards."""
    monkeypatch.setenv("CODETR_OPS", "reference")
    seen: list[str] = []
    monkeypatch.setattr(compiled, "unavailable", lambda: seen.append(os.environ.get("CODETR_OPS", "")) or "no")
    work = model.prepare(TINY["inference"])
    a, b = work["compiled"](), work["formula"]()
    assert set(seen[: len(seen) // 2]) == {""} and set(seen[len(seen) // 2 :]) == {"reference"}
    assert all(torch.equal(x.boxes, y.boxes) for x, y in zip(a, b, strict=True))
    assert os.environ["CODETR_OPS"] == "reference"


def test_every_training_turn_does_the_same() -> None:
    turns = model.prepare(TINY["training"])
    detector = turns["compiled"].__closure__
    assert detector is not None
    trained = next(cell.cell_contents for cell in detector if isinstance(cell.cell_contents, torch.nn.Module))
    before = {name: p.clone() for name, p in trained.named_parameters()}
    turns["compiled"]()
    assert all(torch.equal(before[name], p) for name, p in trained.named_parameters())


def test_unknown_case() -> None:
    with pytest.raises(BenchError, match="unknown case 'infer'; choose from inference"):
        model.bench(["infer"])


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.bench(out=tmp_path / "model.json")
    rows = json.loads((tmp_path / "model.json").read_text())["rows"]
    variants = {"inference": ["compiled", "formula"], "training": ["compiled", "formula"], "heads": list(model.HEADS)}
    variants["bfloat16"] = ["float32", "bfloat16"]
    assert [(row["case"], row["variant"]) for row in rows] == [(c, v) for c in TINY for v in variants[c]]
    for row in rows:
        assert row["milliseconds"] > 0 and row["runs"] >= 2 and row["floor_ms"] > 0
        assert row["images_per_second"] == pytest.approx(1000 * TINY[row["case"]].batch / row["milliseconds"])
        assert ("best ten scores" in row["change"]) == (row["variant"] == "bfloat16")
    floors = {row["variant"]: row["floor_ms"] for row in rows if row["case"] == "heads"}
    assert floors["K = 0"] < floors["K = 1"] < floors["K = 2"]
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts memory there")
def test_peak_memory_counts_what_is_held_for_a_while() -> None:
    idle = common.peak_memory(lambda: None)
    busy = common.peak_memory(lambda: torch.ones(50_000_000).sum())
    assert idle is not None and busy is not None
    assert 150 < busy - idle < 400  # 191 MiB
    assert common.peak_memory(lambda: None) < idle + 50
