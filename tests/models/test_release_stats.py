"""What the released configurations train, how fast, and what every parameter starts from (tests/golden/FORMAT.md)."""

from __future__ import annotations

import json

import pytest
import torch
from golden_case import FOLDER

from codetr_lab.engine.optim import parameter_groups
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.presets import create_model
from codetr_lab.models.released import released_key, to_released

RELEASED = {
    "co_deformable_detr_r50": "co_deformable_detr_r50_1x_coco", "co_dino_5scale_r50": "co_dino_5scale_r50_1x_coco",
}  # fmt: skip


@pytest.fixture(scope="module", params=RELEASED)
def case(request: pytest.FixtureRequest) -> tuple[CoDETR, dict]:
    torch.manual_seed(0)
    stats = json.loads((FOLDER / f"release_stats_{RELEASED[request.param]}.json").read_text())
    return create_model(request.param), stats


def test_parameter_groups_are_the_released_ones(case: tuple[CoDETR, dict]) -> None:
    model, stats = case
    groups = {}
    for group in parameter_groups(model, model.config.recipe):
        line = f"lr={group['lr']:.3e} wd={group['weight_decay']}"
        groups |= {released_key(name, model): line for name in group["names"]}
    trained = {name: stats["groups"][row[0]] for name, row in stats["parameters"].items()}
    for name in stats["frozen"]:
        del trained[name]
    assert groups == trained


def test_initial_values_are_drawn_from_the_released_distributions(case: tuple[CoDETR, dict]) -> None:
    model, stats = case
    ours = to_released(model)
    for name, (_, mean, std, low, high) in stats["parameters"].items():
        value = ours[name].double()
        if std == 0:
            assert value.min() == pytest.approx(low, abs=1e-6) and value.max() == pytest.approx(high, abs=1e-6), name
            continue
        if value.numel() < 100:  # the scalars of two heads
            assert 0 < value.abs().max() < 2**0.5, name
            continue
        error = 6 * std * (2 / value.numel()) ** 0.5  # six standard errors of a difference
        assert abs(float(value.mean()) - mean) < error, name
        assert abs(float(value.std()) - std) < error, name
        # uniform or normal: the largest of n normal values lies far beyond sqrt(3) standard deviations
        assert float(value.abs().max()) == pytest.approx(max(-low, high), rel=0.3), name
