"""Ready-made configurations: the released one at full size, and lab-scale ones that train from scratch on two cores.

The detectors that the paper compares with are overrides of a preset: `create_model("lab_co_k1", **BASELINES["group"])`.
"""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from codetr_lab.models.config import (
    BackboneConfig,
    CoDETRConfig,
    DecoderConfig,
    DenoisingConfig,
    ImageConfig,
    QueryConfig,
    RecipeConfig,
    TransformerConfig,
    override,
    unknown,
)
from codetr_lab.models.head_configs import (
    ATSSConfig,
    FasterRCNNConfig,
    FCOSConfig,
    GFLConfig,
    MaskRCNNConfig,
    PAAConfig,
    RetinaNetConfig,
)
from codetr_lab.models.tags import TAGS

if TYPE_CHECKING:
    from codetr_lab.models.codetr import CoDETR


def _lab(preset: str, aux_heads: tuple[str, ...]) -> CoDETRConfig:
    """128-pixel images, strides 8 to 32, 64 channels; anchors and RoIs scaled to objects of 18 to 64 pixels."""
    rcnn: dict[str, Any] = {
        "anchor_scale": 2.0, "anchor_scales_per_octave": 2, "rpn_samples": 128, "proposals_per_level": 300,
        "proposals": 150, "test_proposals_per_level": 300, "roi_samples": 64, "roi_levels": 3, "roi_finest_scale": 28,
        "roi_hidden": 128,
    }  # fmt: skip
    return CoDETRConfig(
        preset=preset, num_classes=6, classes=("circle", "square", "triangle", "star", "cross", "ring"),
        num_queries=50, aux_heads=aux_heads,
        image=ImageConfig(short=128, long=128),
        backbone=BackboneConfig(
            "resnet10t", options={"channels": (16, 32, 64, 128), "stem_width": 8}, frozen_stages=-1, frozen_norm=False
        ),
        transformer=TransformerConfig(
            hidden_dim=64, heads=4, points=4, ffn_dim=256, encoder_layers=2, decoder_layers=3, extra_levels=0,
            norm_groups=8, proposal_side=0.1875,
        ),
        queries=QueryConfig(maximum=80),
        atss=ATSSConfig(anchor_scale=3.0),
        faster_rcnn=FasterRCNNConfig(**rcnn),
        mask_rcnn=MaskRCNNConfig(**rcnn, mask_convs=1),
        retinanet=RetinaNetConfig(anchor_scale=2.0, anchor_scales_per_octave=2),
        fcos=FCOSConfig(reach=3.0, query_scale=3.0),
        paa=PAAConfig(anchor_scale=3.0),
        gfl=GFLConfig(anchor_scale=3.0, bins=8),
        recipe=RecipeConfig(
            steps=3000, batch_size=4, lr=2e-3, lr_multipliers=(), warmup_steps=100, schedule="cosine",
            short_sides=(128,), clip_norm=0.1,
        ),
    )  # fmt: skip


def _dino(preset: str, backbone: BackboneConfig | None = None, **transformer: Any) -> CoDETRConfig:
    """The release's `co_dino_5scale_r50_1x_coco`: strides 4 to 64, 900 queries, denoising."""
    return CoDETRConfig(
        preset=preset, num_queries=900, max_detections=300, soft_nms_iou=0.8,
        backbone=backbone or BackboneConfig(out_indices=(1, 2, 3, 4)),
        transformer=TransformerConfig(positional_temperature=20, positional_offset=0.0, **transformer),
        decoder=DecoderConfig(
            scheme="dino", rank_by="best_class", final_norm=True, inverse_sigmoid_eps=1e-3,
            classification_loss="quality_focal", weight_classification=1.0, encoder_loss="classes",
        ),
        denoising=DenoisingConfig(queries=100),
        queries=QueryConfig(features=False),
        faster_rcnn=FasterRCNNConfig(roi_levels=5, roi_finest_scale=56),
        recipe=RecipeConfig(lr_multipliers=(("backbone", 0.1),)),
    )  # fmt: skip


_SWIN = {
    "tiny": "swin_tiny_patch4_window7_224.ms_in1k",
    "small": "swin_small_patch4_window7_224.ms_in1k",
    "base": "swin_base_patch4_window12_384.ms_in22k",
    "large": "swin_large_patch4_window12_384.ms_in22k",
}
"""timm's names; the part after the dot is the pre-training that the release starts from."""


def _swin(size: str, drop_path: float, levels: int) -> BackboneConfig:
    """The last `levels` of a Swin Transformer's four stages."""
    stages = tuple(range(4 - levels, 4))
    return BackboneConfig(_SWIN[size], stages, frozen_stages=-1, frozen_norm=False, drop_path=drop_path)


def _co_deformable_swin(name: str, size: str, drop_path: float, **fields: Any) -> CoDETRConfig:
    return CoDETRConfig(
        preset=f"co_deformable_detr_swin_{name}", backbone=_swin(size, drop_path, levels=3),
        recipe=RecipeConfig(weight_decay=0.05), **fields,
    )  # fmt: skip


