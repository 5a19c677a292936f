"""The base figure, boxes, labels, and figures side by side."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import viz_case
from PIL import Image

from codetr_lab.viz import colors, image_figure, object_names, side_by_side
from codetr_lab.viz.image import Marks, add_boxes, add_ground_truth, add_labels, centres, outline
from codetr_lab.viz.sketch import jpeg_uri


def test_image_is_one_jpeg_in_pixel_axes() -> None:
    picture = viz_case.picture(40, 60)
    figure = image_figure(picture, "title")
    (layer,) = figure.layout.images
    assert (layer.x, layer.y, layer.sizex, layer.sizey) == (0, 0, 60, 40)
    assert figure.layout.xaxis.range == (0, 60)
    assert figure.layout.yaxis.range == (40, 0)
    assert figure.layout.yaxis.scaleanchor == "x"
    assert figure.layout.title.text == "title"
    head, data = layer.source.split(",")
    assert head == "data:image/jpeg;base64"
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert decoded.shape == picture.shape


def test_wrong_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8, got \(4, 4\) float64"):
        jpeg_uri(np.zeros((4, 4)))


def test_outline_closes_each_rectangle() -> None:
    x, y = outline(np.array([[1, 2, 3, 4], [5, 6, 7, 8]]))
    np.testing.assert_array_equal(x, [1, 3, 3, 1, 1, np.nan, 5, 7, 7, 5, 5, np.nan])
    np.testing.assert_array_equal(y, [2, 2, 4, 4, 2, np.nan, 6, 6, 8, 8, 6, np.nan])
    assert [list(c) for c in centres(np.array([[1, 2, 3, 4]]))] == [[2], [3]]
    assert len(outline(np.zeros((0, 4)))[0]) == 0


def test_many_boxes_are_two_traces_drawn_by_webgl() -> None:
    sketch = image_figure.sketch(viz_case.picture())
    add_boxes(sketch, np.random.default_rng(0).random((5000, 4)), Marks("#000000"), "boxes")
    add_boxes(sketch, np.zeros((0, 4)), Marks("#000000"), "none")
    figure = sketch.figure()
    assert [trace.type for trace in figure.data] == ["scattergl", "scattergl"]
    assert len(viz_case.array(figure.data[1].x)) == 30_000


def test_labels_stay_inside() -> None:
    sketch = image_figure.sketch(viz_case.picture(40, 60))
    add_labels(sketch, np.array([[-3.0, -2, 10, 10], [50, 20, 70, 30]]), ["left", "right"], "#111111")
    left, right = sketch.figure().layout.annotations
    assert (left.x, left.y, left.xanchor, left.yanchor) == (0, 0, "left", "top")
    assert (right.x, right.y, right.xanchor, right.yanchor) == (60, 20, "right", "bottom")


def test_ground_truth_of_a_chosen_object() -> None:
    sketch = image_figure.sketch(viz_case.picture())
    add_ground_truth(sketch, viz_case.target(), viz_case.CLASSES, chosen=1)
    figure = sketch.figure()
    assert [note.text for note in figure.layout.annotations] == ["1 square"]
    assert any(trace.line.color == colors.GROUND_TRUTH for trace in figure.data)


def test_object_names() -> None:
    assert object_names(viz_case.target(), viz_case.CLASSES) == ["0 star", "1 square"]
    assert object_names(viz_case.target()) == ["0 (class 2)", "1 (class 1)"]


def test_side_by_side_keeps_every_trace_on_its_own_axes() -> None:
    figures = {}
    for name in ("one", "two"):
        sketch = image_figure.sketch(viz_case.picture())
        add_ground_truth(sketch, viz_case.target(), viz_case.CLASSES)
        figures[name] = sketch.figure()
    merged = side_by_side(figures)
    assert {trace.xaxis for trace in merged.data} == {"x", "x2"}
    assert len(merged.data) == sum(len(figure.data) for figure in figures.values())
    assert [layer.xref for layer in merged.layout.images] == ["x", "x2"]
    assert merged.layout.yaxis2.scaleanchor == "x2"
    assert merged.layout.xaxis.domain[1] < merged.layout.xaxis2.domain[0]
    assert [trace.name for trace in merged.data if trace.showlegend] == ["ground truth"]
    assert {note.text for note in merged.layout.annotations} >= {"<b>one</b>", "<b>two</b>"}
    with pytest.raises(ValueError, match="at least one figure"):
        side_by_side({})
