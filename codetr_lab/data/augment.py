"""The release's augmentations of one image and its objects: multi-scale, crop, large-scale jitter, copy-paste.

Each takes what it draws from one `numpy` generator. Sources: `co_deformable_detr_r50_1x_coco` (DETR's two branches) and
`co_dino_5scale_lsj_r50_1x_coco` (large-scale jitter and copy-paste; Ghiasi et al., 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from codetr_lab.data.dataset import DataError
from codetr_lab.images import pad_square, resize, resized_size
from codetr_lab.models.config import ImageConfig, RecipeConfig
from codetr_lab.structures import Size, Target

SMALLEST_SIDE = 1.0
"""Pixels; an object with a shorter side cannot be learnt and is dropped."""
CROP_LONG = 4200
"""Long side before cropping: no image of COCO reaches it."""
MAX_PASTED = 100
"""Objects that copy-paste takes from the other image at most."""
HIDDEN_SHIFT, HIDDEN_AREA = 10, 300
"""An object under pasted ones stays if no side of its box moved by more pixels, or if more of its mask is left."""


@dataclass(frozen=True)
class Picture:
    """An image on its way into a batch.

    Attributes:
        pixels: (H,W,3) uint8 RGB.
        target: in these pixels; no crowd regions, no objects below `SMALLEST_SIDE`.
        scale: (x, y), these pixels over the file's (before any crop).
    """

    pixels: NDArray[np.uint8]
    target: Target
    scale: tuple[float, float] = (1.0, 1.0)

    @property
    def size(self) -> Size:
        return self.pixels.shape[0], self.pixels.shape[1]


def select(target: Target, keep: Tensor) -> Target:
    """The objects at `keep` (N,) bool."""
    if keep.all():
        return target
    return {name: value if name == "image_id" else value[keep] for name, value in target.items()}


def without_lost(target: Target) -> Target:
    """The target without crowd regions and objects that are too small to be learnt."""
    boxes = target["boxes"]
    return select(target, ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST_SIDE).all(1) & ~target["iscrowd"])


def resized(picture: Picture, short: int, long: int) -> Picture:
    """Keeping the ratio: the short side at most `short`, the long one at most `long`, one of them reached."""
    height, width = picture.size
    size = resized_size(height, width, short, long)
    scale = (size[1] / width, size[0] / height)
    target = dict(picture.target)
    if scale != (1.0, 1.0):
        limit = target["boxes"].new_tensor([size[1], size[0]] * 2)
        target["boxes"] = torch.minimum(target["boxes"] * target["boxes"].new_tensor([*scale, *scale]), limit)
        target["area"] = target["area"] * (scale[0] * scale[1])
    target = without_lost(target)
    if "masks" in target and target["masks"].shape[1:] != size:
        masks = F.interpolate(target["masks"][:, None].float(), size=size, mode="nearest-exact")
        target["masks"] = masks[:, 0] > 0.5
    overall = (picture.scale[0] * scale[0], picture.scale[1] * scale[1])
    return Picture(resize(picture.pixels, size), target, overall)


def flipped(picture: Picture) -> Picture:
    """Left and right exchanged."""
    target = dict(picture.target)
    x0, y0, x1, y1 = target["boxes"].unbind(-1)
    width = picture.size[1]
    target["boxes"] = torch.stack([width - x1, y0, width - x0, y1], -1)
    if "masks" in target:
        target["masks"] = target["masks"].flip(-1)
    return Picture(np.ascontiguousarray(picture.pixels[:, ::-1]), target, picture.scale)


def cropped(picture: Picture, rng: np.random.Generator, shortest: int, longest: int) -> Picture:
    """A crop at a random place, each side drawn from `shortest` .. `longest` pixels (at most the image's own).

    A crop without objects is kept, as the release does.
    """
    height, width = picture.size
    sides = [int(rng.integers(min(side, shortest), min(side, longest) + 1)) for side in (height, width)]
    top, left = (int(rng.integers(0, side - new + 1)) for side, new in zip((height, width), sides, strict=True))
    bottom, right = top + sides[0], left + sides[1]
    target = dict(picture.target)
    before = target["boxes"]
    boxes = before - before.new_tensor([left, top] * 2)
    boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([sides[1], sides[0]] * 2))
    if "masks" in target:
        target["masks"] = target["masks"][:, top:bottom, left:right]
    share = _area(boxes) / _area(before).clamp(min=1e-6)
    target |= {"boxes": boxes, "area": target["area"] * share}
    return Picture(picture.pixels[top:bottom, left:right], without_lost(target), picture.scale)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def multiscale(picture: Picture, image: ImageConfig, recipe: RecipeConfig, rng: np.random.Generator) -> Picture:
    """DETR's augmentation: one of the short sides; with `crop_probability` a resized crop first. Then a flip.

    The two branches of the release's `AutoAugment`.
    """
    long = recipe.long_side or image.long

    def drawn(sides: tuple[int, ...]) -> int:
        return sides[int(rng.integers(len(sides)))]

    short, flip = drawn(recipe.short_sides), rng.random() < recipe.flip
    if recipe.crop_probability and rng.random() < recipe.crop_probability:
        picture = resized(picture, drawn(recipe.crop_short_sides), CROP_LONG)
        picture = cropped(picture, rng, *recipe.crop_range)
    picture = resized(picture, short, long)
    return flipped(picture) if flip else picture


def jittered(picture: Picture, image: ImageConfig, recipe: RecipeConfig, rng: np.random.Generator) -> Picture:
    """Large-scale jitter: scaled by a factor from `recipe.jitter`, cropped to fit the square, flipped, padded to it.

    Boxes follow their masks where there are masks.

    Raises:
        DataError: `recipe.copy_paste` and no masks.
    """
    if recipe.copy_paste and "masks" not in picture.target:
        raise DataError(
            f"image {int(picture.target['image_id'])}: an object has no mask, and copy-paste needs them; train with "
            "--set recipe.copy_paste=false"
        )
    low, high = recipe.jitter or (1.0, 1.0)
    side = max(1, int(image.long * (low + rng.random() * (high - low))))
    picture = cropped(resized(picture, side, side), rng, image.long, image.long)
    if "masks" in picture.target:
        picture = _boxes_from_masks(picture)
    if rng.random() < recipe.flip:
        picture = flipped(picture)
    return squared(picture, image.long)


def squared(picture: Picture, side: int) -> Picture:
    """Padded to (side, side)."""
    target = dict(picture.target)
    if "masks" in target:
        height, width = picture.size
        target["masks"] = F.pad(target["masks"], (0, side - width, 0, side - height))
    return Picture(pad_square(picture.pixels, side), target, picture.scale)


def _boxes_from_masks(picture: Picture) -> Picture:
    """Boxes as tight around what the crop left of each mask."""
    boxes = mask_boxes(picture.target["masks"])
    return Picture(picture.pixels, without_lost({**picture.target, "boxes": boxes}), picture.scale)


def mask_boxes(masks: Tensor) -> Tensor:
    """(N,H,W) bool to (N,4) xyxy pixels, outer edges; zeros for an empty mask."""
    boxes = torch.zeros(len(masks), 4)
    for axis, (low, high) in ((1, (0, 2)), (2, (1, 3))):
        there = masks.any(axis)  # (N,W) or (N,H)
        inside = there.any(1)
        boxes[:, low] = there.float().argmax(1)
        boxes[:, high] = (there.shape[1] - there.flip(1).float().argmax(1)) * inside
    return boxes


def pasted(picture: Picture, other: Picture, rng: np.random.Generator) -> Picture:
    """Copy-paste: a random subset of `other`'s objects laid over an image of the same size.

    Objects underneath lose what is hidden of their masks, and are dropped where hardly anything is left of them
    (`HIDDEN_SHIFT`, `HIDDEN_AREA`). Both targets need masks.
    """
    objects = len(other.target["boxes"])
    count = int(rng.integers(0, min(objects, MAX_PASTED) + 1))
    if not count:
        return picture
    chosen = torch.zeros(objects, dtype=torch.bool)
    chosen[torch.from_numpy(rng.permutation(objects)[:count])] = True
    source = select(other.target, chosen)
    cover = source["masks"].any(0)
    below = dict(picture.target)
    below["masks"] = below["masks"] & ~cover
    boxes = mask_boxes(below["masks"])
    moved = (boxes - below["boxes"]).abs().amax(1) > HIDDEN_SHIFT
    left = below["masks"].flatten(1).sum(1)
    below["boxes"] = boxes
    below = select(below, ~moved | (left > HIDDEN_AREA))
    merged: Target = {
        name: value if name == "image_id" else torch.cat([value, source[name]]) for name, value in below.items()
    }
    pixels = np.where(cover.numpy()[:, :, None], other.pixels, picture.pixels)
    return Picture(pixels, without_lost(merged), picture.scale)