def _dino_vit(preset: str) -> CoDETRConfig:
    """The release's `co_dino_5scale_vit_large_coco`: EVA-02's ViT-L, heads with soft-NMS, another RoI head."""
    config = _dino(
        preset,
        BackboneConfig("eva02_vit", frozen_stages=-1, frozen_norm=False, drop_path=0.4, checkpoint=True),
        neck="feature_pyramid",
        checkpointed_layers=6,
    )
    return override(
        config,
        num_queries=1500,
        max_detections=1000,
        image=ImageConfig(short=1280, long=2048, divisor=32),
        denoising=DenoisingConfig(queries=300, box_noise=0.4),
        atss=replace(config.atss, soft_nms=True),
        faster_rcnn=replace(
            config.faster_rcnn, roi_convs=4, roi_fcs=1, roi_stds=(0.05, 0.05, 0.1, 0.1), class_agnostic=True,
            test_proposals_per_level=8000, test_proposals=2000, test_proposal_nms_iou=0.9, soft_nms=True,
            max_detections=1000,
        ),
        recipe=RecipeConfig(
            lr=5e-5, weight_decay=0.01, lr_multipliers=(), layer_decay=0.8, decay_vectors=False, ema=1e-4,
            warmup_steps=500, drop_at=(7 / 12,), short_sides=tuple(range(480, 1537, 32)), long_side=2400,
        ),
    )  # fmt: skip


_PRESETS = {
    config.preset: config
    for config in (
        CoDETRConfig(),
        _co_deformable_swin("tiny", "tiny", 0.2),
        _co_deformable_swin("small", "small", 0.2),
        _co_deformable_swin("base", "base", 0.2),
        _co_deformable_swin("large", "large", 0.3),
        _co_deformable_swin("large_900q", "large", 0.6, num_queries=900, max_detections=300),
        _dino("co_dino_5scale_r50", checkpointed_layers=4),
        _dino("co_dino_5scale_9encoder_r50", encoder_layers=9, checkpointed_layers=9),
        _dino("co_dino_5scale_swin_large", _swin("large", 0.3, levels=4), checkpointed_layers=6),
        _dino_vit("co_dino_5scale_vit_large"),
        _lab("lab_baseline", ()),
        _lab("lab_co_k1", ("atss",)),
        _lab("lab_co_k2", ("atss", "faster_rcnn")),
    )
}


BASELINES: dict[str, dict[str, Any]] = {
    "deformable": {"decoder.queries": "learned", "decoder.refine": False},
    "deformable_refined": {"decoder.queries": "learned"},
    "two_stage": {"decoder.queries": "two_stage"},
    "group": {"decoder.groups": 3},
    "hybrid": {"decoder.one_to_many": 150, "decoder.repeats": 6},
    "dense": {"transformer.decoder_layers": 0},
}
"""What makes a baseline of a lab preset, for any K; a preset itself is Deformable-DETR++ or Co-DETR.

`deformable`, `deformable_refined`, `two_stage`: Deformable-DETR (Zhu et al., 2021) plain, with iterative box
refinement, and with two stages. `group`: Group-DETR (Chen et al., 2023) with 3 groups, as in the supplement's
comparison. `hybrid`: H-Deformable-DETR (Jia et al., 2023), whose one-to-many queries are three times the others (five
times in its paper). `dense`: no decoder, the first head's own detections (Fig. 2 and 3 "ATSS", Table 11's K = 0 rows);
it needs a head.
"""


def list_models(pattern: str = "*", *, tags: bool = False) -> list[str]:
    """Names of presets that match a shell pattern, sorted; with `tags` those of the release's recipes.

    A preset's name is an architecture (`co_dino_5scale_r50`); with a tag
    (`co_dino_5scale_r50.lsj_3x_coco`) it is one of the release's recipes for it, and the name of its weights.
    """
    names = list(_PRESETS)
    if tags:
        names = [f"{name}.{tag}" for name in _PRESETS for tag in TAGS.get(name, ())]
    return sorted(fnmatch.filter(names, pattern))


def preset(name: str, **overrides: Any) -> CoDETRConfig:
    """The configuration of a preset, with fields replaced by (dotted) name.

    Raises:
        ConfigError: no such preset or field; suggests the nearest.
    """
    architecture, _, tag = name.partition(".")
    if architecture not in _PRESETS or (tag and tag not in TAGS.get(architecture, ())):
        raise unknown("model preset", name, list_models(f"{architecture}.*", tags=True) or list_models())
    config = _PRESETS[architecture]
    if tag:
        config = override(config, preset=name, **TAGS[architecture][tag])
    if "num_classes" in overrides and "classes" not in overrides:
        overrides["classes"] = ()
    if "classes" in overrides and "num_classes" not in overrides and overrides["classes"]:
        overrides["num_classes"] = len(overrides["classes"])
    return override(config, **overrides)


def create_model(name: str, **overrides: Any) -> CoDETR:
    """A model with random weights: `create_model("lab_co_k1", num_classes=3, **{"transformer.encoder_layers": 1})`."""
    from codetr_lab.models.codetr import CoDETR  # torch and timm; the command line lives without them

    return CoDETR(preset(name, **overrides))


def reconfigured(model: CoDETR, **overrides: Any) -> CoDETR:
    """A copy of a model under other settings, by (dotted) name: `reconfigured(model, **{"queries.padding": "empty"})`.

    The weights are the model's own; parameters that only the copy has keep their random initial values.

    Raises:
        ConfigError: no such field; suggests the nearest.
        RuntimeError: a setting that changes the shape of a parameter.
    """
    from codetr_lab.models.codetr import CoDETR

    copy = CoDETR(override(model.config, **overrides))
    copy.load_state_dict(model.state_dict(), strict=False)
    return copy.train(model.training)
