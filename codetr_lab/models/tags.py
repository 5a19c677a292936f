"""The recipes of the release, `architecture.tag` by schedule, augmentation and data: what each changes, as data.

The names of fields are `CoDETRConfig`'s. Source: the release's configuration files (Sense-X/Co-DETR at 2665352); each
entry bears the name of its file where that differs. Differences from there: steps count whole batches of 16 over all
images; LVIS's repeated sampling of rare classes (`oversample_thr` 0.001) is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]

COCO_IMAGES, LVIS_IMAGES = 118_287, 100_170
"""Images of train2017 and of LVIS v1's training set."""


def _schedule(epochs: int, *drops: int, images: int = COCO_IMAGES) -> Settings:
    """So many epochs; the rate falls by 10 after each of `drops`."""
    steps = epochs * math.ceil(images / 16)
    return {"recipe.steps": steps, "recipe.drop_at": tuple(drop / epochs for drop in drops)}


_DETR: Settings = {"recipe.crop_probability": 0.5}
"""DETR's augmentation: half of the images are cropped before the multi-scale resize."""


def _lsj(side: int) -> Settings:
    """Large-scale jitter and copy-paste on squares without a mask."""
    return {
        "image.short": side, "image.long": side, "image.square": True,
        "recipe.jitter": (0.1, 2.0), "recipe.copy_paste": True,
    }  # fmt: skip


_1X, _2X, _3X = _schedule(12, 11), _schedule(24, 20), _schedule(36, 30)
_1X_LVIS, _3X_LVIS = _schedule(12, 11, images=LVIS_IMAGES), _schedule(36, 30, images=LVIS_IMAGES)
_LVIS: Settings = {"num_classes": 1203}

_LARGE: Settings = {
    **_DETR, "image.short": 1280, "image.long": 2048, "image.divisor": 32,
    "recipe.short_sides": tuple(range(480, 1537, 32)),
}  # fmt: skip
"""After Objects365: larger images, padded to multiples of 32."""

_O365_SWIN: Settings = {
    **_schedule(16, 8), **_LARGE, "recipe.lr": 1e-4, "backbone.drop_path": 0.3,
    "denoising.queries": 500, "denoising.box_noise": 0.4,
}  # fmt: skip
"""`co_dino_5scale_swin_large_16e_o365tococo`."""

_O365_VIT: Settings = {**_schedule(12, 7), **_LARGE, "recipe.long_side": 2400}
"""`co_dino_5scale_vit_large_coco`; the architecture's own settings are this file's."""

_EVERY_HEAD_1000: Settings = {
    "max_detections": 1000, "atss.max_detections": 1000, "faster_rcnn.max_detections": 1000,
}  # fmt: skip


def _drop_path(rate: float) -> Settings:
    return {"backbone.drop_path": rate}


TAGS: Mapping[str, Mapping[str, Settings]] = {
    "co_deformable_detr_r50": {"1x_coco": {**_1X, **_DETR}},
    "co_deformable_detr_swin_tiny": {
        "1x_coco": {**_1X, **_DETR, **_drop_path(0.2)},
        "3x_coco": {**_3X, **_DETR, **_drop_path(0.3)},
    },
    "co_deformable_detr_swin_small": {
        "1x_coco": {**_1X, **_DETR, **_drop_path(0.2)},
        "3x_coco": {**_3X, **_DETR, **_drop_path(0.4)},
    },
    "co_deformable_detr_swin_base": {
        "1x_coco": {**_1X, **_DETR, **_drop_path(0.2)},
        "3x_coco": {**_3X, **_DETR, **_drop_path(0.4)},
    },
    "co_deformable_detr_swin_large": {"1x_coco": {**_1X, **_DETR, **_drop_path(0.3)}},
    "co_deformable_detr_swin_large_900q": {"3x_coco": {**_3X, **_DETR, **_drop_path(0.6)}},
    "co_dino_5scale_r50": {
        "1x_coco": {**_1X, **_DETR},
        "lsj_1x_coco": {**_1X, **_lsj(1024)},
        "lsj_3x_coco": {**_3X, **_lsj(1024)},
        "1x_lvis": {**_1X_LVIS, **_DETR, **_LVIS},
        "lsj_1x_lvis": {**_1X_LVIS, **_lsj(1024), **_LVIS},
    },
    "co_dino_5scale_9encoder_r50": {
        "lsj_1x_coco": {**_1X, **_lsj(1024)},
        "lsj_3x_coco": {**_3X, **_lsj(1024)},
    },
    "co_dino_5scale_swin_large": {
        "1x_coco": {**_1X, **_DETR, **_drop_path(0.3)},
        "lsj_1x_coco": {**_1X, **_lsj(1280), **_drop_path(0.3)},
        "2x_coco": {**_2X, **_DETR, **_drop_path(0.5)},
        "lsj_2x_coco": {**_2X, **_lsj(1280), **_drop_path(0.5)},
        "3x_coco": {**_3X, **_DETR, **_drop_path(0.6)},
        "lsj_3x_coco": {**_3X, **_lsj(1280), **_drop_path(0.5)},
        "lsj_3x_lvis": {**_3X_LVIS, **_lsj(1280), **_drop_path(0.3), **_LVIS},
        "o365_coco": _O365_SWIN,
        "o365_lsj_lvis": {  # co_dino_5scale_lsj_swin_large_16e_o365tolvis
            **_O365_SWIN, **_schedule(16, 8, images=LVIS_IMAGES), **_lsj(1536), "image.divisor": 1,
            "recipe.crop_probability": 0.0, **_EVERY_HEAD_1000, **_LVIS,
        },
        "o365": {**_O365_SWIN, "num_classes": 365},  # no file in the release; all but the classes as o365_coco
    },
    "co_dino_5scale_vit_large": {
        "o365_coco": _O365_VIT,
        "lsj_lvis": {  # co_dino_5scale_lsj_vit_large_lvis: other global blocks, other RoI head, other optimizer
            **_schedule(16, 9, 15, images=LVIS_IMAGES), **_lsj(1536), "image.divisor": 1, **_LVIS,
            "num_queries": 900, "backbone.drop_path": 0.3,
            "backbone.options": {"global_blocks": (2, 5, 8, 11, 14, 17, 20, 23), "square": 1536},
            "faster_rcnn.roi_convs": 0, "faster_rcnn.roi_fcs": 2, "faster_rcnn.class_agnostic": False,
            "faster_rcnn.roi_stds": (0.1, 0.1, 0.2, 0.2), "recipe.weight_decay": 0.05, "recipe.clip_norm": 0.0,
            "recipe.lr_multipliers": (("backbone", 0.1),), "recipe.layer_decay": 1.0, "recipe.decay_vectors": True,
            "recipe.ema": None,
        },
        "o365": {**_O365_VIT, "num_classes": 365},  # no file in the release; all but the classes as o365_coco
    },
}  # fmt: skip
