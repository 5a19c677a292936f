"""The optimizer's parameter groups and the learning-rate schedule of a `RecipeConfig`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from codetr_lab.models.config import ConfigError, RecipeConfig
from codetr_lab.models.vit import ViT


def multiplier(name: str, multipliers: Sequence[tuple[str, float]]) -> float:
    """The learning-rate factor of parameter `name`: that of the longest fragment found in the name, else 1.

    Source: `paramwise_cfg` of `co_deformable_detr_r50_1x_coco`, where the longest key wins too.
    """
    found = [(len(fragment), factor) for fragment, factor in multipliers if fragment in name]
    return max(found)[1] if found else 1.0


def layers_above(name: str, depth: int) -> int:
    """How many of a ViT's `depth` blocks, and one, lie between parameter `name` and the output; 0 beyond the blocks.

    Source: `LayerDecayOptimizerConstructor` of `co_dino_5scale_vit_large_coco`.
    """
    if match := re.match(r"backbone\.net\.blocks\.(\d+)\.", name):
        return depth - int(match[1])
    return depth + 1 if name.startswith(("backbone.net.patch_embed.", "backbone.net.pos_embed")) else 0


def parameter_groups(model: nn.Module, recipe: RecipeConfig) -> list[dict[str, Any]]:
    """One group per learning rate and weight decay: `params`, `names`, `lr`, `base_lr` and `weight_decay`.

    Frozen parameters are left out. Norms and biases decay like everything else, as in the release, unless the recipe
    says otherwise.

    Raises:
        ConfigError: the model has no parameter to train, or `recipe.layer_decay` finds no blocks.
    """
    net = model.get_submodule("backbone.net") if recipe.layer_decay != 1 else None
    if net is not None and not isinstance(net, ViT):
        raise ConfigError("recipe.layer_decay needs the backbone eva02_vit, whose blocks it counts; set it to 1")
    depth = 0 if net is None else len(net.blocks)
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = multiplier(name, recipe.lr_multipliers) * recipe.layer_decay ** layers_above(name, depth)
            decay = recipe.weight_decay if recipe.decay_vectors or parameter.ndim != 1 else 0.0
            groups.setdefault((factor, decay), []).append((name, parameter))
    if not groups:
        raise ConfigError("the model has no parameter to train: everything is frozen; lower backbone.frozen_stages")
    return [
        {
            "params": [parameter for _, parameter in members],
            "names": [name for name, _ in members],
            "lr": recipe.lr * factor,
            "base_lr": recipe.lr * factor,
            "weight_decay": decay,
        }
        for (factor, decay), members in sorted(groups.items(), reverse=True)
    ]


def adamw(model: nn.Module, recipe: RecipeConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, fused: one kernel for all the small tensors of a lab model."""
    return torch.optim.AdamW(parameter_groups(model, recipe), fused=True)


def schedule(step: int, recipe: RecipeConfig) -> float:
    """The factor on every learning rate at `step` (0 .. recipe.steps - 1).

    Linear warm-up reaches 1 at step `warmup_steps - 1`. Then `"step"` divides by 10 at each share in `drop_at`;
    `"cosine"` falls to 1 % at the last step.
    """
    warm_up = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    if recipe.schedule == "step":
        return warm_up * 0.1 ** sum(step >= round(share * recipe.steps) for share in recipe.drop_at)
    length = recipe.steps - 1 - recipe.warmup_steps
    progress = min(1.0, max(0, step - recipe.warmup_steps) / length) if length > 0 else 0.0
    return warm_up * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its base."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
