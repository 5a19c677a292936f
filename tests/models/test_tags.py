"""The release's recipes as data: settings per `architecture.tag`."""

from __future__ import annotations

import pytest

from codetr_lab.models.config import ConfigError
from codetr_lab.models.presets import list_models, preset


@pytest.mark.parametrize("name", list_models(tags=True))
def test_every_tag_is_a_configuration_of_its_architecture(name: str) -> None:
    architecture, _, tag = name.partition(".")
    config, plain = preset(name), preset(architecture)
    assert config.preset == name
    assert config.image.square == (config.recipe.jitter is not None) == config.recipe.copy_paste == ("lsj" in tag)
    assert config.num_classes == {"coco": 80, "lvis": 1203, "o365": 365}[tag.rpartition("_")[2]]
    assert config.transformer == plain.transformer and config.decoder == plain.decoder
    if not config.image.square:
        assert config.recipe.crop_probability == 0.5 and config.recipe.crop_range == (384, 600)


def test_schedules() -> None:
    recipe = preset("co_dino_5scale_r50.1x_coco").recipe
    assert (recipe.steps, recipe.drop_at, recipe.lr) == (12 * 7393, (11 / 12,), 2e-4)
    assert preset("co_dino_5scale_r50.lsj_3x_coco").recipe.drop_at == (30 / 36,)
    image = preset("co_dino_5scale_r50.lsj_3x_coco").image
    assert (image.short, image.long, image.square, image.divisor) == (1024, 1024, True, 1)


def test_tags_are_listed_and_misspelt_ones_suggested() -> None:
    names = list_models("co_dino_5scale_r50*", tags=True)
    assert "co_dino_5scale_r50.1x_coco" in names and "co_dino_5scale_r50" not in names
    assert "co_dino_5scale_r50.1x_coco" not in list_models()
    with pytest.raises(ConfigError, match=r"'co_dino_5scale_r50\.3x_coco'; did you mean 'co_dino_5scale_r50\.\w+'"):
        preset("co_dino_5scale_r50.3x_coco")
    with pytest.raises(ConfigError, match=r"unknown model preset 'lab_co_k1\.1x'; did you mean 'lab_co_k1'"):
        preset("lab_co_k1.1x")
    assert preset("co_dino_5scale_r50.lsj_1x_lvis", num_classes=3).num_classes == 3
