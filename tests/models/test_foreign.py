"""Checkpoint files of other people: what is read, what is refused, and under which names."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import os
import pathlib
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from codetr_lab.models.foreign import CheckpointError, read_checkpoint, released_names

WEIGHTS = {"neck.weight": torch.arange(6.0).reshape(2, 3), "neck.bias": torch.ones(2)}


def same(state: dict[str, torch.Tensor]) -> bool:
    return state.keys() == WEIGHTS.keys() and all(torch.equal(state[key], WEIGHTS[key]) for key in WEIGHTS)


@pytest.fixture
def framework(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module `mmengine.logging` that exists while the file is written and is gone when it is read."""
    package, module = types.ModuleType("mmengine"), types.ModuleType("mmengine.logging")

    class HistoryBuffer:
        ran = False

        def __init__(self, values: list[float]) -> None:
            self.values = np.asarray(values)

        def __setstate__(self, state: object) -> None:
            HistoryBuffer.ran = True

    class ConfigDict(dict):
        pass

    for kind in (HistoryBuffer, ConfigDict):
        kind.__module__, kind.__qualname__ = "mmengine.logging", kind.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "mmengine", package)
    monkeypatch.setitem(sys.modules, "mmengine.logging", module)
    return module


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "meta": {"epoch": 12}}, lambda s: {"model": s}]
)
def test_the_usual_places(tmp_path, wrap) -> None:
    file = tmp_path / "a.pth"
    torch.save(wrap(WEIGHTS), file)
    assert same(read_checkpoint(file))
    torch.save(wrap(WEIGHTS), file, _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(file))
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert same(read_checkpoint(tmp_path / "a.safetensors"))


def test_metadata_of_a_training_framework_becomes_stand_ins(tmp_path, framework, monkeypatch) -> None:
    default = collections.defaultdict(list)
    default["lr"].append(2e-4)
    meta = {
        "history": framework.HistoryBuffer([1.0, 2.0]), "config": framework.ConfigDict(type="CoDETR", depth=[1, 2]),
        "scalar": np.float64(0.5), "array": np.arange(3), "time": datetime.datetime(2023, 7, 1), "default": default,
        "args": argparse.Namespace(lr=1.0), "path": pathlib.PurePosixPath("a/b"), "method": "hello".upper,
    }  # fmt: skip
    file = tmp_path / "a.pth"
    torch.save({"meta": meta, "state_dict": collections.OrderedDict(WEIGHTS), "optimizer": {"step": 3}}, file)
    monkeypatch.delitem(sys.modules, "mmengine.logging")
    monkeypatch.delitem(sys.modules, "mmengine")
    assert same(read_checkpoint(file))
    assert not framework.HistoryBuffer.ran
    with pytest.raises(Exception, match="weights_only"):  # that is, the stand-ins are forgotten again
        torch.load(file, weights_only=True)


class Bomb:
    def __reduce__(self):
        return os.system, ("echo bomb > bomb.txt",)


def test_code_is_not_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": WEIGHTS, "meta": Bomb()}, "bomb.pth")
    with pytest.raises(CheckpointError, match=r"bomb\.pth asks for (posix|nt)\.system, which no weights need"):
        read_checkpoint("bomb.pth")
    assert not (tmp_path / "bomb.txt").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"<!DOCTYPE html><title>Google Drive - Virus scan warning</title>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"hello", "not a checkpoint that can be read safely"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, words) -> None:
    file = tmp_path / "a.pth"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\.pth is not a checkpoint.*{words}|{words}"):
        read_checkpoint(file)


def test_a_file_cut_short(tmp_path) -> None:
    for name in ("a.pth", "a.safetensors"):
        file = tmp_path / name
        (torch.save if name.endswith("pth") else save_file)(WEIGHTS, file)
        file.write_bytes(file.read_bytes()[:-40])
        with pytest.raises(CheckpointError, match="cut short"):
            read_checkpoint(file)


def test_files_without_a_state_dict(tmp_path) -> None:
    file = tmp_path / "a.pth"
    for content, words in (([1, 2], "holds no state_dict"), ({}, "holds no state_dict"), ({"a": 1}, "a is int, not a")):
        torch.save(content, file)
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(file)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "none.pth")


