"""Cells hold their numbers, and points lie where the operator reads."""

from __future__ import annotations

import numpy as np
import pytest

from codetr_lab.viz import cells_figure


def test_cells_and_points() -> None:
    values = np.array([[0.0, 1, 2], [3, 4, 5]])
    figure = cells_figure(values, np.array([[0.5 / 3, 0.5 / 2], [1, 1]]), "a level")
    heat, *points = figure.data
    assert np.array_equal(heat.z, values)
    assert list(heat.text[1]) == ["3", "4", "5"]
    assert [point.name for point in points] == ["point 0", "point 1"]
    assert [point.x[0] for point in points] == pytest.approx([0, 2.5])  # middle of the first cell, edge of the last
    assert [point.y[0] for point in points] == pytest.approx([0, 1.5])
    assert points[0].marker.color != points[1].marker.color
    assert figure.layout.title.text == "a level"
    low, high = figure.layout.xaxis.range
    assert low < -0.5 and high > 2.5
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # row 0 on top


def test_points_outside_are_shown_and_none_is_fine() -> None:
    assert cells_figure(np.zeros((2, 3)), np.array([[1.5, -0.5]])).layout.xaxis.range[1] > 4
    assert len(cells_figure(np.zeros((2, 3))).data) == 1
    with pytest.raises(ValueError, match=r"\(H,W\) values and \(N,2\) points"):
        cells_figure(np.zeros(3))
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(1, 3\)"):
        cells_figure(np.zeros((2, 3)), np.zeros((1, 3)))
