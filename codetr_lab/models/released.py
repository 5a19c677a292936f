"""Released checkpoints: their key layout, both ways (facts from the released `state_dict` manifests)."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from codetr_lab.models.codetr import CoDETR


class CheckpointError(ValueError):
    """Weights that do not fit; the message names the first differing keys."""


_ATTENTION = r"(sampling_offsets|attention_weights|value_proj|output_proj)\.(weight|bias)"

_LAYERS = r"query_head.transformer.{}.layers.\1"

# (pattern of our key, released key). The release counts RoI heads and dense heads apart, and its per-head modules with
# RoI heads first: those indices are filled in by `_head_index`.
_RULES: tuple[tuple[str, str], ...] = (
    (r"backbone\.net\.(.*)", r"backbone.\1"),
    (r"neck\.(convs|extra_convs)\.(\d+)\.(conv|gn)\.(.*)", r"neck.\1.\2.\3.\4"),
    (r"pyramid\.downsample\.(.*)", r"query_head.downsample.\1"),
    (r"encoder\.level_embeds", r"query_head.transformer.level_embeds"),
    (rf"encoder\.layers\.(\d+)\.self_attn\.{_ATTENTION}", rf"{_LAYERS.format('encoder')}.attentions.0.\2.\3"),
    (r"decoder\.layers\.(\d+)\.self_attn\.(.*)", rf"{_LAYERS.format('decoder')}.attentions.0.attn.\2"),
    (rf"decoder\.layers\.(\d+)\.cross_attn\.{_ATTENTION}", rf"{_LAYERS.format('decoder')}.attentions.1.\2.\3"),
    (r"(encoder|decoder)\.layers\.(\d+)\.linear1\.(.*)", r"query_head.transformer.\1.layers.\2.ffns.0.layers.0.0.\3"),
    (r"(encoder|decoder)\.layers\.(\d+)\.linear2\.(.*)", r"query_head.transformer.\1.layers.\2.ffns.0.layers.1.\3"),
    (r"selection\.(enc_output|enc_output_norm|pos_trans|pos_trans_norm)\.(.*)", r"query_head.transformer.\1.\2"),
    (r"selection\.query_embedding\.weight", r"query_head.query_embedding.weight"),
    (r"decoder\.class_branches\.(\d+)\.(.*)", r"query_head.cls_branches.\1.\2"),
    (r"decoder\.box_branches\.(\d+)\.(.*)", r"query_head.reg_branches.\1.\2"),
)  # fmt: skip


def released_key(key: str, model: CoDETR) -> str:
    """The released name of one of our `state_dict` keys; `head_pos_embed` of all heads share one released tensor.

    Raises:
        KeyError: the release has no such parameter.
    """
    layers = model.config.transformer.decoder_layers
    for pattern, name in _RULES:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(name)
    if match := re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.norm(\d)\.(.*)", key):
        part, layer, norm, rest = match.groups()
        return f"query_head.transformer.{part}.layers.{layer}.norms.{int(norm) - 1}.{rest}"
    if match := re.fullmatch(r"selection\.(class|box)_branch\.(.*)", key):
        branch = "cls_branches" if match[1] == "class" else "reg_branches"
        return f"query_head.{branch}.{layers}.{match[2]}"
    if match := re.fullmatch(r"customizers\.(\w+)\.head_pos_embed", key):
        return "query_head.transformer.head_pos_embed.weight"
    if match := re.fullmatch(r"customizers\.(\w+)\.(\w+)\.(.*)", key):
        return f"query_head.transformer.{match[2]}.{_head_index(match[1], model)}.{match[3]}"
    if match := re.fullmatch(r"heads\.(\w+?)\.(.*)", key):
        return _released_head_key(match[1], match[2], model)
    raise KeyError(key)


def _head_index(name: str, model: CoDETR) -> int:
    """The release numbers RoI heads first, then dense heads."""
    order = sorted(model.heads, key=lambda head: not head.startswith("faster_rcnn"))
    return order.index(name)


def _released_head_key(name: str, rest: str, model: CoDETR) -> str:
    same_kind = [head for head in model.heads if head.startswith("faster_rcnn") == name.startswith("faster_rcnn")]
    number = same_kind.index(name)
    if not name.startswith("faster_rcnn"):
        return f"bbox_head.{number}.{rest}"
    if rest.startswith("rpn_"):
        return f"rpn_head.{rest}"
    return f"roi_head.{number}.bbox_head.{rest}"


def load_released(model: CoDETR, source: str | Path | Mapping[str, Tensor]) -> CoDETR:
    """Load a released checkpoint (a `.pth` file or its `state_dict`) into `model`, in place; returns it.

    Raises:
        CheckpointError: not a checkpoint, or keys are missing, left over or of another shape; names the first of them.
    """
    state = _read(source) if isinstance(source, str | Path) else dict(source)
    ours: dict[str, Tensor] = {}
    used: set[str] = set()
    missing, misshapen = [], []
    for key, value in model.state_dict().items():
        name = released_key(key, model)
        if name not in state:
            if not key.endswith("num_batches_tracked"):
                missing.append(name)
            continue
        found = state[name]
        if name.endswith("head_pos_embed.weight"):
            found = found[_head_index(key.split(".")[1], model)]
        if found.shape != value.shape:
            misshapen.append(f"{name} {tuple(found.shape)} instead of {tuple(value.shape)}")
        used.add(name)
        ours[key] = found
    left = [name for name in state if name not in used and not name.endswith("num_batches_tracked")]
    for problem, names in (("another shape", misshapen), ("missing", missing), ("left over", left)):
        if names:
            raise CheckpointError(
                f"checkpoint does not fit {model.config.preset}: {len(names)} keys {problem}, "
                f"first {', '.join(names[:3])}"
            )
    model.load_state_dict(ours, strict=False)
    return model


def to_released(model: CoDETR) -> dict[str, Tensor]:
    """The model's weights under the released names, for use with the released code."""
    state: dict[str, Tensor] = {}
    scalars: dict[int, Tensor] = {}
    for key, value in model.state_dict().items():
        name = released_key(key, model)
        if name.endswith("head_pos_embed.weight"):
            scalars[_head_index(key.split(".")[1], model)] = value
        else:
            state[name] = value
    if scalars:
        stacked = torch.stack([scalars[index] for index in sorted(scalars)])
        state["query_head.transformer.head_pos_embed.weight"] = stacked
    return state


def _read(path: str | Path) -> dict[str, Tensor]:
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or ["it is empty"])[0]
        raise CheckpointError(f"{path} is not a checkpoint that can be read safely: {reason}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no state_dict")
    return state
