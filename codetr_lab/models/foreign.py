"""Other people's checkpoint files, read without running their code, down to a `state_dict` under the released names."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class CheckpointError(ValueError):
    """Weights that cannot be read or do not fit; the message names the file or the first differing keys."""


_INERT = (
    "addict", "argparse", "collections", "datetime", "detectron2", "easydict", "fvcore", "lightning",
    "lightning_fabric", "lightning_utilities", "mmcv", "mmdet", "mmengine", "numpy", "omegaconf", "pathlib",
    "pytorch_lightning", "yacs",
)  # fmt: skip
"""Packages whose objects training frameworks leave beside the weights: read as stand-ins that do nothing."""
_INERT_BUILTINS = {
    f"builtins.{kind}"
    for kind in [
        "bool",
        "dict",
        "float",
        "frozenset",
        "getattr",
        "int",
        "list",
        "object",
        "range",
        "slice",
        "str",
        "tuple",
    ]
}

_STATES = ("state_dict", "model", "model_state_dict")
"""Where frameworks keep the weights among other things."""


class _StandIn:
    """Takes the place of a metadata object; its arguments and its state are forgotten."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _DictStandIn:
    """Takes the place of a dictionary's subclass; PyTorch's reader fills plain dictionaries only."""

    def __new__(cls, *args: Any, **kwargs: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` or `.safetensors` file by key, on the CPU; metadata beside them is left out.

    No code of the file runs: PyTorch reads it with `weights_only=True`, and objects of training frameworks become
    stand-ins, allowed by name. A checkpoint that names anything else (`os.system`) is refused.

    Raises:
        CheckpointError: no such file, damaged, not a checkpoint, or it asks for code; says what it is.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if what := _not_a_checkpoint(path):
        raise CheckpointError(f"{path} is not a checkpoint: {what}")
    try:
        content = _unpickle(path)
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
        raise CheckpointError(f"{path} is not a checkpoint that can be read safely: {reason}") from error
    for key in _STATES:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no state_dict")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) < len(content):
        odd = next(
            f"{key} is {type(value).__name__}" for key, value in content.items() if not isinstance(value, Tensor)
        )
        raise CheckpointError(f"{path} holds no state_dict: {odd}, not a tensor")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error}); fetch it again") from error


def _not_a_checkpoint(path: Path) -> str:
    """What a file is that surely holds no weights, in words; empty if it may."""
    with path.open("rb") as file:
        start = file.read(256)
    if not start:
        return "it is empty (0 bytes); fetch it again"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page; the download asked for a confirmation, so fetch it with a browser"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself (git lfs pull)"
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        return "it is cut short; fetch it again"
    return ""


def _unpickle(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)  # what torch.save has written since 1.6
    stand_ins: list[Any] = []
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else ():
        if name.partition(".")[0] not in _INERT and name not in _INERT_BUILTINS:
            raise CheckpointError(
                f"{path} asks for {name}, which no weights need; it was not run: do not use this file unless you know "
                "why it is there"
            )
        stand_ins.append((_DictStandIn if name.lower().endswith("dict") else _StandIn, name))
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def released_names(state: Mapping[str, Tensor], expected: Collection[str] = ()) -> dict[str, Tensor]:
    """A foreign `state_dict` under the released code's own names.

    `module.` (data-parallel training) is taken off. Of an averaged model's twins `ema_a_b` and `a.b` the plain one
    stays: the release's hook swaps them before it saves, so it holds the average. Where there is no twin, `ema_` is
    taken off, and `_` read as `.` if that gives one of the `expected` names. The names of MMDetection 3, to which some
    files were converted, become the release's.
    """
    state = dict(state)
    for prefix in ("module.", "model."):
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    flat = {key.replace(".", "_"): key for key in (*expected, *(key for key in state if not key.startswith("ema_")))}
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        plain = key.removeprefix("ema_")
        if plain is not key and plain not in state:
            plain = flat.get(plain, plain)
        if plain is key or plain not in state:
            named[plain] = value
    swin = any(key.startswith("backbone.stages.") for key in named)
    return {_released_name(key): _merging(key, value) if swin else value for key, value in named.items()}


_MMDETECTION_3 = (
    (r"backbone\.patch_embed\.projection\.", "backbone.patch_embed.proj."),
    (r"backbone\.stages\.(.*)\.attn\.w_msa\.", r"backbone.layers.\1.attn."),
    (r"backbone\.stages\.(.*)\.ffn\.layers\.0\.0\.", r"backbone.layers.\1.mlp.fc1."),
    (r"backbone\.stages\.(.*)\.ffn\.layers\.1\.", r"backbone.layers.\1.mlp.fc2."),
    (r"backbone\.stages\.", "backbone.layers."),
    (r"query_head\.dn_generator\.", "query_head."),
)
"""MMDetection 3's names, which the files at download.openmmlab.com have, and the release's: a Swin, denoising."""


def _released_name(key: str) -> str:
    for pattern, name in _MMDETECTION_3:
        if match := re.match(pattern, key):
            return match.expand(name) + key[match.end() :]
    return key


def _merging(key: str, value: Tensor) -> Tensor:
    """Patch merging reads its 2 x 2 neighbours channel by channel in MMDetection, neighbour by neighbour here.

    The neighbours' order differs too: row by row there, column by column here.
    """
    if not key.startswith("backbone.stages.") or ".downsample." not in key:
        return value
    channels = value.shape[-1] // 4
    return value.unflatten(-1, (channels, 4))[..., [0, 2, 1, 3]].transpose(-1, -2).flatten(-2).contiguous()
