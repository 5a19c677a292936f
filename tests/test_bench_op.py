"""The benchmark measures what it says; not how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from codetr_lab.bench import op as bench
from codetr_lab.bench import op_cuda
from codetr_lab.bench.common import BenchError, kept_for_backward
from codetr_lab.ops import compiled

TINY = {
    "encoder": bench.Case(1, 2, 8, ((4, 6), (2, 3))),
    "decoder": bench.Case(2, 2, 8, ((4, 6), (2, 3)), queries=5, points=2),
}


@pytest.fixture(autouse=True)
def tiny_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CASES", TINY)


def test_inputs() -> None:
    value, locations, weights, grad = bench.make_inputs(TINY["encoder"])
    assert value.shape == (1, 30, 2, 8)
    assert locations.shape == (1, 30, 2, 2, 4, 2)
    assert grad.shape == (1, 30, 16)
    torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(1, 30, 2))
    # query 7 is row 1, column 1 of the first level
    centre = locations[0, 7].double() * torch.tensor([[6, 4], [3, 2]])[:, None] - 0.5
    assert (centre.mean((0, 2))[0] - 1).abs().max() < 4
    assert bench.make_inputs(TINY["decoder"])[1].shape == (2, 5, 2, 2, 2, 2)


def test_full_size_has_the_tokens_of_the_paper() -> None:
    assert sum(h * w for h, w in bench.FOUR_LEVELS) == 22_223
    assert sum(h * w for h, w in bench.FIVE_LEVELS) == 89_023


def test_unknown_case() -> None:
    with pytest.raises(BenchError, match="unknown case 'encode'; choose from encoder, decoder; did you mean 'encoder'"):
        bench.bench(["encode"])


def test_without_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "NOT_LOADED", "it is not built")
    with pytest.raises(BenchError, match="cannot be measured: "):
        bench.bench(["encoder"])


@pytest.mark.skipif(bool(compiled.NOT_LOADED), reason=compiled.NOT_LOADED)
def test_table_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("CODETR_OPS", raising=False)
    monkeypatch.setattr(bench, "copy_speed", lambda: 1e9)
    bench.bench(out=tmp_path / "new" / "op.json")
    record = json.loads((tmp_path / "new" / "op.json").read_text())
    assert [(row["case"], row["pass_"]) for row in record["rows"]] == [
        (case, pass_) for case in TINY for pass_ in ("forward", "forward+backward")
    ]
    for row in record["rows"]:
        assert 3 <= row["runs"] <= 30
        assert row["speedup"] == row["reference_ms"] / row["compiled_ms"]
    # 480 values, 960 coordinates, 480 weights, 480 outputs of 4 bytes at 1 GB/s
    assert record["rows"][0]["floor_ms"] == pytest.approx(4 * 2400 / 1e6)
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_what_is_kept_for_the_backward_pass() -> None:
    x, weight = torch.ones(10, requires_grad=True), torch.ones(10, requires_grad=True)
    assert kept_for_backward(lambda: x * weight, besides=[x, weight]) == 0
    assert kept_for_backward(lambda: x * weight, besides=[x]) == 40
    assert kept_for_backward(lambda: ((x * weight).exp() * weight).sum(), besides=[x, weight]) == 40  # exp, once
    assert kept_for_backward(lambda: (x + weight).sum()) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_gpu() -> None:
    with pytest.raises(BenchError, match="needs a CUDA device"):
        op_cuda.bench(["encoder, 5 levels"])
    assert "first design" in op_cuda.format_rows([op_cuda.Row("encoder", "first design", 1.0, 2.0)])
