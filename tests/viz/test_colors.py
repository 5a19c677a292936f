"""Colours: one per head, apart from each other, readable."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from codetr_lab.viz import colors


def test_every_head_has_its_own_colour_and_title() -> None:
    assert set(colors.HEAD_COLORS) == set(colors.HEAD_TITLES)
    assert len(set(colors.HEAD_COLORS.values())) == len(colors.HEAD_COLORS)
    for a, b in itertools.combinations(colors.HEAD_COLORS.values(), 2):
        assert sum(abs(x - y) for x, y in zip(colors.rgb(a), colors.rgb(b), strict=True)) > 60, (a, b)


@pytest.mark.parametrize(
    ("name", "title", "like"),
    [
        ("original", "DETR decoder", "original"),
        ("detr", "DETR decoder", "original"),
        ("faster_rcnn", "Faster R-CNN", "faster_rcnn"),
        ("atss_2", "ATSS (2)", "atss"),
        ("group_2", "Group (2)", "group"),
    ],
)
def test_titles_and_repeats(name: str, title: str, like: str) -> None:
    assert colors.head_title(name) == title
    assert colors.head_color(name) == colors.HEAD_COLORS[like]


def test_unknown_heads_are_named() -> None:
    with pytest.raises(ValueError, match="no colour for head 'yolo'"):
        colors.head_color("yolo")
    with pytest.raises(ValueError, match="no title for head 'yolo'"):
        colors.head_title("yolo")


def test_shades_go_from_light_to_dark() -> None:
    assert colors.level_shades("#0072B2", 1) == ["#0072B2"]
    sums = [sum(colors.rgb(shade)) for shade in colors.level_shades("#0072B2", 4)]
    assert sums == sorted(sums, reverse=True)
    assert colors.shade("#0072B2", 1) == "#FFFFFF"
    assert colors.shade("#0072B2", -1) == "#000000"


def test_text_reads_on_its_ground() -> None:
    assert colors.text_on("#FFFFFF") == "#000000"
    assert colors.text_on("#0072B2") == "#FFFFFF"
    assert colors.text_on("#E69F00") == "#000000"


def test_every_head_of_the_package_has_a_colour() -> None:
    from codetr_lab.models.heads import HEADS

    assert set(HEADS) <= set(colors.HEAD_COLORS)
    assert colors.head_title("mask_rcnn_2") == "Mask R-CNN (2)"


# Machado, Oliveira and Fernandes (2009), complete deficiency, on linear RGB.
PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]


def cielab(color: str, vision: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of a colour as someone with that vision sees it."""
    share = np.array(colors.rgb(color)) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    seen = np.clip(vision @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ seen / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", [np.eye(3), np.array(PROTANOPIA), np.array(DEUTERANOPIA)])
def test_heads_are_told_apart_with_any_colour_vision(vision: np.ndarray) -> None:
    seen = {head: cielab(color, vision) for head, color in colors.HEAD_COLORS.items()}
    distances = {(a, b): np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(seen, 2)}
    closest = min(distances, key=distances.__getitem__)
    assert distances[closest] > 10, closest  # 2.3 is the smallest difference that people notice
