"""Moving averages of weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny import tiny
from torch import nn

from codetr_lab.data.shapes import Shapes
from codetr_lab.engine.checkpoint import load_model, load_state
from codetr_lab.engine.ema import EMA, share
from codetr_lab.engine.options import TrainOptions
from codetr_lab.engine.train import TrainResult, train
from codetr_lab.models.codetr import CoDETR

CONFIG = tiny(**{"recipe.ema": 0.2})


def test_the_share_falls_to_the_momentum() -> None:
    assert share(0, 1e-4) == pytest.approx((1 - 1e-4) * math.exp(-1 / 2000) + 1e-4)
    assert share(1999, 1e-4) == pytest.approx((1 - 1e-4) / math.e + 1e-4)
    assert share(100_000, 1e-4) == pytest.approx(1e-4)


def test_parameters_and_buffers_are_averaged_and_counters_are_not() -> None:
    model = nn.BatchNorm1d(2)
    ema = EMA(model, 0.5)
    with torch.no_grad():
        model.weight += 1
        model.running_mean += 2
        model.num_batches_tracked += 3
    ema.update(model, 10**6)
    assert ema.average["weight"].tolist() == [1.5, 1.5]
    assert ema.average["running_mean"].tolist() == [1, 1]
    with pytest.raises(RuntimeError, match="inside"), ema.applied(model):
        assert (model.weight[0], model.running_mean[0], model.num_batches_tracked) == (1.5, 1, 3)
        raise RuntimeError("inside")
    assert (model.weight[0], model.running_mean[0]) == (2, 2)
    assert ema.average["weight"].tolist() == [1.5, 1.5]


def run(out: Path, steps: list[dict[str, torch.Tensor]] | None = None, **options) -> TrainResult:
    def observe(model: CoDETR, step: int) -> None:
        if steps is not None:
            steps.append({name: value.clone() for name, value in model.state_dict().items()})

    plain = {"device": "cpu", "progress": False, "save_every": 2}
    data = Shapes("train", images=4, size=64)
    return train(CONFIG, data, None, out, TrainOptions(**(plain | options)), observers=[observe])


def test_a_run_saves_the_average_and_goes_on_from_the_weights(tmp_path: Path) -> None:
    weights: list[dict[str, torch.Tensor]] = []
    result = run(tmp_path / "run", weights)
    assert len(weights) == CONFIG.recipe.steps + 1
    average = {name: value.clone() for name, value in weights[0].items()}
    for step, new in enumerate(weights[1:]):
        m = (1 - 0.2) * math.exp(-(1 + step) / 2000) + 0.2
        average = {k: (1 - m) * v + m * new[k] if v.is_floating_point() else new[k] for k, v in average.items()}
    saved = load_model(tmp_path / "run").state_dict()
    for name, value in result.model.state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-6)
        assert torch.equal(saved[name], value), name
    state = load_state(tmp_path / "run")
    for name, value in weights[-1].items():
        assert torch.equal(state.model[name], value), name
    assert any(not torch.equal(state.model[name], value) for name, value in saved.items())


def test_a_stopped_run_goes_on_with_its_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    forward, count = CoDETR.forward, 0

    def stop(self: CoDETR, *arguments):
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return forward(self, *arguments)

    monkeypatch.setattr(CoDETR, "forward", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    resumed = run(tmp_path / "run", resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
