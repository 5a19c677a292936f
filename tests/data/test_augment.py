"""The release's augmentations: geometry of pixels, boxes and masks together, and what is dropped."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from coco_folder import write

from codetr_lab.data import augment
from codetr_lab.data.augment import Picture, cropped, jittered, mask_boxes, multiscale, pasted, resized, squared
from codetr_lab.data.coco import CocoFolder
from codetr_lab.data.dataset import DataError
from codetr_lab.data.shapes import Shapes
from codetr_lab.data.transforms import evaluation_sample, training_sample
from codetr_lab.images import normalise
from codetr_lab.models.config import ConfigError, ImageConfig, RecipeConfig, override
from codetr_lab.models.presets import preset

SHAPES = Shapes(images=6)
SQUARE = ImageConfig(short=96, long=96, square=True)
LSJ = RecipeConfig(jitter=(0.1, 2.0))


def picture(index: int = 3) -> Picture:
    return Picture(SHAPES.image(index), SHAPES.target(index))


def rectangles(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (100, 120), grey: int = 0) -> Picture:
    """Objects that fill their boxes, each in a colour of its own; label and area follow."""
    pixels = np.full((*size, 3), grey, np.uint8)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        masks[number, y0:y1, x0:x1] = True
        pixels[y0:y1, x0:x1] = grey + 10 * (number + 1)
    table = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = {
        "boxes": table, "labels": torch.arange(len(boxes)), "iscrowd": torch.zeros(len(boxes), dtype=torch.bool),
        "area": (table[:, 2:] - table[:, :2]).prod(1), "masks": masks, "image_id": torch.tensor(7),
    }  # fmt: skip
    return Picture(pixels, target)


def consistent(result: Picture) -> None:
    """Every object's mask and pixels lie where its box says."""
    target = result.target
    torch.testing.assert_close(mask_boxes(target["masks"]), target["boxes"], atol=1.0, rtol=0)
    for label, mask in zip(target["labels"].tolist(), target["masks"], strict=True):
        assert (np.median(result.pixels[mask.numpy()]) == 10 * (label + 1)).all()
    lengths = {len(value) for name, value in target.items() if name != "image_id"}
    assert lengths == {len(target["boxes"])} and int(target["image_id"]) == 7


def test_mask_boxes() -> None:
    shown = rectangles((3, 4, 10, 20), (0, 0, 120, 100), (5, 5, 6, 6))
    assert torch.equal(mask_boxes(shown.target["masks"]), shown.target["boxes"])
    assert torch.equal(mask_boxes(torch.zeros(1, 4, 4, dtype=torch.bool)), torch.zeros(1, 4))
    assert mask_boxes(torch.zeros(0, 4, 4, dtype=torch.bool)).shape == (0, 4)


def test_a_crop_moves_everything_together_and_keeps_to_its_range() -> None:
    whole = rectangles((10, 10, 60, 50), (70, 20, 110, 90), (0, 80, 30, 100))
    sizes = set()
    for seed in range(30):
        result = cropped(whole, np.random.default_rng(seed), 40, 60)
        sizes.add(result.size)
        assert all(40 <= side <= 60 for side in result.size)
        limit = torch.tensor([result.size[1], result.size[0]] * 2)
        assert (result.target["boxes"] >= 0).all() and (result.target["boxes"] <= limit).all()
        consistent(result)
        torch.testing.assert_close(result.target["area"], result.target["masks"].flatten(1).sum(1).float())
    assert len(sizes) > 10
    small = cropped(rectangles((1, 1, 9, 9), size=(20, 30)), np.random.default_rng(0), 384, 600)
    assert small.size == (20, 30)


def test_a_crop_without_objects_is_kept() -> None:
    far = rectangles((100, 80, 120, 100))
    empty = next(
        result
        for seed in range(100)
        if not len((result := cropped(far, np.random.default_rng(seed), 20, 30)).target["labels"])
    )
    assert empty.target["masks"].shape == (0, *empty.size)


def test_the_two_branches_of_multiscale() -> None:
    image, recipe = ImageConfig(short=200, long=400), RecipeConfig(short_sides=(60, 80), flip=0.5)
    plain = {multiscale(rectangles((10, 10, 60, 50)), image, recipe, np.random.default_rng(s)).size for s in range(20)}
    assert plain == {(60, 72), (80, 96)}
    recipe = replace(recipe, crop_probability=1.0, crop_short_sides=(90, 110), crop_range=(50, 70), long_side=90)
    shorts = set()
    for seed in range(20):
        result = multiscale(rectangles((10, 10, 110, 90)), image, recipe, np.random.default_rng(seed))
        shorts.add(min(result.size))
        assert max(result.size) <= 90 and min(result.size) <= 80
        consistent(result)
    assert {60, 80} <= shorts
    half = replace(recipe, crop_probability=0.5)
    ratios = [
        multiscale(rectangles((10, 10, 60, 50)), image, half, np.random.default_rng(s)).size in ((60, 72), (75, 90))
        for s in range(60)
    ]
    assert 15 < sum(ratios) < 45  # uncropped


