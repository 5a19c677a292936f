"""What the released configurations train, how fast, and what every parameter starts from (tests/golden/FORMAT.md)."""

from __future__ import annotations

import json

import pytest
import torch
from golden_case import FOLDER

from codetr_lab.engine.optim import parameter_groups
from codetr_lab.models.meta import meta_model
from codetr_lab.models.presets import create_model, preset
from codetr_lab.models.released import released_key, to_released

RELEASED = {
    "co_deformable_detr_r50": "co_deformable_detr_r50_1x_coco", "co_dino_5scale_r50": "co_dino_5scale_r50_1x_coco",
    "co_deformable_detr_swin_tiny": "co_deformable_detr_swin_tiny_1x_coco",
    "co_dino_5scale_vit_large": "co_dino_5scale_vit_large_coco",
}  # fmt: skip
SMALLER = {"co_dino_5scale_vit_large": {"backbone.options": {"depth": 2}}}
"""What spares time where initial values are compared: the other blocks start like the first."""


def read(name: str) -> dict:
    return json.loads((FOLDER / f"release_stats_{RELEASED[name]}.json").read_text())


@pytest.mark.parametrize("name", RELEASED)
def test_parameter_groups_are_the_released_ones(name: str) -> None:
    model, stats = meta_model(preset(name)), read(name)
    groups = {}
    for group in parameter_groups(model, model.config.recipe):
        line = f"lr={group['lr']:.3e} wd={group['weight_decay']}"
        groups |= {released_key(name, model): line for name in group["names"]}
    trained = {name: stats["groups"][row[0]] for name, row in stats["parameters"].items()}
    for name in stats["frozen"]:
        del trained[name]
    assert groups == trained


@pytest.mark.parametrize("name", RELEASED)
def test_initial_values_are_drawn_from_the_released_distributions(name: str) -> None:
    torch.manual_seed(0)
    stats, ours = read(name), to_released(create_model(name, **SMALLER.get(name, {})))
    left = stats["parameters"].keys() - ours.keys()
    assert all(key.startswith("backbone.blocks.") for key in left) and bool(left) == (name in SMALLER)
    for key, (_, mean, std, low, high) in stats["parameters"].items():
        if key in left:
            continue
        value = ours[key].double()
        if std == 0:
            assert value.min() == pytest.approx(low, abs=1e-6) and value.max() == pytest.approx(high, abs=1e-6), key
            continue
        if value.numel() < 100:  # the scalars of two heads
            assert 0 < value.abs().max() < 2**0.5, key
            continue
        # Once in ten million draws a truncated normal rounds to its bound, -2, in the release as in timm and PyTorch.
        value = value[value > mean - 50 * std]
        error = 6 * std * (2 / value.numel()) ** 0.5  # six standard errors of a difference
        assert abs(float(value.mean()) - mean) < error, key
        assert abs(float(value.std()) - std) < error, key
        # uniform or normal: the largest of n normal values lies far beyond sqrt(3) standard deviations
        reach = min(float(value.max()), -float(value.min()))
        assert reach == pytest.approx(min(high, -low), rel=0.3), key
