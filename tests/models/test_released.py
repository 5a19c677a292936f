"""The released key layout, both ways."""

from __future__ import annotations

import json

import pytest
import torch
from golden_case import FOLDER, released_model

from codetr_lab.models.presets import create_model
from codetr_lab.models.released import CheckpointError, load_released, to_released

NAME = "co_deformable_detr_r50_1x_coco"


@pytest.fixture(scope="module")
def model():
    return released_model("co_deformable_detr_r50", NAME)


def test_the_round_trip_has_exactly_the_released_keys_and_shapes(model) -> None:
    keys = json.loads((FOLDER / f"manifest_{NAME}.json").read_text())["keys"]
    state = to_released(model)
    assert {name: list(value.shape) for name, value in state.items()} == keys
    again = load_released(create_model("co_deformable_detr_r50"), state)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_file_is_read_without_unpickling_code(model, tmp_path) -> None:
    file = tmp_path / "released.pth"
    torch.save({"state_dict": to_released(model), "meta": {"epoch": 12}}, file)
    load_released(create_model("co_deformable_detr_r50"), file)


def test_what_does_not_fit_is_named(model, tmp_path) -> None:
    state = to_released(model)
    target = create_model("co_deformable_detr_r50")
    with pytest.raises(CheckpointError, match=r"1 keys left over, first wings\.weight"):
        load_released(target, state | {"wings.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"keys missing, first neck\.convs\.0\.conv\.weight"):
        load_released(target, {k: v for k, v in state.items() if k != "neck.convs.0.conv.weight"})
    with pytest.raises(CheckpointError, match="another shape"):
        load_released(create_model("co_deformable_detr_r50", num_classes=3), state)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_released(target, tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_released(target, tmp_path / "text.pth")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "numbers.pth")
    with pytest.raises(CheckpointError, match="holds no state_dict"):
        load_released(target, tmp_path / "numbers.pth")
