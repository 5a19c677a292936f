"""Shapes: generated images for the lab, the same for everyone who asks for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from codetr_lab.data.dataset import DataError, coco_annotations, coco_categories
from codetr_lab.data.painting import OUTLINES, REFERENCE_SIZE, Difficulty, Painter, Scene
from codetr_lab.models.config import unknown
from codetr_lab.structures import Target

DIFFICULTIES: dict[str, Difficulty] = {
    "easy": Difficulty(
        count=(1, 4), radius=(12, 36), dense_share=0, clutter=0, visible=0.85, contrast=260, texture=0.5, noise=(1, 4)
    ),
    "normal": Difficulty(),
    "hard": Difficulty(
        count=(2, 10), radius=(6, 30), dense_share=0.1, dense_count=(11, 15), dense_radius=(6, 14), clutter=14,
        clutter_on_top=True, visible=0.5, contrast=120, texture=1.4, noise=(4, 16),
    ),
}  # fmt: skip


class Shapes:
    """Circles, squares, triangles, stars, crosses and rings on textured grounds, among clutter that resembles them.

    Every image depends on `(seed, split, difficulty, size, index)` only, never on the order of access. Images are
    drawn when first asked for (a few milliseconds) and kept (about 65 KB each at 128 pixels).

    A mask holds the pixels where the object is seen; boxes are tight around the mask and areas count its pixels, as in
    COCO. At the default size of 128 pixels `normal` gives 2-8 objects of radius 9-32 in most images, 9-12 small ones in
    4 % and a single close-up in 4 %. By COCO's measure (32 x 32, 96 x 96 pixels) three quarters of its objects are
    small, a quarter medium, and half of the close-ups large (0.4 %); a larger `size` shifts this upwards.
    `easy` has 1-4 objects, no clutter and calm grounds. `hard` has up to 15, from radius 6, under and over clutter,
    with less contrast.

    Args:
        split: two disjoint sets, `train` or `val`.
        images: how many; 4,000 and 400 by default.
        size: side of the square images in pixels, 32 to 2048.
        difficulty: `easy`, `normal` or `hard`.
        seed: another seed, other images.

    Raises:
        ConfigError: unknown split or difficulty.
        DataError: a number out of its range.
    """

    classes: tuple[str, ...] = tuple(OUTLINES)
    category_ids: tuple[int, ...] = tuple(range(1, len(OUTLINES) + 1))

    def __init__(
        self,
        split: str = "train",
        images: int | None = None,
        size: int = REFERENCE_SIZE,
        difficulty: str = "normal",
        seed: int = 0,
    ) -> None:
        default_images = {"train": 4000, "val": 400}
        if split not in default_images:
            raise unknown("split of shapes", split, list(default_images))
        if difficulty not in DIFFICULTIES:
            raise unknown("difficulty of shapes", difficulty, list(DIFFICULTIES))
        if images is not None and images < 1:
            raise DataError(f"shapes: images must be at least 1, got {images}")
        if not 32 <= size <= 2048:
            raise DataError(f"shapes: size must be 32 to 2048 pixels, got {size}")
        if seed < 0:
            raise DataError(f"shapes: seed must not be negative, got {seed}")
        self.name = "shapes" if difficulty == "normal" else f"shapes:{difficulty}"
        self.split = split
        self.size = size
        self.difficulty = DIFFICULTIES[difficulty]
        self._images = default_images[split] if images is None else images
        self._entropy = (seed, list(default_images).index(split), list(DIFFICULTIES).index(difficulty), size)
        self._scenes: dict[int, Scene] = {}

    def __len__(self) -> int:
        return self._images

    def image(self, index: int) -> NDArray[np.uint8]:
        """(size,size,3) uint8 RGB, the caller's own copy.

        Raises:
            IndexError: there is no such image.
        """
        return self._scene(index).image.copy()

    def target(self, index: int, *, masks: bool = True) -> Target:
        """The objects in the order in which they were drawn, later ones in front; see `DetectionDataset.target`."""
        scene = self._scene(index)
        target = {
            "boxes": torch.tensor(scene.boxes),
            "labels": torch.tensor(scene.labels),
            "iscrowd": torch.zeros(len(scene.labels), dtype=torch.bool),
            "area": torch.tensor(scene.area),
            "image_id": torch.tensor(index),
        }
        if masks:
            numbers = torch.arange(len(scene.labels), dtype=torch.int8)
            target["masks"] = torch.tensor(scene.owner) == numbers[:, None, None]
        return target

    def file_name(self, index: int) -> str:
        """The name that `export` gives the image."""
        return f"{index:06d}.png"

    def to_coco(self) -> dict[str, Any]:
        """The ground truth of all images as COCO's json dictionary."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(len(self)):
            name = self.file_name(index)
            images.append({"id": index, "file_name": name, "width": self.size, "height": self.size})
            annotations += coco_annotations(self.target(index), self.category_ids, len(annotations) + 1)
        return {
            "info": {"description": self.name}, "images": images, "annotations": annotations,
            "categories": coco_categories(self),
        }  # fmt: skip

    def _scene(self, index: int) -> Scene:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index}: {self.name} has images 0..{len(self) - 1}")
        scene = self._scenes.get(index)
        if scene is None:
            rng = np.random.default_rng((*self._entropy, index))
            scene = self._scenes[index] = Painter(rng, self.size, self.difficulty).paint()
        return scene
