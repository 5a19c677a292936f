"""Paints one generated image: where objects go, what hides what, how they look."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from codetr_lab.data import drawing
from codetr_lab.data.drawing import Floats, Outline

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
    close_up_share: float = 0.04
    close_up_radius: tuple[float, float] = (62, 72)
    clutter: int = 6
    clutter_on_top: bool = False
    visible: float = 0.6
    contrast: float = 210
    texture: float = 1.0
    noise: tuple[float, float] = (2, 8)


@dataclass(frozen=True)
class Scene:
    """One finished picture: pixels, which object each pixel shows, and what follows from that."""

    image: NDArray[np.uint8]
    owner: NDArray[np.int8]
    boxes: Floats
    labels: NDArray[np.int64]
    area: Floats


class Painter:
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

    def paint(self) -> Scene:
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
        full = int(np.count_nonzero(piece.inside))
        margin = min(0.75 * radius, 0.45 * self.size)
        for _ in range(PLACEMENT_TRIES):
            window = piece.place(self.rng.uniform(margin, self.size - margin, 2), self.size)
            seen = int(np.count_nonzero(window.inside))
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
        sample = under[:, ::3, ::3]
        red, green, blue = (sample.sum((1, 2)) / sample[0].size).tolist()
        ground = (red, green, blue)
        color = drawing.contrasting_color(self.rng, [ground], self.difficulty.contrast)
        second = drawing.contrasting_color(self.rng, [color, ground], self.difficulty.contrast / 2)
        share = drawing.pattern(self.rng, piece.x[window.cut], piece.y[window.cut], float(piece.radius))
        alpha, shade = piece.cover(window.cut)
        shade *= alpha
        alpha = np.float32(1) - alpha
        shade_of_second = None if share is None else shade * share
        for plane, first, other in zip(under, color, second, strict=True):
            plane *= alpha
            plane += shade * np.float32(first)
            if shade_of_second is not None:
                plane += shade_of_second * np.float32(other - first)
        np.copyto(self.owner[window.area], number, where=window.inside)

    def _finish(self) -> Scene:
        boxes: list[tuple[int, int, int, int]] = []
        for number, (down, across) in enumerate(self.areas):
            mask = self.owner[down, across] == number
            columns, rows = np.flatnonzero(mask.any(0)).tolist(), np.flatnonzero(mask.any(1)).tolist()
            left, top = across.start, down.start
            boxes.append((left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1))
        pixels = np.clip(self.canvas, 0, 255, out=self.canvas).astype(np.uint8)
        return Scene(
            image=np.stack(list(pixels), axis=-1),
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
        c, s, r = (np.float32(value) for value in (math.cos(angle), math.sin(angle), radius))
        right, down = ((axis - phase[0]) / r)[None, :], ((axis - phase[1]) / r)[:, None]
        self.radius, self.right, self.down = r, right, down
        self.x, self.y = c * right + s * down, c * down - s * right
        self.distance = outline(self.x, self.y)
        self.distance *= r
        self.inside = self.distance <= 0

    def cover(self, cut: tuple[slice, slice]) -> tuple[Floats, Floats]:
        """(h,w) opacity, soft at the edge, and brightness of a part.

        Darker towards the lower right and in a thin rim, so that neighbours of one colour stay apart.
        """
        distance = self.distance[cut]
        rim = drawing.unit(distance + np.float32(2))
        rim *= np.float32(-0.35)
        rim += np.float32(1)
        rim *= (np.float32(0.94) - np.float32(0.07) * self.right[:, cut[1]]) - np.float32(0.07) * self.down[cut[0]]
        return drawing.unit(np.float32(0.5) - distance), rim

    def place(self, centre: NDArray[np.float64], size: int) -> _Window:
        """The window with the centre at (x, y), cut at the border of an image of `size`."""
        left, top = (round(c) - self.reach for c in centre.tolist())
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
