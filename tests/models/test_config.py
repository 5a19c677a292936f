"""Configurations and presets."""

from __future__ import annotations

import pytest
import torch

from codetr_lab.models.config import CoDETRConfig, ConfigError, from_json, override, to_json
from codetr_lab.models.presets import create_model, list_models, preset, reconfigured


@pytest.mark.parametrize("name", list_models())
def test_a_preset_survives_json(name: str) -> None:
    assert from_json(to_json(preset(name))) == preset(name)


def test_names_are_listed_by_pattern() -> None:
    assert list_models("lab_co*") == ["lab_co_k1", "lab_co_k2"]
    assert "co_deformable_detr_r50" in list_models()


def test_dotted_overrides_reach_nested_fields() -> None:
    config = preset("lab_co_k2", num_queries=7, **{"transformer.heads": 2, "recipe.lr": 1})
    assert (config.num_queries, config.transformer.heads, config.recipe.lr) == (7, 2, 1)
    assert preset("lab_co_k2").num_queries == 50


def test_classes_and_their_number_go_together() -> None:
    assert preset("lab_baseline", num_classes=3).classes == ()
    assert preset("lab_baseline", classes=("a", "b")).num_classes == 2
    with pytest.raises(ConfigError, match="num_classes is 3, but 2 class names"):
        preset("lab_baseline", num_classes=3, classes=("a", "b"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_querys": 3}, "did you mean 'num_queries'"),
        ({"transformer.head": 3}, "did you mean 'heads'"),
        ({"num_queries": 2.5}, "must be a whole number"),
        ({"recipe.lr": "fast"}, "must be a number"),
        ({"queries.padding": "negative"}, "did you mean 'negatives'"),
        ({"num_queries": 0}, "at least 1"),
        ({"transformer.heads": 7}, "not a multiple"),
    ],
)
def test_wrong_values_are_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(CoDETRConfig(), **values)


@pytest.mark.parametrize("text", ["{", "[1]", '{"preset": "x", "wings": 2}'])
def test_foreign_json_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        from_json(text)


def test_backbones_come_from_timm_with_local_weights(tmp_path) -> None:
    small = {"backbone.options": {"channels": (8, 8, 16, 16), "stem_width": 8}}
    model = create_model("lab_baseline", **small)
    file = tmp_path / "backbone.pth"
    torch.save(model.backbone.net.state_dict(), file)
    again = create_model("lab_baseline", **small, **{"backbone.weights": str(file)})
    for name, value in model.backbone.net.state_dict().items():
        assert torch.equal(again.backbone.net.state_dict()[name], value), name
    with pytest.raises(ConfigError, match="first differing parameter"):
        create_model("lab_baseline", **{"backbone.weights": str(file)})
    with pytest.raises(ConfigError, match="there is no file"):
        create_model("lab_baseline", **{"backbone.weights": str(tmp_path / "none.pth")})


def test_frozen_stages_and_norms_stay_frozen_in_training() -> None:
    model = create_model("lab_baseline", **{"backbone.frozen_stages": 1, "backbone.frozen_norm": True}).train()
    frozen = {name.split(".")[1] for name, p in model.backbone.named_parameters() if not p.requires_grad}
    assert {"conv1", "bn1", "layer1"} <= frozen
    assert all(p.requires_grad for n, p in model.backbone.named_parameters() if "layer4" in n and "conv" in n)
    assert not any(m.training for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    with pytest.raises(ConfigError, match="cannot build"):
        create_model("lab_baseline", **{"backbone.options": {"wings": 2}})


def test_a_model_under_other_settings_has_the_same_weights() -> None:
    torch.manual_seed(0)
    model = create_model("lab_co_k1").eval()
    copy = reconfigured(model, **{"queries.padding": "empty", "queries.head_embedding": "none"})
    assert (copy.config.queries.padding, model.config.queries.padding) == ("empty", "negatives")
    assert not copy.training
    own = model.state_dict()
    assert own.keys() - copy.state_dict().keys() == {"customizers.atss.head_pos_embed"}
    assert all(torch.equal(value, own[name]) for name, value in copy.state_dict().items())
    with torch.no_grad():
        next(copy.parameters()).add_(1)
    assert not torch.equal(next(copy.parameters()), next(model.parameters()))  # a copy, not the same tensors
    assert reconfigured(model.train(), lambda_2_per_layer=False).training
    with pytest.raises(RuntimeError, match="head_pos_embed"):
        reconfigured(model, **{"queries.head_embedding": "vector"})
    with pytest.raises(ConfigError, match="did you mean 'padding'"):
        reconfigured(model, **{"queries.paddin": "empty"})