def test_large_scale_jitter_fills_the_square_with_grey() -> None:
    sides = []
    for seed in range(40):
        result = jittered(rectangles((10, 10, 110, 90)), SQUARE, LSJ, np.random.default_rng(seed))
        assert result.size == (96, 96) and result.target["masks"].shape[1:] == (96, 96)
        grey = (result.pixels == 114).all(2)
        content = (96 - int(grey.all(1).sum()), 96 - int(grey.all(0).sum()))
        expected = (round(100 * result.scale[1]), round(120 * result.scale[0]))
        assert content == (min(96, expected[0]), min(96, expected[1]))
        sides.append(max(expected))
        consistent(result)
    assert min(sides) < 40 and max(sides) > 160
    assert jittered(rectangles(), SQUARE, LSJ, np.random.default_rng(0)).target["boxes"].shape == (0, 4)


def test_boxes_follow_what_the_crop_left_of_a_mask() -> None:
    diagonal = rectangles((0, 0, 100, 100), size=(100, 100))
    diagonal.target["masks"][0] = torch.eye(100, dtype=torch.bool)
    result = jittered(diagonal, SQUARE, replace(LSJ, jitter=(2.0, 2.0), flip=0.0), np.random.default_rng(3))
    box, mask = result.target["boxes"][0], result.target["masks"][0]
    assert torch.equal(mask_boxes(mask[None])[0], box) and not torch.equal(box, torch.tensor([0.0, 0, 96, 96]))


def test_pasted_objects_hide_what_lies_under_them(monkeypatch: pytest.MonkeyPatch) -> None:
    below = rectangles((0, 0, 40, 40), (50, 50, 100, 90), (60, 60, 70, 70), (0, 60, 30, 90), size=(100, 100))
    above = rectangles((55, 55, 90, 85), (0, 0, 40, 35), size=(100, 100), grey=100)

    class All:  # draws every object
        def integers(self, low: int, high: int) -> int:
            return high - 1

        def permutation(self, count: int) -> np.ndarray:
            return np.arange(count)

    result = pasted(below, above, All())  # type: ignore[arg-type]
    # 0: only 200 pixels left and its box shrank: dropped. 1: keeps its outline. 2: hidden. 3: untouched.
    expected = torch.tensor([[50.0, 50, 100, 90], [0, 60, 30, 90], [55, 55, 90, 85], [0, 0, 40, 35]])
    assert torch.equal(result.target["boxes"], expected)
    assert result.target["labels"].tolist() == [1, 3, 0, 1]
    assert result.target["masks"].sum((1, 2)).tolist() == [50 * 40 - 35 * 30, 900, 35 * 30, 40 * 35]
    assert (result.pixels[60, 60] == 110).all() and (result.pixels[52, 52] == 20).all()
    assert int(result.target["image_id"]) == 7
    monkeypatch.setattr(augment, "HIDDEN_AREA", 199)
    assert len(pasted(below, above, All()).target["boxes"]) == 5  # type: ignore[arg-type]
    assert pasted(below, rectangles(size=(100, 100)), np.random.default_rng(0)) is below


def test_copy_paste_in_training(tmp_path) -> None:
    recipe = replace(LSJ, copy_paste=True)
    counts = set()
    for index in range(4):
        sample = training_sample(SHAPES, index, SQUARE, recipe, seed=0, epoch=0, masks=True)
        again = training_sample(SHAPES, index, SQUARE, recipe, seed=0, epoch=0)
        assert sample.pixels.shape == (3, 96, 96)
        assert torch.equal(sample.pixels, again.pixels) and "masks" not in again.target
        torch.testing.assert_close(mask_boxes(sample.target["masks"]), sample.target["boxes"], atol=1.0, rtol=0)
        counts.add(len(sample.target["labels"]) - len(SHAPES.target(index)["labels"]))
    assert max(counts) > 0
    folder = CocoFolder(write(tmp_path))
    with pytest.raises(DataError, match=r"an object has no mask.*--set recipe\.copy_paste=false"):
        no_masks = rectangles((1, 1, 9, 9))
        del no_masks.target["masks"]
        jittered(no_masks, SQUARE, recipe, np.random.default_rng(0))
    assert training_sample(folder, 2, SQUARE, LSJ, seed=0, epoch=0).target["boxes"].shape == (0, 4)


def test_square_images_have_no_mask() -> None:
    config = ImageConfig(short=64, long=64, square=True)
    whole = picture(2)
    wide = replace(whole, pixels=whole.pixels[:80])
    shown = squared(resized(wide, 64, 64), 64)
    assert shown.size == (64, 64) and (shown.pixels[40:] == 114).all() and not (shown.pixels[39] == 114).all()
    sample = evaluation_sample(SHAPES, 2, config, masks=True)
    assert torch.equal(sample.pixels, normalise(resized(picture(2), 64, 64).pixels, config))


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe\.jitter needs image\.square=true"):
        preset("lab_co_k1", **{"recipe.jitter": (0.1, 2.0)})
    with pytest.raises(ConfigError, match=r"recipe\.copy_paste needs recipe\.jitter"):
        override(RecipeConfig(), copy_paste=True)
