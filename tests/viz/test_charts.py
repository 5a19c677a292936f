"""Bars and curves hold the numbers that they were given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from codetr_lab.viz import colors, curves_figure, grouped_bars_figure, positives_bar, save_html

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_bars_are_the_counts() -> None:
    figure = positives_bar({"original": [1, 1], "atss": [4, 7]}, ["0 star", "1 ring"], "title")
    assert [list(bar.y) for bar in figure.data] == [[1, 1], [4, 7]]
    assert [bar.name for bar in figure.data] == ["DETR decoder", "ATSS"]
    assert [bar.marker.color for bar in figure.data] == [colors.head_color("original"), colors.head_color("atss")]
    assert figure.layout.yaxis.title.text == "positives"
    with pytest.raises(ValueError, match="atss: 1 counts for 2 objects"):
        positives_bar({"atss": [1]}, ["a", "b"])


def test_grouped_bars_are_the_numbers() -> None:
    values = {"formula": {"encoder": 20.0, "decoder": 3.0}, "compiled": {"encoder": 1.2345}}
    figure = grouped_bars_figure(values, "ms", bar_colors={"formula": "#123456"}, log=True, title="times")
    assert [(bar.name, list(bar.x), list(bar.y)) for bar in figure.data] == [
        ("formula", ["encoder", "decoder"], [20, 3]), ("compiled", ["encoder"], [1.2345]),
    ]  # fmt: skip
    assert figure.data[0].marker.color == "#123456"
    assert figure.data[1].text == ("1.23",)
    assert (figure.layout.yaxis.type, figure.layout.yaxis.title.text) == ("log", "ms")
    assert grouped_bars_figure(values, "ms").layout.yaxis.type is None


def test_curves_are_labelled() -> None:
    figure = curves_figure(
        {"K = 0": ([0, 1], [0.1, 0.2]), "K = 2": ([0, 1], [0.2, 0.4])}, "step", "AP", line_colors={"K = 2": "#123456"}
    )
    assert list(figure.data[1].y) == [0.2, 0.4]
    assert figure.data[1].line.color == "#123456"
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("step", "AP")
    with pytest.raises(ValueError, match="curve 'a': 2 x values for 1 y values"):
        curves_figure({"a": ([0, 1], [0])}, "x", "y")


def test_more_curves_than_colours_differ_by_dash() -> None:
    count = len(colors.HEAD_COLORS) + 1
    figure = curves_figure({str(i): ([0], [i]) for i in range(count)}, "x", "y")
    assert figure.data[0].line.color == figure.data[-1].line.color
    assert figure.data[0].line.dash != figure.data[-1].line.dash


@pytest.mark.browser
def test_a_legend_of_many_rows_meets_neither_title_nor_axis(browser_page: Page, tmp_path: Path) -> None:
    curves = {f"a curve with a long name, {i}": ([0, 1], [i, i + 1]) for i in range(12)}
    path = save_html(curves_figure(curves, "training step", "loss", title="a title"), tmp_path / "figure.html")
    browser_page.goto(path.as_uri())
    browser_page.wait_for_selector(".legend .traces >> nth=11")
    box = {
        name: browser_page.locator(name).first.bounding_box() for name in (".gtitle", ".legend", ".xtitle", ".nsewdrag")
    }
    title, legend, axis, plot = box.values()
    assert title and legend and axis and plot
    assert title["y"] + title["height"] <= plot["y"]
    assert axis["y"] + axis["height"] <= legend["y"]
    assert legend["height"] > 60 and plot["height"] > 60
