"""Released checkpoints of every configuration have exactly the keys and shapes that we map."""

from __future__ import annotations

import json

import pytest
import torch
from golden_case import FOLDER

from codetr_lab.models.meta import meta_model
from codetr_lab.models.presets import preset as make_preset
from codetr_lab.models.released import load_released, to_released

MANIFESTS = {
    "co_deformable_detr_r50_1x_coco": ("co_deformable_detr_r50", {}),
    "co_deformable_detr_swin_tiny_1x_coco": ("co_deformable_detr_swin_tiny", {}),
    "co_deformable_detr_swin_small_1x_coco": ("co_deformable_detr_swin_small", {}),
    "co_deformable_detr_swin_base_1x_coco": ("co_deformable_detr_swin_base", {}),
    "co_deformable_detr_swin_large_1x_coco": ("co_deformable_detr_swin_large", {}),
    "co_deformable_detr_swin_large_900q_3x_coco": ("co_deformable_detr_swin_large_900q", {}),
    "co_dino_5scale_r50_1x_coco": ("co_dino_5scale_r50", {}),
    "co_dino_5scale_lsj_r50_1x_coco": ("co_dino_5scale_r50", {}),
    "co_dino_5scale_9encoder_lsj_r50_1x_coco": ("co_dino_5scale_9encoder_r50", {}),
    "co_dino_5scale_swin_large_1x_coco": ("co_dino_5scale_swin_large", {}),
    "co_dino_5scale_swin_large_16e_o365tococo": ("co_dino_5scale_swin_large", {}),
    "co_dino_5scale_vit_large_coco": ("co_dino_5scale_vit_large", {}),
    "co_dino_5scale_lsj_vit_large_lvis": (
        "co_dino_5scale_vit_large",
        {
            "num_classes": 1203,
            "num_queries": 900,
            "faster_rcnn.roi_convs": 0,
            "faster_rcnn.roi_fcs": 2,
            "faster_rcnn.class_agnostic": False,
            "backbone.options": {"window": 16, "global_blocks": (2, 5, 8, 11, 14, 17, 20, 23), "square": 1536},
        },
    ),
}


def test_every_manifest_is_here() -> None:
    assert {path.stem.removeprefix("manifest_") for path in FOLDER.glob("manifest_*.json")} == set(MANIFESTS)


@pytest.mark.filterwarnings("ignore:for .* which is a no-op")  # loading into a model without memory
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_covered_exactly(name: str) -> None:
    preset, overrides = MANIFESTS[name]
    keys = json.loads((FOLDER / f"manifest_{name}.json").read_text())["keys"]
    model = meta_model(make_preset(preset, **overrides))
    assert {key: list(value.shape) for key, value in to_released(model).items()} == keys
    load_released(model, {key: torch.empty(shape, device="meta") for key, shape in keys.items()})
