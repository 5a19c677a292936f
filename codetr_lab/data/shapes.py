"""Shapes: generated images for the lab, the same for everyone who asks for the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from codetr_lab.data import drawing
from codetr_lab.data.dataset import DataError, coco_annotations, coco_categories
from codetr_lab.data.drawing import Floats, Outline
from codetr_lab.models.config import unknown
from codetr_lab.structures import Target

OUTLINES: dict[str, Outline] = {
    "circle": drawing.circle,
    "square": drawing.square,
    "triangle": drawing.triangle,
    "star": drawing.star,
    "cross": drawing.cross,
    "ring": drawing.ring,
}
REFERENCE_SIZE = 128  # the side for which the radii below are given; they grow with the image
FREE = -1  # an owner-map pixel that shows no object
PLACEMENT_TRIES = 24


@dataclass(frozen=True)
class Difficulty:
    """The distribution that images are drawn from. Radii in pixels at a side of 128, drawn log-uniformly.

    Attributes:
        count: smallest and largest number of objects of an ordinary image.
        radius: of an ordinary image's objects.
        dense_share, dense_count, dense_radius: share of images with many small objects, and what they hold.
        close_up_share, close_up_radius: share of images with one object that nearly fills the picture.
        clutter: largest number of things that are no objects but look like parts of some.
        clutter_on_top: clutter may also hide objects.
        visible: least visible share of every object's full outline.
        contrast: colour distance between an object and what lies under it (`drawing.color_distance`).
        texture: of the background; 1 is normal.
        noise: smallest and largest standard deviation of the grain, in grey levels.
    """

    count: tuple[int, int] = (2, 8)
    radius: tuple[float, float] = (9, 32)
    dense_share: float = 0.04
    dense_count: tuple[int, int] = (9, 12)
    dense_radius: tuple[float, float] = (8, 15)
    close_up_share: float = 0.03
    close_up_radius: tuple[float, float] = (56, 72)
    clutter: int = 6
    clutter_on_top: bool = False
    visible: float = 0.6
    contrast: float = 210
    texture: float = 1.0
    noise: tuple[float, float] = (2, 8)


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


@dataclass(frozen=True)
class _Scene:
    """One finished picture: pixels, which object each pixel shows, and what follows from that."""

    image: NDArray[np.uint8]
    owner: NDArray[np.int8]
    boxes: Floats
    labels: NDArray[np.int64]
    area: Floats


class Shapes:
    """Circles, squares, triangles, stars, crosses and rings on textured grounds, among clutter that resembles them.

    Every image depends on `(seed, split, difficulty, size, index)` only, never on the order of access. Images are
    drawn when first asked for (2 ms) and kept (about 65 KB each at 128 pixels).

    A mask holds the pixels where the object is seen; boxes are tight around the mask and areas count its pixels, as in
    COCO. At the default size of 128 pixels `normal` gives 2-8 objects of radius 9-32 in most images, 9-12 small ones in
    4 % and a single close-up in 3 %. By COCO's measure (32 x 32, 96 x 96 pixels) about three fifths of the objects are
    small, two fifths medium, and most close-ups large (about 0.4 %); a larger `size` shifts this upwards.
    `easy` has 1-4 objects, no clutter and calm grounds. `hard` has up to 15, from radius 6, under and over clutter,
    with less contrast.

    Args:
        split: two disjoint sets, `train` or `val`.
        images: how many; 4,000 and 400 by default.
        size: side of the square images in pixels, 32 to 2048.
        difficulty: see above.
        seed: another seed, other images.

    Raises:
        ConfigError: unknown split or difficulty.
        DataError: a number out of its range.
    """

    classes: tuple[str, ...] = tuple(OUTLINES)
    category_ids: tuple[int, ...] = tuple(range(1, len(OUTLINES) + 1))

    def __init__(
        self,
        split: Literal["train", "val"] = "train",
        images: int | None = None,
        size: int = REFERENCE_SIZE,
        difficulty: Literal["easy", "normal", "hard"] = "normal",
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
        self._scenes: dict[int, _Scene] = {}

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

    def _scene(self, index: int) -> _Scene:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index}: {self.name} has images 0..{len(self) - 1}")
        scene = self._scenes.get(index)
        if scene is None:
            rng = np.random.default_rng((*self._entropy, index))
            scene = self._scenes[index] = _Painter(rng, self.size, self.difficulty).paint()
        return scene


class _Painter:
    """Draws one scene from back to front."""

    def __init__(self, rng: np.random.Generator, size: int, difficulty: Difficulty) -> None:
        self.rng, self.size, self.difficulty = rng, size, difficulty
        self.unit = size / REFERENCE_SIZE
        self.canvas = drawing.background(rng, size, difficulty.texture)
        self.owner = np.full((size, size), FREE, np.int8)
        self.areas: list[tuple[slice, slice]] = []
        self.full_area: list[int] = []
        self.visible_area: list[int] = []
        self.labels: list[int] = []

    def paint(self) -> _Scene:
        """The whole scene; at least one object."""
        radii = self._radii()
        clutter = int(self.rng.integers(0, self.difficulty.clutter + 1))
        objects = [True] * len(radii)
        order = np.array([False] * clutter + objects)
        if self.difficulty.clutter_on_top:
            self.rng.shuffle(order)
        for is_object in order:
            if is_object:
                self._add_object(radii.pop())
            else:
                self._add_clutter()
        while not self.labels:  # clutter or luck left no place for a single one
            self._add_object(self._log_uniform(self.difficulty.radius))
        noise = self.rng.standard_normal((self.size, self.size), dtype=np.float32)
        noise *= np.float32(self.rng.uniform(*self.difficulty.noise))
        self.canvas += noise
        return self._finish()

    def _log_uniform(self, bounds: tuple[float, float]) -> float:
        return math.exp(self.rng.uniform(math.log(bounds[0]), math.log(bounds[1]))) * self.unit

    def _radii(self) -> list[float]:
        """How many objects, and how large."""
        d = self.difficulty
        kind = self.rng.random()
        if kind < d.close_up_share:
            return [self._log_uniform(d.close_up_radius)]
        dense = kind < d.close_up_share + d.dense_share
        low, high = d.dense_count if dense else d.count
        count = int(self.rng.integers(low, high + 1))
        return [self._log_uniform(d.dense_radius if dense else d.radius) for _ in range(count)]

    def _add_object(self, radius: float) -> None:
        """Place one object if there is room for it."""
        label = int(self.rng.integers(len(OUTLINES)))
        piece = _Piece(self.rng, list(OUTLINES.values())[label], radius)
        full = np.count_nonzero(piece.inside)
        margin = min(0.75 * radius, 0.45 * self.size)
        for _ in range(PLACEMENT_TRIES):
            window = piece.place(self.rng.uniform(margin, self.size - margin, 2), self.size)
            seen = np.count_nonzero(window.inside)
            if seen >= self.difficulty.visible * full and self._hide(window):
                self._put(piece, window, len(self.labels))
                self.labels.append(label)
                self.areas.append(window.area)
                self.full_area.append(full)
                self.visible_area.append(seen)
                return

    def _add_clutter(self) -> None:
        """Place one thing that is no object."""
        piece = _Piece(self.rng, _clutter_outline(self.rng), self._log_uniform((7, 20)))
        window = piece.place(self.rng.uniform(0, self.size, 2), self.size)
        if self._hide(window):
            self._put(piece, window, FREE)

    def _hide(self, window: _Window) -> bool:
        """Count what a new piece hides of earlier objects; False, and nothing changed, if that is too much of one."""
        under = self.owner[window.area]
        if not self.labels or under.max() == FREE:
            return True
        hidden = np.bincount(((under + 1) * window.inside).ravel(), minlength=len(self.labels) + 1)[1:].tolist()
        left = [visible - lost for visible, lost in zip(self.visible_area, hidden, strict=True)]
        least = self.difficulty.visible
        if any(lost and area < least * full for lost, area, full in zip(hidden, left, self.full_area, strict=True)):
            return False
        self.visible_area = left
        return True

    def _put(self, piece: _Piece, window: _Window, number: int) -> None:
        """Blend a piece into the canvas and write its number into the owner map."""
        under = self.canvas[:, *window.area]
        red, green, blue = under[:, ::3, ::3].mean((1, 2)).tolist()
        ground = (red, green, blue)
        color = drawing.contrasting_color(self.rng, [ground], self.difficulty.contrast)
        second = drawing.contrasting_color(self.rng, [color, ground], self.difficulty.contrast / 2)
        share = drawing.pattern(self.rng, piece.x[window.cut], piece.y[window.cut])
        distance = piece.distance[window.cut]
        # Darker towards the lower right and in a thin rim, so that neighbours of one colour stay apart.
        shade = np.float32(0.94) - piece.light[window.cut] * np.float32(0.14)
        shade *= np.float32(1) - np.float32(0.35) * drawing.unit(distance + np.float32(2))
        alpha = drawing.unit(np.float32(0.5) - distance)
        shade *= alpha
        alpha = np.float32(1) - alpha
        for channel, plane in enumerate(under):
            plane *= alpha
            if share is None:
                plane += shade * np.float32(color[channel])
            else:
                plane += shade * (np.float32(color[channel]) + share * np.float32(second[channel] - color[channel]))
        np.copyto(self.owner[window.area], number, where=window.inside)

    def _finish(self) -> _Scene:
        boxes: list[tuple[int, int, int, int]] = []
        for number, (down, across) in enumerate(self.areas):
            mask = self.owner[down, across] == number
            columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            left, top = across.start, down.start
            boxes.append((left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1))
        pixels = np.minimum(np.maximum(self.canvas, 0), 255).astype(np.uint8)
        return _Scene(
            image=np.ascontiguousarray(pixels.transpose(1, 2, 0)),
            owner=self.owner,
            boxes=np.array(boxes, np.float32),
            labels=np.array(self.labels, np.int64),
            area=np.array(self.visible_area, np.float32),
        )


@dataclass(frozen=True)
class _Window:
    """Where a placed piece lies: its part of the canvas, its own part that is inside, and that part's pixels."""

    area: tuple[slice, slice]
    cut: tuple[slice, slice]
    inside: NDArray[np.bool_]


