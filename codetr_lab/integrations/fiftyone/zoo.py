"""A preset with weights as a FiftyOne model: `dataset.apply_model` and `compute_embeddings`, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fiftyone.core.models as fom
import numpy as np
import torch
from numpy.typing import NDArray

from codetr_lab.engine.checkpoint import load
from codetr_lab.images import prepare
from codetr_lab.integrations.fiftyone.actions import to_labels
from codetr_lab.structures import ImageBatch


class CodetrModel(fom.Model, fom.EmbeddingsMixin):
    """Detections of one head; embeddings are the encoder's coarsest memory level, averaged over the image.

    Args:
        name: a shipped model, a run's folder, or a preset with weights.
        head: `detr` or an auxiliary head's name.
        confidence_thresh: detections with a lower score are left out.

    Raises:
        ConfigError: no such model or head.
    """

    def __init__(self, name: str, head: str = "detr", confidence_thresh: float = 0.2) -> None:
        self.model = load(name)
        self.head, self.confidence_thresh = head, confidence_thresh

    @property
    def media_type(self) -> str:
        return "image"

    @property
    def ragged_batches(self) -> bool:
        """Images of several sizes go into one batch."""
        return False

    @property
    def transforms(self) -> None:
        return None

    @property
    def preprocess(self) -> bool:
        return True

    @preprocess.setter
    def preprocess(self, value: bool) -> None:
        if not value:
            raise ValueError("these models read images as they are and resize them themselves")

    @property
    def has_embeddings(self) -> bool:
        return True

    def predict(self, arg: NDArray[np.uint8]) -> Any:
        return self.predict_all([arg])[0]

    def predict_all(self, args: Sequence[NDArray[np.uint8]]) -> list[Any]:
        """(H,W,3) uint8 RGB images to `fo.Detections`, in one forward pass per batch."""
        classes = self.model.config.classes
        return [
            to_labels(found[self.head].select(found[self.head].scores >= self.confidence_thresh), image.shape, classes)
            for image, found in zip(args, self.model.predict(list(args), heads=(self.head,)), strict=True)
        ]

    def embed(self, arg: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.embed_all([arg])[0]

    @torch.no_grad()
    def embed_all(self, args: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(N,D) float32, one vector per image, over its valid part."""
        config = self.model.config.image
        batch = ImageBatch.from_images([prepare(image, config).pixels for image in args], divisor=config.divisor)
        level = self.model.trace(batch.to(next(self.model.parameters()).device)).memory[-1].cpu()
        vectors = []
        for image, (height, width) in enumerate(batch.valid_sizes):
            rows = max(1, round(level.shape[2] * height / batch.pixels.shape[2]))
            columns = max(1, round(level.shape[3] * width / batch.pixels.shape[3]))
            vectors.append(level[image, :, :rows, :columns].mean((1, 2)))
        return torch.stack(vectors).float().numpy()
