"""One image as a model reads it, together with its objects: what every look at a model begins with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from codetr_lab.images import prepare, resize
from codetr_lab.models.config import ImageConfig
from codetr_lab.structures import ImageBatch, Size, Target


@dataclass(frozen=True)
class Scene:
    """One image, resized as a model wants it.

    Attributes:
        image: (h,w,3) uint8 RGB.
        target: its objects in these pixels; None if they are not known.
        batch: the same image, ready for the model, alone in its batch.
    """

    image: NDArray[np.uint8]
    target: Target | None
    batch: ImageBatch

    @property
    def size(self) -> Size:
        """(h,w), by which boxes in the decoder are normalised."""
        return self.batch.valid_sizes[0]

    @property
    def padded(self) -> Size:
        """(H,W) of the batch, by which sampling locations are normalised."""
        return int(self.batch.pad_mask.shape[1]), int(self.batch.pad_mask.shape[2])


def make_scene(image: NDArray[np.uint8], target: Target | None, config: ImageConfig) -> Scene:
    """Resize an image (H,W,3) and its objects (in its own pixels) as evaluation does.

    Raises:
        ValueError: the image has no pixels or holds no finite numbers.
    """
    ready = prepare(image, config)
    size = (int(ready.pixels.shape[1]), int(ready.pixels.shape[2]))
    scaled = None
    if target is not None:
        scaled = {"boxes": target["boxes"] * torch.tensor([*ready.scale, *ready.scale]), "labels": target["labels"]}
        scaled |= {key: target[key] for key in ("iscrowd",) if key in target}
    batch = ImageBatch.from_images(
        [ready.pixels], divisor=config.divisor, original_sizes=[ready.original_size], scales=[ready.scale]
    )
    return Scene(resize(image, size), scaled, batch)