def test_prefixes_are_taken_off() -> None:
    plain, other = torch.zeros(1), torch.ones(1)
    assert released_names({"module.neck.a": plain}) == {"neck.a": plain}
    assert released_names({"module.neck.a": plain, "b": plain}).keys() == {"module.neck.a", "b"}
    twins = {"neck.a_b.c": plain, "ema_neck_a_b_c": other}  # the release's hook: the plain one is the average
    assert released_names(twins)["neck.a_b.c"] is plain and len(released_names(twins)) == 1
    assert released_names({"ema_neck.a_b.c": other}) == {"neck.a_b.c": other}
    assert released_names({"ema_neck_a_b_c": other}, ["neck.a_b.c"]) == {"neck.a_b.c": other}
    assert released_names({"ema_neck_a_b_c": other, "neck.d": plain}, ["neck.a_b.c"]).keys() == {"neck.a_b.c", "neck.d"}


def test_a_swin_of_mmdetection_3_becomes_the_releases() -> None:
    """The two ways to merge 2 x 2 patches give the same numbers with the converted weights."""
    channels, height, width = 6, 8, 10
    generator = torch.Generator().manual_seed(0)
    norm, reduction = nn.LayerNorm(4 * channels), nn.Linear(4 * channels, 2 * channels, bias=False)
    for parameter in (norm.weight, norm.bias, reduction.weight):
        nn.init.normal_(parameter, generator=generator)
    image = torch.randn(1, channels, height, width, generator=generator)
    unfolded = nn.functional.unfold(image, 2, stride=2).transpose(1, 2)  # as MMDetection: channel by channel
    expected = reduction(norm(unfolded))

    prefix = "backbone.stages.0.downsample"
    state = {
        f"{prefix}.norm.weight": norm.weight, f"{prefix}.norm.bias": norm.bias,
        f"{prefix}.reduction.weight": reduction.weight, "backbone.stages.0.blocks.1.attn.w_msa.qkv.bias": torch.ones(1),
        "backbone.stages.0.blocks.1.ffn.layers.0.0.weight": torch.ones(1), "backbone.norm2.bias": torch.ones(1),
        "backbone.stages.0.blocks.1.ffn.layers.1.weight": torch.ones(1),
        "backbone.patch_embed.projection.bias": torch.ones(1), "neck.stages.ffn.layers.1.a": torch.ones(1),
        "query_head.dn_generator.label_embedding.weight": torch.ones(1),
    }  # fmt: skip
    named = released_names(state)
    assert named.keys() == {
        *(f"backbone.layers.0.downsample.{key}" for key in ("norm.weight", "norm.bias", "reduction.weight")),
        "backbone.layers.0.blocks.1.attn.qkv.bias", "backbone.layers.0.blocks.1.mlp.fc1.weight", "backbone.norm2.bias",
        "backbone.layers.0.blocks.1.mlp.fc2.weight", "backbone.patch_embed.proj.bias", "neck.stages.ffn.layers.1.a",
        "query_head.label_embedding.weight",
    }  # fmt: skip
    x = image.permute(0, 2, 3, 1)  # as the release: neighbour by neighbour
    merged = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1).flatten(1, 2)
    with torch.no_grad():
        norm.weight.copy_(named["backbone.layers.0.downsample.norm.weight"])
        norm.bias.copy_(named["backbone.layers.0.downsample.norm.bias"])
        reduction.weight.copy_(named["backbone.layers.0.downsample.reduction.weight"])
    torch.testing.assert_close(reduction(norm(merged)), expected)


def test_every_name_of_mmdetection_3_is_known(golden) -> None:
    shapes = json.loads((golden / "manifest_co_deformable_detr_swin_tiny_1x_coco.json").read_text())["keys"]
    theirs = {}
    for name, shape in shapes.items():
        for ours, other in (
            ("backbone.layers.", "backbone.stages."), (".patch_embed.proj.", ".patch_embed.projection."),
            (".attn.", ".attn.w_msa."), (".mlp.fc1.", ".ffn.layers.0.0."), (".mlp.fc2.", ".ffn.layers.1."),
        ):  # fmt: skip
            if name.startswith("backbone."):
                name = name.replace(ours, other)
        theirs[name] = torch.empty(shape, device="meta")
    assert len(set(theirs) - set(shapes)) > 150
    assert {name: list(value.shape) for name, value in released_names(theirs).items()} == shapes
