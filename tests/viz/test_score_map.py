"""Score maps, masks and curves: the numbers in the figures are those of Eq. 7 and 8."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import viz_case

from codetr_lab.analysis import foreground_from_boxes, iof_iob_curve
from codetr_lab.viz import colors, iof_iob_figure, mask_figure, score_map_figure
from codetr_lab.viz.score_map import KEPT, LEAKED, LOST, REMOVED, decimals, mask_kinds, point_at, thinned


@pytest.fixture
def scores() -> torch.Tensor:
    return torch.rand(40, 60, generator=torch.Generator().manual_seed(0)).mul(20).round() / 20  # with many ties


@pytest.fixture
def foreground() -> torch.Tensor:
    return foreground_from_boxes(viz_case.target()["boxes"], (40, 60))


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.3, 0.325, 0.5, 1.0, 2.0])
def test_point_and_mask_follow_equation_8(scores: torch.Tensor, foreground: torch.Tensor, threshold: float) -> None:
    curve = iof_iob_curve(scores, foreground)
    threshold = float(scores.double().flatten()[(scores - threshold).abs().argmin()]) if threshold == 0.3 else threshold
    exact = scores.double()
    iof = float((exact[foreground] > threshold).double().mean())
    iob = float((exact[~foreground] < threshold).double().mean())
    assert point_at(curve, threshold) == pytest.approx((iof, iob), abs=1e-12)
    kinds = mask_kinds(scores.numpy(), foreground.numpy(), threshold)
    assert (kinds == KEPT).sum() / foreground.sum() == pytest.approx(iof)
    assert set(np.unique(kinds[foreground.numpy()])) <= {KEPT, LOST}
    assert set(np.unique(kinds[~foreground.numpy()])) <= {LEAKED, REMOVED}


def test_mask_legend_says_which_share_is_wrong(scores: torch.Tensor, foreground: torch.Tensor) -> None:
    figure = mask_figure(viz_case.picture(), scores.numpy(), foreground.numpy(), 0.52, target=viz_case.target())
    names = [trace.name for trace in figure.data]
    lost = float((scores[foreground] <= 0.52).double().mean())
    leaked = float((scores[~foreground] > 0.52).double().mean())
    assert f"object below S · {lost:.0%}" in names
    assert f"background above S · {leaked:.0%}" in names
    # Padding counts in neither.
    valid = np.zeros((40, 60), dtype=bool)
    figure = mask_figure(viz_case.picture(), scores.numpy(), foreground.numpy(), 0.52, valid=valid)
    assert "object below S" in [trace.name for trace in figure.data]


def test_colours_span_the_maps_own_range(scores: torch.Tensor) -> None:
    narrow = 0.9 + scores.numpy() / 100
    valid = np.ones((40, 60), dtype=bool)
    valid[:, 50:] = False
    figure = score_map_figure(viz_case.picture(), narrow, valid=valid)
    heat = figure.data[0]
    assert (heat.zmin, heat.zmax) == pytest.approx((narrow[valid].min(), narrow[valid].max()))
    assert np.isnan(viz_case.array(heat.z)[:, 50:]).all()
    assert heat.x0 == 0.5 and heat.dx == 1
    with pytest.raises(ValueError, match=r"score_map has shape \(3, 3\)"):
        score_map_figure(viz_case.picture(), np.zeros((3, 3)))


def test_large_maps_are_thinned_and_still_cover_the_image() -> None:
    image = viz_case.picture(300, 500)
    heat = score_map_figure(image, np.zeros((300, 500))).data[0]
    rows, columns = np.shape(viz_case.array(heat.z))
    assert max(rows, columns) <= 160
    assert (rows * heat.dy, columns * heat.dx) == pytest.approx((300, 500))
    assert thinned(np.arange(9.0).reshape(3, 3)).shape == (3, 3)


def test_curves_carry_area_and_a_point(scores: torch.Tensor, foreground: torch.Tensor) -> None:
    curve = iof_iob_curve(scores, foreground)
    figure = iof_iob_figure({"a": curve, "b": curve}, thresholds={"a": 0.5}, line_colors={"a": "#123456"})
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert [line.name for line in lines] == [f"{name} · area {curve.area():.2f}" for name in "ab"]
    assert (lines[0].line.color, lines[1].line.color) == ("#123456", list(colors.HEAD_COLORS.values())[1])
    (point,) = [trace for trace in figure.data if trace.mode == "markers"]
    assert (point.y[0], point.x[0]) == pytest.approx(point_at(curve, 0.5))
    assert len(lines[0].x) <= 402


@pytest.mark.parametrize(("low", "high", "expected"), [(0, 1, 3), (0.83, 0.97, 3), (0.9988, 0.9999, 5), (2, 2, 3)])
def test_decimals_tell_a_hundredth_of_the_range(low: float, high: float, expected: int) -> None:
    digits = decimals(low, high)
    assert digits == expected
    steps = {f"{low + share / 100 * (high - low):.{digits}f}" for share in range(101)}
    assert len(steps) == (101 if high > low else 1)
