"""Outlines, textures and backgrounds of the generated images: arrays in, arrays out, nothing about objects."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Outline = Callable[[Floats, Floats], Floats]
"""Signed distance to an outline from local coordinates (x, y), in units of the radius; negative inside."""


def circle(x: Floats, y: Floats) -> Floats:
    return np.hypot(x, y) - np.float32(0.95)


def square(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.8)


def triangle(x: Floats, y: Floats) -> Floats:
    sides = np.maximum(np.abs(x) * np.float32(0.8660254) + y * np.float32(0.5), -y)
    return sides - np.float32(0.55)


def star(x: Floats, y: Floats) -> Floats:
    """Five points: folded into one tenth of the plane, where the outline is one straight edge."""
    fifth = np.float32(2 * np.pi / 5)
    distance, angle = np.hypot(x, y), np.arctan2(x, y)
    angle -= fifth * np.rint(angle / fifth)
    u: Floats = distance * np.cos(angle)
    v: Floats = distance * np.sin(np.abs(angle))
    outer, inner = 1.1, 0.5
    edge_u, edge_v = inner * math.cos(math.pi / 5) - outer, inner * math.sin(math.pi / 5)
    length = math.hypot(edge_u, edge_v)
    return (u - np.float32(outer)) * np.float32(edge_v / length) - v * np.float32(edge_u / length)


def cross(x: Floats, y: Floats) -> Floats:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - np.float32(0.98), np.minimum(x, y) - np.float32(0.32))


def ring(x: Floats, y: Floats) -> Floats:
    return np.abs(np.hypot(x, y) - np.float32(0.76)) - np.float32(0.22)


def stroke(x0: float, y0: float, x1: float, y1: float, width: float) -> Outline:
    """A line with round ends from (x0, y0) to (x1, y1)."""
    dx, dy = x1 - x0, y1 - y0
    square_length = max(dx * dx + dy * dy, 1e-6)

    def distance(x: Floats, y: Floats) -> Floats:
        along = (((x - x0) * dx + (y - y0) * dy) / square_length).clip(0, 1)
        return np.hypot(x - x0 - along * dx, y - y0 - along * dy) - np.float32(width)

    return distance


def union(parts: list[Outline]) -> Outline:
    """All points that are in any of the parts."""
    return lambda x, y: np.minimum.reduce([part(x, y) for part in parts])


def blob(amplitudes: Floats, phases: Floats) -> Outline:
    """A lumpy disc whose radius swings with the angle 2, 3, ... times around."""

    def distance(x: Floats, y: Floats) -> Floats:
        angle = np.arctan2(y, x)
        radius = np.full_like(x, 0.66)
        for times, (amplitude, phase) in enumerate(zip(amplitudes, phases, strict=True), start=2):
            radius += amplitude * np.cos(times * angle + phase)
        return (np.hypot(x, y) - radius) * np.float32(0.8)  # not an exact distance; 0.8 keeps the edge as soft

    return distance


def half(outline: Outline, offset: float) -> Outline:
    """The part of an outline on the side of smaller y of the line y = offset."""
    return lambda x, y: np.maximum(outline(x, y), y - np.float32(offset))


Color = tuple[float, float, float]
"""Red, green, blue in 0..255."""


def random_color(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Color:
    """A colour of any hue, with saturation and value (0..1) from the given ranges."""
    hue, s, v = rng.random(3).tolist()
    s = saturation[0] + s * (saturation[1] - saturation[0])
    v = value[0] + v * (value[1] - value[0])
    red, green, blue = colorsys.hsv_to_rgb(hue, s, v)
    return 255 * red, 255 * green, 255 * blue


def color_distance(a: Color, b: Color) -> float:
    """How different two colours look, 0 to about 765 (the "redmean" weights: green counts most)."""
    mean_red = (a[0] + b[0]) / 2
    red, green, blue = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return math.sqrt((2 + mean_red / 256) * red**2 + 4 * green**2 + (2 + (255 - mean_red) / 256) * blue**2)


def contrasting_color(rng: np.random.Generator, others: list[Color], distance: float) -> Color:
    """A lively colour at least `distance` from each of `others`; of 12 tries the farthest if none is that far."""
    best, best_distance = (0.0, 0.0, 0.0), -1.0
    for _ in range(12):
        color = random_color(rng, (0.25, 1.0), (0.3, 1.0))
        nearest = min(color_distance(color, other) for other in others)
        if nearest > best_distance:
            best, best_distance = color, nearest
        if best_distance >= distance:
            break
    return best


def unit(values: Floats) -> Floats:
    """`values` clamped to 0..1 in place."""
    np.maximum(values, 0, out=values)
    return np.minimum(values, 1, out=values)


def from_nearest(values: Floats) -> Floats:
    """Distance to the nearest whole number, -0.5..0.5, in place."""
    values -= np.rint(values)
    return values


def stripes(u: Floats, period: float) -> Floats:
    """Soft-edged stripes across u (pixels): 0..1, half of each."""
    wave = np.abs(from_nearest(u / np.float32(period)))
    wave *= np.float32(period)
    wave -= np.float32(period / 4 - 0.5)
    return unit(wave)


@lru_cache(maxsize=64)
def _upsampling(cells: int, size: int) -> Floats:
    """(size, cells+3) weights of uniform cubic B-splines, which make smooth hills from random numbers."""
    position = (np.arange(size) + 0.5) / size * cells
    base = np.floor(position).astype(int)
    t = position - base
    weights = np.zeros((size, cells + 3), np.float32)
    basis = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    for k, weight in enumerate(basis):
        weights[np.arange(size), base + k] = weight / 6
    weights.setflags(write=False)
    return weights


def smooth_noise(rng: np.random.Generator, cells: int, size: int) -> Floats:
    """(size,size) smooth hills, about `cells` of them across; mean 0, standard deviation about 0.5."""
    weights = _upsampling(cells, size)
    heights = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    return np.matmul(np.matmul(weights, heights), weights.T)


def background(rng: np.random.Generator, size: int, texture: float) -> Floats:
    """(3,size,size) a coloured, softly lit, textured ground, around 0..255.

    Args:
        texture: the strength of hills and weave; 0 is a plain colour, 1 the normal strength.
    """
    base = random_color(rng, (0.05, 0.65), (0.2, 0.92))
    other = random_color(rng, (0.1, 0.7), (0.2, 0.9))
    hills = smooth_noise(rng, int(rng.integers(2, 6)), size)
    light = smooth_noise(rng, int(rng.integers(8, 20)), size) * np.float32(16)
    if rng.random() < 0.4:  # a weave of fine lines, as wood or cloth has
        angle = rng.uniform(0, np.pi)
        axis = np.arange(size, dtype=np.float32)
        u = np.float32(np.cos(angle)) * axis[None, :] + np.float32(np.sin(angle)) * axis[:, None]
        u += hills * np.float32(rng.uniform(0, 10))
        light += (stripes(u, rng.uniform(5, 16)) - np.float32(0.5)) * np.float32(rng.uniform(6, 22))
    pixels = np.empty((3, size, size), np.float32)
    for channel, plane in enumerate(pixels):
        np.multiply(hills, np.float32(0.42 * (other[channel] - base[channel])), out=plane)
        plane += light
        plane *= np.float32(texture)
        plane += np.float32(base[channel])
    return pixels


def pattern(rng: np.random.Generator, x: Floats, y: Floats, radius: float) -> Floats | None:
    """(h,w) share of the second colour (0..1) on an object's surface; None for a plain one.

    Striped, checked, dotted or speckled, along the object's own (rotated) coordinates x, y in units of its `radius`,
    which is in pixels.
    """
    kind = rng.random()
    if kind < 0.35:
        return None
    if kind > 0.88:
        return rng.random(x.shape, dtype=np.float32) * np.float32(0.6)
    x, y = x * np.float32(radius), y * np.float32(radius)
    period = rng.uniform(5, 11)
    if kind < 0.65:
        return stripes(x, period)
    if kind < 0.75:
        return np.abs(stripes(x, 1.3 * period) - stripes(y, 1.3 * period))
    u, v = from_nearest(x / np.float32(period)), from_nearest(y / np.float32(period))
    return unit(np.float32(0.28 * period + 0.5) - np.hypot(u, v) * np.float32(period))