class _Piece:
    """An outline at some size and angle, drawn once, then tried at several places."""

    def __init__(self, rng: np.random.Generator, outline: Outline, radius: float) -> None:
        self.reach = math.ceil(1.15 * radius) + 1
        axis = np.arange(-self.reach, self.reach + 1, dtype=np.float32)
        phase = rng.uniform(-0.5, 0.5, 2).astype(np.float32)
        angle = rng.uniform(0, 2 * math.pi)
        c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        right, down = (axis - phase[0])[None, :], (axis - phase[1])[:, None]
        self.x, self.y = c * right + s * down, c * down - s * right
        r = np.float32(radius)
        self.distance = outline(self.x / r, self.y / r) * r
        self.inside = self.distance <= 0
        self.light = (right + down) / (2 * r)

    def place(self, centre: NDArray[np.float64], size: int) -> _Window:
        """The window with the centre at (x, y), cut at the border of an image of `size`."""
        left, top = (int(round(c)) - self.reach for c in centre)
        side = 2 * self.reach + 1
        area = slice(max(top, 0), min(top + side, size)), slice(max(left, 0), min(left + side, size))
        cut = slice(area[0].start - top, area[0].stop - top), slice(area[1].start - left, area[1].stop - left)
        return _Window(area, cut, self.inside[cut])


