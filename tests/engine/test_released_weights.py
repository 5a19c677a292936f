"""The catalogue: from a released file to a model that is there without a network."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace

import pytest
import torch
from loopback import serving
from tiny import tiny

import codetr_lab
from codetr_lab.data.class_names import COCO_IDS, category_ids, class_names
from codetr_lab.engine import checkpoint, released_weights
from codetr_lab.engine.released_weights import RELEASED, WeightsError, cache_folder, from_file
from codetr_lab.models import presets
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.config import ConfigError
from codetr_lab.models.foreign import CheckpointError
from codetr_lab.models.released import to_released

NAME = "co_dino_5scale_r50.1x_coco"


@pytest.fixture
def model() -> CoDETR:
    """A tiny model with COCO's 80 classes, its buffers filled too."""
    torch.manual_seed(0)
    model = CoDETR(tiny("lab_co_k2", num_classes=80)).eval()
    for name, value in model.state_dict().items():
        if name.endswith("head_pos_embed"):
            value.normal_()
    return model


@pytest.fixture(autouse=True)
def small_release(model, tmp_path, monkeypatch) -> None:
    """The released architecture is a tiny one, and the cache folder an empty one."""
    monkeypatch.setitem(presets._PRESETS, "co_dino_5scale_r50", model.config)
    monkeypatch.setattr("codetr_lab.models.nearest.list_models", lambda: ["co_dino_5scale_r50", "lab_baseline"])
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "cache"))


def stored(state: dict[str, torch.Tensor], folder) -> bytes:
    file = folder / "stored.pth"
    torch.save({"state_dict": state, "meta": {"epoch": 12}}, file)
    return file.read_bytes()


def at(url: str, monkeypatch, **changes) -> None:
    """The catalogue's entry points to `url`."""
    entry = next(weights for weights in RELEASED if weights.name == NAME)
    monkeypatch.setattr(released_weights, "RELEASED", (replace(entry, url=url, **changes),))


def same(one: CoDETR, other: CoDETR) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_weights_by_name_are_fetched_once_and_then_work_offline(model, tmp_path, monkeypatch, capsys) -> None:
    content = stored(to_released(model), tmp_path)
    digits = hashlib.sha256(content).hexdigest()[:8]
    with serving(content) as (server, url):
        at(url.replace("file.pth", f"{digits}.pth"), monkeypatch)
        assert released_weights.released(NAME).sha256 == digits
        loaded = codetr_lab.load(NAME)
        assert len(server.asked) == 1 and digits in capsys.readouterr().err
    assert same(loaded, model) and not loaded.training
    assert loaded.config.classes == class_names("coco") and loaded.config.preset == NAME
    folder = tmp_path / "cache" / "weights" / NAME
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert not list((tmp_path / "cache").rglob("*.pth"))  # the download made room
    again = codetr_lab.load(NAME)  # the server is gone
    assert same(again, model)
    image = torch.zeros(3, 64, 64)
    batch = codetr_lab.ImageBatch.from_images([image])
    assert torch.equal(again(batch)[0].scores, model(batch)[0].scores)


