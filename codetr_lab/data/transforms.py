"""From a data set to batches: images augmented, seeded by (seed, epoch, index), and padded together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from codetr_lab.data import augment
from codetr_lab.data.dataset import DetectionDataset
from codetr_lab.images import normalise
from codetr_lab.models.config import ImageConfig, RecipeConfig
from codetr_lab.structures import ImageBatch, Size, Target

Batch = tuple[ImageBatch, list[Target]]


@dataclass(frozen=True)
class Sample:
    """One image ready for a batch.

    Attributes:
        pixels: (3,h,w) float32, normalised.
        target: in the pixels of `pixels`; crowd regions and degenerate objects are left out.
        original_size: (height, width) of the data set's image.
        scale: (x, y), resized over original.
    """

    pixels: Tensor
    target: Target
    original_size: Size
    scale: tuple[float, float]


def training_sample(
    dataset: DetectionDataset,
    index: int,
    image_config: ImageConfig,
    recipe: RecipeConfig,
    *,
    seed: int,
    epoch: int,
    masks: bool = False,
) -> Sample:
    """An image augmented as the recipe says (see `RecipeConfig`).

    What is drawn depends on (seed, epoch, index) only.

    Raises:
        DataError: copy-paste of an image without masks.
    """
    rng = np.random.default_rng((seed, epoch, index + 1))
    picture = _picture(dataset, index, masks=masks or recipe.copy_paste)
    original_size = picture.size
    if recipe.jitter is None:
        picture = augment.multiscale(picture, image_config, recipe, rng)
    else:
        picture = augment.jittered(picture, image_config, recipe, rng)
    if recipe.copy_paste:
        other = _picture(dataset, int(rng.integers(len(dataset))), masks=True)
        picture = augment.pasted(picture, augment.jittered(other, image_config, recipe, rng), rng)
    sample = _finished(picture, image_config, original_size)
    if not masks:
        sample.target.pop("masks", None)
    return sample


def evaluation_sample(
    dataset: DetectionDataset, index: int, image_config: ImageConfig, *, masks: bool = False
) -> Sample:
    """An image resized to `image_config.short`, unflipped."""
    picture = _picture(dataset, index, masks=masks)
    resized = augment.resized(picture, image_config.short, image_config.long)
    return _finished(resized, image_config, picture.size)


def _picture(dataset: DetectionDataset, index: int, *, masks: bool) -> augment.Picture:
    return augment.Picture(dataset.image(index), dataset.target(index, masks=masks))


def _finished(picture: augment.Picture, image_config: ImageConfig, original_size: Size) -> Sample:
    """Padded to the square where the configuration says so, and normalised."""
    if image_config.square:
        picture = augment.squared(picture, image_config.long)
    return Sample(normalise(picture.pixels, image_config), picture.target, original_size, picture.scale)


def collate(samples: Sequence[Sample], divisor: int = 1) -> Batch:
    """Samples padded together at the right and bottom, sides a multiple of `divisor` (see `ImageBatch`)."""
    batch = ImageBatch.from_images(
        [sample.pixels for sample in samples],
        divisor=divisor,
        original_sizes=[sample.original_size for sample in samples],
        scales=[sample.scale for sample in samples],
    )
    return batch, [sample.target for sample in samples]


def epoch_indices(count: int, batch_size: int, *, seed: int, epoch: int, train: bool) -> list[list[int]]:
    """The images of every batch of an epoch: shuffled by (seed, epoch) in training, in order at evaluation.

    Every image comes once; the last batch may be smaller.
    """
    # A sample's generator has index + 1 as third number, which is zero here: no two streams are the same.
    order = np.random.default_rng((seed, epoch)).permutation(count).tolist() if train else list(range(count))
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


class _Batches(torch.utils.data.Dataset[Batch]):
    """Makes one batch from its images' indices, in whichever process."""

    def __init__(
        self, dataset: DetectionDataset, image_config: ImageConfig, recipe: RecipeConfig, *, seed: int, epoch: int,
        train: bool, masks: bool, indices: list[list[int]],
    ) -> None:  # fmt: skip
        self.dataset, self.image_config, self.recipe = dataset, image_config, recipe
        self.seed, self.epoch, self.train, self.masks, self.indices = seed, epoch, train, masks, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> Batch:
        return collate([self._sample(index) for index in self.indices[number]], self.image_config.divisor)

    def _sample(self, index: int) -> Sample:
        if self.train:
            return training_sample(
                self.dataset, index, self.image_config, self.recipe,
                seed=self.seed, epoch=self.epoch, masks=self.masks,
            )  # fmt: skip
        return evaluation_sample(self.dataset, index, self.image_config, masks=self.masks)


def _as_it_is(batch: Any) -> Any:
    """A batch that is finished already."""
    return batch


def batches(
    dataset: DetectionDataset,
    image_config: ImageConfig,
    recipe: RecipeConfig,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    train: bool,
    workers: int = 0,
    start_batch: int = 0,
    masks: bool = False,
) -> Iterator[Batch]:
    """One epoch of batches, the same for the same seed and epoch with any number of workers.

    Args:
        train: shuffled and augmented; otherwise in order, resized to `image_config.short`.
        workers: processes that prepare batches ahead; 0 prepares them here.
        start_batch: begin with this batch of the epoch, as a resumed run does.
        masks: targets carry the data set's masks (N,h,w).

    Raises:
        ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    indices = epoch_indices(len(dataset), batch_size, seed=seed, epoch=epoch, train=train)[start_batch:]
    made = _Batches(
        dataset, image_config, recipe, seed=seed, epoch=epoch, train=train, masks=masks, indices=indices
    )  # fmt: skip
    if workers == 0:
        for number in range(len(made)):
            yield made[number]
    elif indices:
        # The loader's own generator: without it every epoch would take a number from the global one.
        generator = torch.Generator().manual_seed(0)
        yield from DataLoader(made, batch_size=None, collate_fn=_as_it_is, num_workers=workers, generator=generator)