def _clutter_outline(rng: np.random.Generator) -> Outline:
    """Half an object, an arc, a lump, a line, or strokes as of a letter."""
    makers: tuple[Callable[[], Outline], ...] = (
        lambda: drawing.half(list(OUTLINES.values())[rng.integers(len(OUTLINES))], rng.uniform(-0.1, 0.15)),
        lambda: drawing.half(drawing.ring, rng.uniform(-0.3, 0.4)),
        lambda: drawing.blob(rng.uniform(0.1, 0.2, 3).astype(np.float32), rng.uniform(0, 6.3, 3).astype(np.float32)),
        lambda: drawing.stroke(-1, 0, 1, 0, rng.uniform(0.06, 0.14)),
        lambda: _letter(rng),
    )
    return makers[rng.integers(len(makers))]()


def _letter(rng: np.random.Generator) -> Outline:
    """Strokes between points of a small grid: L, V, T, Z, N or an arch."""
    grid = {"a": (-0.5, -0.8), "b": (0.0, -0.8), "c": (0.5, -0.8), "d": (-0.5, 0.8), "e": (0.0, 0.8), "f": (0.5, 0.8)}
    letters = ("adf", "aec", "acbe", "acdf", "dafc", "dacf")
    points = [grid[name] for name in letters[rng.integers(len(letters))]]
    width = rng.uniform(0.12, 0.2)
    return drawing.union([drawing.stroke(*a, *b, width) for a, b in pairwise(points)])
