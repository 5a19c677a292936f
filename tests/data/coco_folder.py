"""A tiny COCO-format folder, written by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def content() -> dict[str, Any]:
    """Three images; sparse categories; one crowd region; image 30 has no objects."""
    square = [[2, 3, 12, 3, 12, 13, 2, 13]]
    return {
        "images": [
            {"id": 10, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 20, "file_name": "b.png", "width": 20, "height": 50},
            {"id": 30, "file_name": "c.png", "width": 16, "height": 16},
        ],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 7, "bbox": [2, 3, 10, 10], "area": 100, "iscrowd": 0,
             "segmentation": square},
            {"id": 2, "image_id": 10, "category_id": 3, "bbox": [30.0, 20.0, 10.4, 10.0],
             "segmentation": [[30, 20, 40, 20, 40, 30]]},
            {"id": 5, "image_id": 20, "category_id": 90, "bbox": [1, 1, 5, 40], "area": 200, "iscrowd": 0,
             "segmentation": [[1, 1, 6, 1, 6, 41, 1, 41]]},
            {"id": 6, "image_id": 20, "category_id": 3, "bbox": [0, 0, 20, 25], "area": 500, "iscrowd": 1,
             "segmentation": {"size": [50, 20], "counts": [0, 25, 25, 25, 925]}},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 7, "name": "train"}],
    }  # fmt: skip


def write(folder: Path, coco: Any = None, *, annotations: str = "train.json", images: str = "images") -> Path:
    """The folder on disk; every image is one grey, 10, 20, 30."""
    coco = content() if coco is None else coco
    path = folder / annotations
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(coco))
    (folder / images).mkdir(parents=True, exist_ok=True)
    for name, (width, height), grey in (("a", (40, 30), 10), ("b", (20, 50), 20), ("c", (16, 16), 30)):
        Image.fromarray(np.full((height, width, 3), grey, np.uint8)).save(folder / images / f"{name}.png")
    return folder
