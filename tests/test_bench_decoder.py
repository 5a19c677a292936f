"""The benchmark of the decoder compares the same numbers; not how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from codetr_lab.bench import decoder as bench
from codetr_lab.bench.common import BenchError
from codetr_lab.models.decoder import Decoder
from codetr_lab.models.presets import preset

TINY = {
    "plain": bench.Case("lab_co_k1", 1, ((4, 4), (2, 2), (1, 1)), (5, 3)),
    "denoising": bench.Case("lab_co_k2", 2, ((4, 4), (2, 2), (1, 1)), (5,), denoising=8, subgroup=4),
}


@pytest.mark.parametrize("case", TINY.values(), ids=TINY)
def test_both_ways_give_the_same_numbers(case: bench.Case) -> None:
    config = preset(case.preset)
    torch.manual_seed(0)
    decoder = Decoder(config, len(case.shapes))
    for parameter in decoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.xavier_uniform_(parameter)
    inputs = bench.make_inputs(case, config)
    with torch.no_grad():
        one, many = (way(decoder, *inputs) for way in (bench.grouped, bench.separate))
    assert one.keys() == many.keys() and len(one) == 1 + bool(case.denoising) + len(case.customized)
    for name in one:
        torch.testing.assert_close(one[name].logits, many[name].logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one[name].boxes_cxcywh, many[name].boxes_cxcywh, atol=1e-5, rtol=1e-5)


def test_table_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "CASES", TINY)
    monkeypatch.setattr(bench, "take_turns", lambda ways, _: {name: [way() and 1.0] for name, way in ways.items()})
    bench.bench(["plain"], tmp_path / "decoder.json")
    rows = json.loads((tmp_path / "decoder.json").read_text())["rows"]
    assert [(row["case"], row["pass_"]) for row in rows] == [("plain", "forward"), ("plain", "forward+backward")]
    assert all(row["separate_calls"] > row["grouped_calls"] > 0 for row in rows)
    assert "one pass ms" in capsys.readouterr().out
    with pytest.raises(BenchError, match="unknown case 'plan'; choose from plain, denoising; did you mean 'plain'"):
        bench.bench(["plan"])


def test_full_size_cases_have_the_released_models_levels() -> None:
    for case in bench.CASES.values():
        config = preset(case.preset)
        levels = len(config.backbone.out_indices) + config.transformer.extra_levels
        assert len(case.shapes) == levels
        assert bool(config.denoising.queries) == bool(case.denoising)
