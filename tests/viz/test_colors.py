"""Colours: one per head, apart from each other, readable."""

from __future__ import annotations

import itertools

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
