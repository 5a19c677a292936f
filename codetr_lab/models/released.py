"""Released checkpoints: their key layout, both ways (facts from the released `state_dict` manifests)."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.foreign import CheckpointError, read_checkpoint, released_names
from codetr_lab.models.meta import class_dependent
from codetr_lab.models.swin import Swin
from codetr_lab.models.vit import ViT

logger = logging.getLogger(__name__)

STRUCTURAL = re.compile(r"(^|\.)(num_batches_tracked|relative_position_index|freqs_(cos|sin)|fed_loss_weight)$")
"""Buffers that follow from the shape (or, LVIS's class weights, from the data): ignored, present or absent."""


_ATTENTION = r"(sampling_offsets|attention_weights|value_proj|output_proj)\.(weight|bias)"

_LAYERS = r"query_head.transformer.{}.layers.\1"

# (pattern of our key, released key). The release counts RoI heads and dense heads apart, and its per-head modules with
# RoI heads first: those indices are filled in by `_head_index`.
_RULES: tuple[tuple[str, str], ...] = (
    (r"backbone\.net\.(.*)", r"backbone.\1"),
    (r"neck\.(.*)", r"neck.\1"),
    (r"pyramid\.downsample\.(.*)", r"query_head.downsample.\1"),
    (r"encoder\.level_embeds", r"query_head.transformer.level_embeds"),
    (rf"encoder\.layers\.(\d+)\.self_attn\.{_ATTENTION}", rf"{_LAYERS.format('encoder')}.attentions.0.\2.\3"),
    (r"decoder\.layers\.(\d+)\.self_attn\.(.*)", rf"{_LAYERS.format('decoder')}.attentions.0.attn.\2"),
    (rf"decoder\.layers\.(\d+)\.cross_attn\.{_ATTENTION}", rf"{_LAYERS.format('decoder')}.attentions.1.\2.\3"),
    (r"(encoder|decoder)\.layers\.(\d+)\.linear1\.(.*)", r"query_head.transformer.\1.layers.\2.ffns.0.layers.0.0.\3"),
    (r"(encoder|decoder)\.layers\.(\d+)\.linear2\.(.*)", r"query_head.transformer.\1.layers.\2.ffns.0.layers.1.\3"),
    (r"selection\.(enc_output|enc_output_norm|pos_trans|pos_trans_norm)\.(.*)", r"query_head.transformer.\1.\2"),
    (r"selection\.query_embedding\.weight", r"query_head.query_embedding.weight"),
    (r"selection\.query_embed\.weight", r"query_head.transformer.query_embed.weight"),
    (r"denoising\.label_embedding\.weight", r"query_head.label_embedding.weight"),
    (r"decoder\.(norm|ref_point_head\.\d)\.(.*)", r"query_head.transformer.decoder.\1.\2"),
    (r"decoder\.class_branches\.(\d+)\.(.*)", r"query_head.cls_branches.\1.\2"),
    (r"decoder\.box_branches\.(\d+)\.(.*)", r"query_head.reg_branches.\1.\2"),
)  # fmt: skip


def released_key(key: str, model: CoDETR) -> str:
    """The released name of one of our `state_dict` keys; `head_pos_embed` of all heads share one released tensor.

    Raises:
        KeyError: the release has no such parameter.
    """
    layers = model.config.transformer.decoder_layers
    if match := re.fullmatch(r"backbone\.net\.layers\.(\d+)\.downsample\.(.*)", key):  # Swin: to the stage before it
        return f"backbone.layers.{int(match[1]) - 1}.downsample.{match[2]}"
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


def load_released(model: CoDETR, source: str | Path | Mapping[str, Tensor], *, reset_classes: bool = False) -> CoDETR:
    """Load a released checkpoint (a `.pth` file or its `state_dict`) into `model`, in place; returns it.

    Args:
        reset_classes: the layers that depend on the number of classes keep `model`'s own (random) weights, for training
            on other classes; a warning of this module's logger lists them.

    Raises:
        CheckpointError: not a checkpoint, or keys are missing, left over or of another shape; names the first of them,
            and the preset that fits. The model is then unchanged.
    """
    try:
        names = {key: released_key(key, model) for key in model.state_dict()}
    except KeyError as error:
        raise CheckpointError(f"the release has no {error.args[0]}, so none of its files fits this model") from None
    state = read_checkpoint(source) if isinstance(source, str | Path) else source
    state = released_names(state, names.values())
    fresh = class_dependent(model.config) if reset_classes else set()
    found, misfits = fitting(model, state, names, fresh)
    if misfits:
        from codetr_lab.models.nearest import nearest_preset

        raise CheckpointError(f"checkpoint does not fit {model.config.preset}: {misfits}; {nearest_preset(state)}")
    model.load_state_dict(found, strict=False)
    if fresh:
        logger.warning("started afresh, since their shape depends on the classes: %s", ", ".join(sorted(fresh)))
    return model


def fitting(
    model: CoDETR, state: Mapping[str, Tensor], names: Mapping[str, str], fresh: Collection[str] = ()
) -> tuple[dict[str, Tensor], str]:
    """The tensors of a released `state` under our keys, and what keeps it from fitting, in words (empty if nothing).

    Args:
        names: released key by our key. `fresh`: our keys that the state need not hold.
    """
    ours: dict[str, Tensor] = {}
    missing, misshapen = [], []
    for key, value in model.state_dict().items():
        name = names[key]
        if key in fresh or STRUCTURAL.search(name):
            continue
        if name not in state:
            missing.append(name)
            continue
        found = state[name]
        if name.endswith("head_pos_embed.weight"):
            found = found[_head_index(key.split(".")[1], model)]
        if found.shape != value.shape:
            misshapen.append(f"{name} {tuple(found.shape)} instead of {tuple(value.shape)}")
        ours[key] = found
    known = set(names.values())
    left = [name for name in state if name not in known and not STRUCTURAL.search(name)]
    problems = [
        f"{len(keys)} keys {problem}, first {', '.join(keys[:3])}"
        for problem, keys in (("of another shape", misshapen), ("missing", missing), ("left over", left))
        if keys
    ]
    return ours, "; ".join(problems)


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
    if isinstance(net := model.backbone.net, Swin | ViT):
        state |= {f"backbone.{name}": value for name, value in net.released_buffers().items()}
    if scalars:
        stacked = torch.stack([scalars[index] for index in sorted(scalars)])
        state["query_head.transformer.head_pos_embed.weight"] = stacked
    return state
