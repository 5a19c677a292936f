"""What a reader looks at: an image of the data set or an own one, with its objects or with those that were drawn."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from codetr_lab.data.dataset import DetectionDataset
from codetr_lab.structures import Target

Box = tuple[float, float, float, float, int]
"""An object that a reader drew: xyxy in pixels of the image's file, and its label."""


@dataclass(frozen=True)
class Upload:
    """A reader's image, (H,W,3) uint8, and its objects if they came with it; `key` tells it from all others."""

    key: str
    name: str
    image: NDArray[np.uint8] = field(compare=False, repr=False)
    target: Target | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Picture:
    """One state of the page's image.

    Attributes:
        index: in the data set; of no importance with an upload.
        upload: the reader's own image.
        drawn: the objects that take the place of the image's own; None leaves those.
    """

    index: int = 0
    upload: Upload | None = None
    drawn: tuple[Box, ...] | None = None

    @property
    def key(self) -> Hashable:
        """What tells it from all others."""
        return (self.upload.key if self.upload else self.index), self.drawn

    def image(self, dataset: DetectionDataset) -> NDArray[np.uint8]:
        """(H,W,3) uint8."""
        return self.upload.image if self.upload else dataset.image(self.index)

    def target(self, dataset: DetectionDataset) -> Target | None:
        """Its objects in the image's own pixels; None if they are not known."""
        if self.drawn is not None:
            return {
                "boxes": torch.tensor([box[:4] for box in self.drawn], dtype=torch.float32).reshape(-1, 4),
                "labels": torch.tensor([box[4] for box in self.drawn], dtype=torch.long),
            }
        if self.upload:
            return self.upload.target
        return dataset.target(self.index, masks=False)

    def with_box(self, box: Box, dataset: DetectionDataset) -> Picture:
        """The same with one object more, cut to the image; itself if nothing of the box lies inside."""
        height, width = self.image(dataset).shape[:2]
        x0, x1 = sorted((min(max(box[0], 0), width), min(max(box[2], 0), width)))
        y0, y1 = sorted((min(max(box[1], 0), height), min(max(box[3], 0), height)))
        if x1 - x0 < 1 or y1 - y0 < 1:
            return self
        before = self.drawn
        if before is None:
            own = self.target(dataset)
            pairs = zip(own["boxes"].tolist(), own["labels"].tolist(), strict=True) if own else ()
            before = tuple((*map(float, b), int(label)) for b, label in pairs)  # type: ignore[misc]
        return replace(self, drawn=(*before, (x0, y0, x1, y1, box[4])))
