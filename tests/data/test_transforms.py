from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from coco_folder import content, write

from codetr_lab.data.coco import CocoFolder
from codetr_lab.data.shapes import Shapes
from codetr_lab.data.transforms import batches, collate, epoch_indices, evaluation_sample, training_sample
from codetr_lab.images import normalise
from codetr_lab.models.config import ImageConfig, RecipeConfig

LAB = ImageConfig(short=128, long=128)
PLAIN = RecipeConfig(short_sides=(128,), flip=0.0)
FLIPPED = replace(PLAIN, flip=1.0)
SHAPES = Shapes(images=10)


def test_without_resizing_and_flipping_nothing_changes() -> None:
    for sample in (
        training_sample(SHAPES, 3, LAB, PLAIN, seed=0, epoch=0, masks=True),
        evaluation_sample(SHAPES, 3, LAB, masks=True),
    ):
        assert torch.equal(sample.pixels, normalise(SHAPES.image(3), LAB))
        target = SHAPES.target(3)
        assert sample.target.keys() == target.keys()
        assert all(torch.equal(sample.target[key], target[key]) for key in target)
        assert sample.original_size == (128, 128)
        assert sample.scale == (1.0, 1.0)


def test_a_flip_moves_pixels_boxes_and_masks_together() -> None:
    plain = training_sample(SHAPES, 3, LAB, PLAIN, seed=0, epoch=0, masks=True)
    flipped = training_sample(SHAPES, 3, LAB, FLIPPED, seed=0, epoch=0, masks=True)
    assert torch.equal(flipped.pixels.flip(-1), plain.pixels)
    for mask, box in zip(flipped.target["masks"], flipped.target["boxes"].tolist(), strict=True):
        columns = torch.nonzero(mask.any(0))[:, 0]
        assert (box[0], box[2]) == (columns[0], columns[-1] + 1)
    assert torch.equal(flipped.target["boxes"][:, 1::2], plain.target["boxes"][:, 1::2])


def test_resizing_scales_boxes_by_both_factors(tmp_path: Path) -> None:
    data = CocoFolder(write(tmp_path))
    sample = evaluation_sample(data, 0, ImageConfig(short=45, long=70), masks=True)
    assert sample.pixels.shape == (3, 45, 60)
    assert sample.scale == (1.5, 1.5)
    torch.testing.assert_close(sample.target["boxes"], torch.tensor([[3, 4.5, 18, 19.5], [45, 30, 60, 45]]))
    torch.testing.assert_close(sample.target["area"], torch.tensor([225.0, 234.0]))
    assert sample.target["masks"].shape == (2, 45, 60)
    assert sample.target["masks"][0, 5:19, 3:18].all()
    uneven = evaluation_sample(data, 1, ImageConfig(short=33, long=70))
    assert uneven.pixels.shape == (3, 70, 28)
    assert uneven.scale == (28 / 20, 70 / 50)


def test_crowds_and_vanishing_objects_are_left_out(tmp_path: Path) -> None:
    data = CocoFolder(write(tmp_path))
    assert evaluation_sample(data, 1, ImageConfig(short=20, long=50)).target["labels"].tolist() == [2]
    small = evaluation_sample(data, 1, ImageConfig(short=3, long=50), masks=True)  # its width becomes 0.75 pixels
    assert small.target["boxes"].shape == (0, 4)
    assert small.target["masks"].shape == (0, 8, 3)
    assert int(small.target["image_id"]) == 20
    empty = evaluation_sample(data, 2, ImageConfig(short=32, long=50), masks=True)
    assert empty.target["boxes"].shape == (0, 4)
    assert empty.target["masks"].shape == (0, 32, 32)


def test_augmentation_depends_on_seed_epoch_and_index_only() -> None:
    recipe = RecipeConfig(short_sides=(96, 128, 160), flip=0.5)
    config = ImageConfig(short=128, long=200)

    def look(seed: int, epoch: int) -> list[tuple[tuple[int, ...], float]]:
        samples = [training_sample(SHAPES, index, config, recipe, seed=seed, epoch=epoch) for index in range(10)]
        return [(tuple(sample.pixels.shape), float(sample.pixels[0, 0, 0])) for sample in samples]

    first = look(0, 0)
    assert look(0, 0) == first
    assert look(1, 0) != first
    assert look(0, 1) != first
    assert {shape[1] for shape, _ in first} == {96, 128, 160}


def test_collate_pads_to_the_divisor() -> None:
    samples = [evaluation_sample(SHAPES, 0, ImageConfig(short=side, long=side)) for side in (40, 50)]
    batch, targets = collate(samples, 32)
    assert batch.pixels.shape == (2, 3, 64, 64)
    assert batch.valid_sizes == ((40, 40), (50, 50))
    assert batch.padded_sizes == ((64, 64), (64, 64))
    assert batch.original_sizes == ((128, 128),) * 2
    assert batch.scales[1] == (50 / 128, 50 / 128)
    assert targets[0] is samples[0].target


def test_epochs_hold_every_image_once() -> None:
    epoch = epoch_indices(10, 4, seed=0, epoch=0, train=True)
    assert [len(batch) for batch in epoch] == [4, 4, 2]
    assert sorted(chain(*epoch)) == list(range(10))
    assert epoch != epoch_indices(10, 4, seed=0, epoch=1, train=True)
    assert epoch != epoch_indices(10, 4, seed=1, epoch=0, train=True)
    assert epoch_indices(10, 4, seed=0, epoch=3, train=False) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_epoch_continues_where_it_stopped(workers: int) -> None:
    recipe = RecipeConfig(short_sides=(64, 96))
    options = {"batch_size": 3, "seed": 5, "epoch": 2, "train": True}
    whole = list(batches(SHAPES, LAB, recipe, **options))
    state = torch.get_rng_state()
    rest = list(batches(SHAPES, LAB, recipe, **options, start_batch=2, workers=workers))
    assert torch.equal(torch.get_rng_state(), state)
    assert (len(whole), len(rest)) == (4, 2)
    for (batch, targets), (other, other_targets) in zip(whole[2:], rest, strict=True):
        assert torch.equal(batch.pixels, other.pixels)
        assert batch.scales == other.scales
        for target, other_target in zip(targets, other_targets, strict=True):
            assert all(torch.equal(target[key], other_target[key]) for key in target)
    assert list(batches(SHAPES, LAB, recipe, **options, start_batch=4, workers=workers)) == []


def test_evaluation_keeps_the_order(tmp_path: Path) -> None:
    data = CocoFolder(write(tmp_path, content()))
    stream = batches(
        data, ImageConfig(short=16, long=40), PLAIN, batch_size=2, seed=0, epoch=0, train=False, masks=True
    )
    targets = [target for _, targets in stream for target in targets]
    assert [int(target["image_id"]) for target in targets] == [10, 20, 30]
    assert all("masks" in target for target in targets)


def test_a_batch_needs_an_image() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(batches(SHAPES, LAB, PLAIN, batch_size=0, seed=0, epoch=0, train=True))
