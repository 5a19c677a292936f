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
}  # fmt: skip
