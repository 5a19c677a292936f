"""Every cell of every level shows the length of its vector, where it lies in the image."""

from __future__ import annotations

import numpy as np
import pytest
import viz_case

from codetr_lab.viz import levels_figure


def test_cells_show_lengths_where_they_lie() -> None:
    fine, coarse = np.zeros((2, 5, 8)), np.ones((2, 2, 3))
    fine[:, 4, 0] = (3, 4)
    figure = levels_figure(viz_case.picture(), [fine, coarse], (8, 16))
    first, second = figure.data
    assert viz_case.array(first.z)[4, 0] == 5 and viz_case.array(first.z).sum() == 5
    assert viz_case.array(second.z) == pytest.approx(np.sqrt(2), abs=1e-4)
    assert (first.x0, first.dx, first.y0, first.dy) == (3.75, 7.5, 4, 8)
    assert [note.text for note in figure.layout.annotations] == [
        "<b>F_1: 5 x 8, stride 8</b>", "<b>F_2: 2 x 3, stride 16</b>",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="2 levels, but 1 strides"):
        levels_figure(viz_case.picture(), [fine, coarse], (8,))