def test_an_incomplete_cache_is_made_again(model, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "cache" / "weights" / NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    with serving(stored(to_released(model), tmp_path)) as (_, url):
        at(url, monkeypatch)
        assert same(codetr_lab.load(NAME), model)


def test_a_file_for_another_preset_leaves_no_cache(tmp_path, monkeypatch) -> None:
    other = CoDETR(tiny("lab_co_k2", num_classes=80, **{"transformer.encoder_layers": 2}))
    with serving(stored(to_released(other), tmp_path)) as (_, url):
        at(url, monkeypatch)
        with pytest.raises(CheckpointError, match=f"does not fit {NAME}.*left over, first query_head.*the nearest is"):
            codetr_lab.load(NAME)
    assert not (tmp_path / "cache" / "weights" / NAME).exists()


def test_what_lies_in_a_drive_is_passed_as_a_file(model, tmp_path) -> None:
    with pytest.raises(WeightsError, match=r"fetch it by hand from https://github\.com/.* --weights FILE\.pth"):
        codetr_lab.load("co_deformable_detr_r50.1x_coco")
    file = tmp_path / "hand.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in to_released(model).items()}}, file)
    loaded = codetr_lab.load(NAME, weights=file)
    assert same(loaded, model) and loaded.config.classes == class_names("coco")
    assert codetr_lab.load("co_dino_5scale_r50", weights=file).config.classes == ()
    with pytest.raises(ConfigError, match=r"unknown model preset 'co_dino_5scale_r50\.9x_coco'; did you mean"):
        codetr_lab.load("co_dino_5scale_r50.9x_coco", weights=file)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        codetr_lab.load(NAME, weights=tmp_path / "none.pth")


def test_heads_that_a_file_lacks_are_left_out(model, tmp_path, caplog) -> None:
    """As in the LVIS files: one has no RoI head, another one without background class; both name class weights."""
    file = tmp_path / "a.pth"
    state = to_released(model) | {"query_head.loss_cls.fed_loss_weight": torch.ones(80)}
    without = {key: value for key, value in state.items() if not key.startswith("roi_head")}
    fewer = state | {"roi_head.0.bbox_head.fc_cls.bias": torch.zeros(80)}
    for content in (without, fewer):
        torch.save(content, file)
        with caplog.at_level(logging.WARNING):
            loaded = from_file(NAME, file)
        assert caplog.messages.pop() == f"{NAME}: no fitting faster_rcnn in the file; loaded without"
        assert loaded.config.aux_heads == ("atss",)
        own = model.state_dict()  # head_pos_embed too, of which the file holds a row per head
        assert all(torch.equal(value, own[key]) for key, value in loaded.state_dict().items())
        checkpoint.save_model(loaded, tmp_path / "saved")
        assert same(codetr_lab.load(tmp_path / "saved"), loaded)
    bare = {key: value for key, value in without.items() if not key.startswith(("bbox_head", "query_head.downsample"))}
    torch.save(bare, file)
    loaded = from_file(NAME, file)
    assert loaded.config.aux_heads == () and loaded.detectors == ("detr",)
    checkpoint.save_model(loaded, tmp_path / "bare")
    assert same(codetr_lab.load(tmp_path / "bare"), loaded)
    torch.save({key: value for key, value in state.items() if not key.startswith("neck")}, file)
    with pytest.raises(CheckpointError, match="keys missing, first neck"):
        from_file(NAME, file)


def test_where_the_cache_lies(monkeypatch, tmp_path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("CODETR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "codetr_lab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "codetr_lab"
    monkeypatch.setenv("CODETR_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WeightsError, match=r"cannot make .*; set CODETR_CACHE"):
        released_weights._made(cache_folder())


def test_the_catalogue_is_in_order() -> None:
    names = [weights.name for weights in RELEASED]
    assert len(set(names)) == len(names)
    tagged = set(presets.list_models(tags=True))
    for weights in RELEASED:
        if weights.name.partition(".")[0] in presets.list_models():
            assert weights.name in tagged, weights.name
            classes = presets.preset(weights.name).num_classes
            assert not weights.classes or classes == len(class_names(weights.classes)), weights.name
        assert weights.url.startswith(("https://download.openmmlab.com/", "https://huggingface.co/")) or not weights.url
    hashes = [weights.sha256 for weights in RELEASED if "openmmlab" in weights.url]
    assert len(hashes) == 8 and all(len(digits) == 8 for digits in hashes)


def test_class_names() -> None:
    coco, lvis = class_names("coco"), class_names("lvis_v1")
    assert (len(coco), len(lvis)) == (80, 1203) and len(set(coco)) == 80 and len(set(lvis)) == 1203
    assert dict(zip(coco, COCO_IDS, strict=True))["toothbrush"] == 90 and category_ids(coco)[11] == 13
    assert category_ids(lvis)[-1] == 1203 and category_ids(("a", "b")) == (1, 2)
