"""Deformable-DETR in its three variants against transformers' implementation: same weights, same logits and boxes."""

from __future__ import annotations

import re

import pytest
import torch
from conftest_models import SMALL, images
from torch import Tensor
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.presets import create_model

VARIANTS = {
    "plain": {"decoder.queries": "learned", "decoder.refine": False},
    "box refinement": {"decoder.queries": "learned"},
    "two-stage": {"decoder.queries": "two_stage"},
}
NAMES = (  # (transformers' key, ours)
    (r"model\.input_proj\.([0-2])\.0\.weight", r"neck.convs.\1.conv.weight"),
    (r"model\.input_proj\.([0-2])\.1\.(\w+)", r"neck.convs.\1.gn.\2"),
    (r"model\.input_proj\.3\.0\.weight", r"neck.extra_convs.0.conv.weight"),
    (r"model\.input_proj\.3\.1\.(\w+)", r"neck.extra_convs.0.gn.\1"),
    (r"model\.level_embed", r"encoder.level_embeds"),
    (r"model\.encoder\.(layers\.\d)\.self_attn\.(.*)", r"encoder.\1.self_attn.\2"),
    (r"model\.decoder\.(layers\.\d)\.encoder_attn\.(.*)", r"decoder.\1.cross_attn.\2"),
    (r"model\.decoder\.(layers\.\d)\.self_attn\.o_proj\.(.*)", r"decoder.\1.self_attn.out_proj.\2"),
    (r"model\.(\w+)\.(layers\.\d)\.mlp\.fc(\d)\.(.*)", r"\1.\2.linear\3.\4"),
    (r"model\.(\w+)\.(layers\.\d)\.self_attn_layer_norm\.(.*)", r"\1.\2.norm1.\3"),
    (r"model\.encoder\.(layers\.\d)\.final_layer_norm\.(.*)", r"encoder.\1.norm2.\2"),
    (r"model\.decoder\.(layers\.\d)\.encoder_attn_layer_norm\.(.*)", r"decoder.\1.norm2.\2"),
    (r"model\.decoder\.(layers\.\d)\.final_layer_norm\.(.*)", r"decoder.\1.norm3.\2"),
    (r"model\.query_position_embeddings\.weight", r"selection.query_embedding.weight"),
    (r"model\.(reference_points|enc_output|enc_output_norm|pos_trans|pos_trans_norm)\.(.*)", r"selection.\1.\2"),
    (r"class_embed\.2\.(.*)", r"selection.class_branch.\1"),
    (r"class_embed\.(\d)\.(.*)", r"decoder.class_branches.\1.\2"),
)  # fmt: skip


class Features(torch.nn.Module):
    """In the place of transformers' backbone: maps that are given, with their masks (True = image)."""

    def __init__(self, maps: list[Tensor], channels: list[int]) -> None:
        super().__init__()
        self.maps, self.intermediate_channel_sizes = maps, channels

    def forward(self, pixels: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        resize = torch.nn.functional.interpolate
        return [(x, resize(mask[None].float(), size=x.shape[-2:])[0].bool()) for x in self.maps]


def theirs(variant: str) -> DeformableDetrForObjectDetection:
    """transformers' model with every weight drawn at random, norms and biases too."""
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = DeformableDetrConfig(
        backbone_config=backbone, d_model=64, num_queries=20, two_stage_num_proposals=20, num_labels=6, dropout=0.0,
        encoder_layers=1, encoder_ffn_dim=48, encoder_attention_heads=2,
        decoder_layers=2, decoder_ffn_dim=48, decoder_attention_heads=2,
        with_box_refine=variant != "plain", two_stage=variant == "two-stage", tie_word_embeddings=False,
    )  # fmt: skip
    model = DeformableDetrForObjectDetection(config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        around = 1.0 if name.endswith("norm.weight") or re.search(r"input_proj\.\d\.1\.weight", name) else 0.0
        torch.nn.init.normal_(parameter, around, 0.2, generator=generator)
        if re.search(r"input_proj\.\d\.0\.bias", name):
            torch.nn.init.zeros_(parameter)  # ours has none before a norm
    if variant == "plain":  # one branch for all layers
        for layers in (model.class_embed, model.bbox_embed):
            layers[1].load_state_dict(layers[0].state_dict())
    else:
        model.model.decoder.bbox_embed = model.bbox_embed
    if variant == "two-stage":
        model.model.decoder.class_embed = model.class_embed
    return model


def copy_weights(source: DeformableDetrForObjectDetection, model: CoDETR) -> None:
    """Every weight but the backbone's; a key without a counterpart on either side is an error."""
    state: dict[str, Tensor] = {}
    unused = []
    for key, value in source.state_dict().items():
        new = next((re.sub(old, name, key) for old, name in NAMES if re.fullmatch(old, key)), None)
        if box := re.fullmatch(r"bbox_embed\.(\d)\.layers\.(\d)\.(.*)", key):
            where = "selection.box_branch" if box[1] == "2" else f"decoder.box_branches.{box[1]}"
            new = f"{where}.{2 * int(box[2])}.{box[3]}"
        if projection := re.fullmatch(r"model\.decoder\.(layers\.\d)\.self_attn\.q_proj\.(\w+)", key):
            new = f"decoder.{projection[1]}.self_attn.in_proj_{projection[2]}"
            value = torch.cat([source.state_dict()[key.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        if new is None:
            unused.append(key)
        else:
            state[new] = value
    known = r"model\.backbone\.|.*self_attn\.[kv]_proj|model\.decoder\.\w+_embed|model\.input_proj\.\d\.0\.bias"
    assert not [key for key in unused if not re.match(known, key)]
    state |= {key: value for key, value in model.state_dict().items() if key.startswith("backbone.")}
    model.load_state_dict(state)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_logits_and_boxes_are_those_of_transformers(variant: str) -> None:
    reference = theirs(variant)
    changes = {"transformer.hidden_dim": 64, "transformer.extra_levels": 1, "transformer.norm_groups": 32}
    changes |= {"transformer.proposal_side": 0.05}
    torch.manual_seed(0)
    model = create_model("lab_baseline", **(SMALL | changes | VARIANTS[variant])).eval()
    copy_weights(reference, model)
    batch = images((160, 128), (96, 224))
    reference.model.backbone = Features(model.backbone(batch.pixels), model.backbone.channels)
    expected = reference(batch.pixels, (~batch.pad_mask).long())
    trace = model.trace(batch)
    group = trace.groups["original"]
    memory = torch.cat([x.flatten(2) for x in trace.memory], 2).mT
    assert (memory - expected.encoder_last_hidden_state).abs().max() < 1e-4
    assert (group.logits[-1] - expected.logits).abs().max() < 1e-4
    assert (group.boxes_cxcywh[-1] - expected.pred_boxes).abs().max() < 1e-4
    assert group.boxes_cxcywh[-1].std() > 0.05  # the boxes differ, so that the comparison says something
    if variant == "two-stage":
        assert (trace.proposals.logits - expected.enc_outputs_class).abs().max() < 1e-4
    else:
        assert trace.proposals is None
        points = expected.init_reference_points
        assert (group.reference_boxes[0, ..., :2] - points).abs().max() < 1e-5
        assert (group.reference_boxes[0, ..., 2:] == 0).all()
