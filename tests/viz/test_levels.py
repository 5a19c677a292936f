"""Every cell of every level shows the length of its vector, where it lies in the image."""

from __future__ import annotations

import numpy as np
import pytest
import viz_case

from codetr_lab.viz import levels_figure, votes_figure


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


def test_votes_are_written_into_the_cells_that_have_one() -> None:
    votes = np.zeros((5, 8), dtype=int)
    votes[4, 0], votes[1, 2] = 3, 1
    figure = votes_figure(viz_case.picture(), votes, 3, target=viz_case.target(), title="votes")
    cells = figure.data[0]
    shown = viz_case.array(cells.z)
    assert np.isfinite(shown).sum() == 2 and (shown[4, 0], shown[1, 2]) == (3, 1)
    assert (cells.text[4][0], cells.text[1][2], cells.text[0][0]) == ("3", "1", "")
    assert (cells.x0, cells.dx, cells.y0, cells.dy) == (3.75, 7.5, 4, 8)
    with pytest.raises(ValueError, match="votes from 0 to 3, but there are 2 heads"):
        votes_figure(viz_case.picture(), votes, 2)
