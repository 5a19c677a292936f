"""Parameter groups and the schedule."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from codetr_lab.engine.optim import adamw, multiplier, parameter_groups, schedule, set_rate
from codetr_lab.models.config import ConfigError, RecipeConfig
from codetr_lab.models.vit import ViT

RELEASE = RecipeConfig()


def model_with(*names: str) -> nn.Module:
    """Modules nested as the names say, each with one vector."""
    root = nn.Module()
    for name in names:
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, nn.Parameter(torch.ones(3)))
    return root


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("backbone.net.layer2.0.conv1.weight", 0.1),
        ("encoder.layers.0.attention.sampling_offsets.bias", 0.1),
        ("decoder.reference_points.weight", 0.1),
        ("encoder.layers.0.attention.attention_weights.bias", 1.0),
        ("neck.convs.0.weight", 1.0),
    ],
)
def test_multipliers_are_those_of_the_release(name: str, factor: float) -> None:
    assert multiplier(name, RELEASE.lr_multipliers) == factor


def test_the_longest_fragment_wins() -> None:
    rules = (("backbone", 0.1), ("backbone.norm", 0.5), ("norm", 2.0))
    assert multiplier("backbone.norm.weight", rules) == 0.5


def test_groups_leave_frozen_parameters_out() -> None:
    model = model_with("backbone.stem.weight", "backbone.last.weight", "neck.weight", "neck.bias")
    model.get_submodule("backbone.stem").requires_grad_(False)
    base, slow = parameter_groups(model, RELEASE)
    assert base["names"] == ["neck.weight", "neck.bias"]
    assert slow["names"] == ["backbone.last.weight"]
    assert (base["lr"], slow["lr"]) == (2e-4, pytest.approx(2e-5))
    assert base["weight_decay"] == slow["weight_decay"] == 1e-4


def test_everything_frozen_is_said() -> None:
    with pytest.raises(ConfigError, match="everything is frozen"):
        parameter_groups(model_with("a.weight").requires_grad_(False), RELEASE)


def test_the_released_model_has_the_released_groups() -> None:
    """66 tensors of the released model learn at a tenth: 42 of the backbone's, 24 of the sampling offsets'."""
    from codetr_lab.models.presets import create_model

    base, slow = parameter_groups(create_model("co_deformable_detr_r50"), RELEASE)
    backbone = [name for name in slow["names"] if name.startswith("backbone")]
    offsets = [name for name in slow["names"] if "sampling_offsets" in name]
    assert (len(backbone), len(offsets), len(slow["names"])) == (42, 24, 66)
    assert not [name for name in base["names"] if name.startswith("backbone")]


def test_step_schedule_drops_at_the_released_epoch() -> None:
    assert [schedule(step, RELEASE) for step in (0, 82499, 82500, 89999)] == [1.0, 1.0, 0.1, 0.1]


def test_cosine_schedule_warms_up_and_ends_at_one_percent() -> None:
    recipe = RecipeConfig(steps=1000, warmup_steps=100, schedule="cosine")
    assert schedule(0, recipe) == pytest.approx(0.01)
    assert schedule(99, recipe) == 1.0
    assert schedule(100, recipe) == 1.0
    assert schedule(999, recipe) == pytest.approx(0.01)
    assert schedule(549, recipe) > 0.505 > schedule(550, recipe)
    factors = [schedule(step, recipe) for step in range(100, 1000)]
    assert all(a >= b for a, b in itertools.pairwise(factors))


def test_schedules_shorter_than_their_warm_up_stay_finite() -> None:
    for steps in (1, 2, 3):
        recipe = RecipeConfig(steps=steps, warmup_steps=2, schedule="cosine")
        assert all(0 < schedule(step, recipe) <= 1 for step in range(steps))


def test_rates_follow_the_schedule_and_one_step_is_adamw() -> None:
    """The first AdamW step moves every parameter by its learning rate, after decay: p (1 - lr wd) - lr sign(g)."""
    model = model_with("backbone.weight", "neck.weight")
    optimizer = adamw(model, RecipeConfig(lr=0.01, weight_decay=0.1))
    set_rate(optimizer, 0.5)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    values = {name: p.detach() for name, p in model.named_parameters()}
    torch.testing.assert_close(values["neck.weight"], torch.full((3,), 1 - 0.005 * 0.1 - 0.005))
    torch.testing.assert_close(values["backbone.weight"], torch.full((3,), 1 - 0.0005 * 0.1 - 0.0005))
    set_rate(optimizer, 1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.001])
    assert math.isclose(optimizer.param_groups[0]["base_lr"], 0.01)


def test_rates_fall_from_block_to_block_of_a_vit_and_vectors_do_not_decay() -> None:
    recipe = RecipeConfig(lr=1.0, weight_decay=0.1, lr_multipliers=(), layer_decay=0.5, decay_vectors=False)
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.net = ViT(dim=8, depth=3, heads=2, ffn_dim=8, patch=4, pretrain_grid=2)
    model.scale = nn.Parameter(torch.tensor(1.0))
    rates = {name: (g["lr"], g["weight_decay"]) for g in parameter_groups(model, recipe) for name in g["names"]}
    assert rates["backbone.net.pos_embed"] == rates["backbone.net.patch_embed.proj.weight"] == (0.5**4, 0.1)
    assert rates["backbone.net.patch_embed.proj.bias"] == (0.5**4, 0.0)
    assert [rates[f"backbone.net.blocks.{i}.attn.q_bias"] for i in range(3)] == [(0.125, 0.0), (0.25, 0.0), (0.5, 0.0)]
    assert rates["backbone.net.out_norm.weight"] == (1.0, 0.0)
    assert rates["scale"] == (1.0, 0.1)  # a scalar is no vector (release)
    model.backbone.net = nn.Linear(1, 1)
    with pytest.raises(ConfigError, match="needs the backbone eva02_vit"):
        parameter_groups(model, recipe)
