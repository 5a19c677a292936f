"""The released key layout, both ways."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from golden_case import FOLDER, released_model

from codetr_lab.models import nearest
from codetr_lab.models.meta import class_dependent, meta_model, parameter_counts
from codetr_lab.models.nearest import nearest_preset, released_shapes
from codetr_lab.models.presets import create_model, preset
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


def test_what_does_not_fit_is_named(model, tmp_path, two_presets) -> None:
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
    with pytest.raises(CheckpointError, match=r"the release has no wings\.weight"):
        target.wings = torch.nn.Linear(1, 1)
        load_released(target, state)


@pytest.fixture
def two_presets(monkeypatch) -> None:
    """Compare with two presets only: each costs a second."""
    monkeypatch.setattr(nearest, "list_models", lambda: ["co_deformable_detr_r50", "lab_co_k1"])


def test_a_misfit_names_the_preset_that_fits_and_leaves_the_model_alone(model, small, two_presets) -> None:
    other = small(("faster_rcnn", "atss"))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_released(other, to_released(model))
    assert "first backbone.bn1.weight (64,) instead of (16,)" in str(error.value)
    assert str(error.value).endswith("it fits create_model('co_deformable_detr_r50')")
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


def test_the_nearest_preset_is_found_by_shapes(two_presets) -> None:
    def stored(**changes) -> dict[str, torch.Tensor]:
        shapes = released_shapes(preset("co_deformable_detr_r50", **changes))
        return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}

    assert not nearest_preset(stored()).differing
    found = nearest_preset(stored(num_classes=20, num_queries=900))
    assert str(found) == "it fits create_model('co_deformable_detr_r50', num_classes=20, num_queries=900)"
    found = nearest_preset(stored(**{"transformer.encoder_layers": 5}))
    assert str(found) == "the nearest is create_model('co_deformable_detr_r50'), from which 16 keys differ"
    assert "another kind of model's" in str(nearest_preset({"fc.weight": torch.zeros(3, 3)}))


def test_class_layers_can_start_afresh(small, caplog) -> None:
    trained, target = small(("faster_rcnn", "atss"), num_classes=9), small(("faster_rcnn", "atss"), seed=1)
    state, before = to_released(trained), {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(CheckpointError, match="of another shape"):
        load_released(target, state)
    with caplog.at_level(logging.WARNING):
        load_released(target, state, reset_classes=True)
    fresh = class_dependent(target.config)
    assert {"decoder.class_branches.0.weight", "selection.class_branch.bias"} <= fresh
    assert "heads.atss.atss_cls.weight" in fresh and "heads.faster_rcnn.fc_reg.bias" in fresh
    assert caplog.messages == [f"started afresh, since their shape depends on the classes: {', '.join(sorted(fresh))}"]
    for key, value in target.state_dict().items():
        assert torch.equal(value, before[key] if key in fresh else trained.state_dict()[key]), key
    load_released(small(("faster_rcnn", "atss")), to_released(target), reset_classes=True)  # same classes: reset too


def test_a_model_without_memory_has_the_same_keys_and_counts(small) -> None:
    real = small(("atss",))
    meta = meta_model(real.config)
    assert {k: v.shape for k, v in meta.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
    assert all(value.is_meta for value in meta.parameters())
    everything, used = parameter_counts(real.config)
    assert everything == sum(value.numel() for value in real.parameters())
    assert used == sum(value.numel() for value in small(()).parameters())
