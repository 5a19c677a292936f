"""Detections above a score."""

from __future__ import annotations

import viz_case

from codetr_lab.structures import Detections
from codetr_lab.viz import detection_figure, detections_figure


def markers(figure):
    return [t for t in figure.data if t.mode == "markers" and t.customdata is not None]


def test_score_is_a_lower_bound_that_counts() -> None:
    for threshold, expected in ((0.0, 3), (0.5, 2), (0.51, 1), (0.95, 0)):
        figure = detection_figure(
            viz_case.picture(), viz_case.detections(), "atss", threshold, classes=viz_case.CLASSES
        )
        rows = [row for trace in markers(figure) for row in viz_case.array(trace.customdata).tolist()]
        assert len(rows) == expected
        assert len(figure.layout.annotations) == expected


def test_labels_carry_class_and_score_best_on_top() -> None:
    figure = detection_figure(viz_case.picture(), viz_case.detections(), "atss", 0.3, classes=viz_case.CLASSES)
    assert [note.text for note in figure.layout.annotations] == ["square 0.50", "star 0.90"]
    (trace,) = markers(figure)
    assert viz_case.array(trace.customdata)[:, 0].tolist() == [7, 3]
    assert "ATSS · 2" in [t.name for t in figure.data if t.showlegend]
    plain = detection_figure(viz_case.picture(), viz_case.detections(), "atss", 0.8)
    assert plain.layout.annotations[0].text == "class 2 0.90"


def test_at_most_twelve_labels() -> None:
    one = viz_case.detections()
    many = Detections(
        one.boxes.repeat(20, 1), one.scores.repeat(20), one.labels.repeat(20), one.source_index.repeat(20)
    )
    figure = detection_figure(viz_case.picture(), many, "atss", 0)
    assert len(figure.layout.annotations) == 12
    assert len(viz_case.array(markers(figure)[0].customdata)) == 60


def test_heads_side_by_side_with_ground_truth() -> None:
    found = {"detr": viz_case.detections(), "atss": viz_case.detections()}
    figure = detections_figure(viz_case.picture(), found, 0.3, classes=viz_case.CLASSES, target=viz_case.target())
    assert {note.text for note in figure.layout.annotations} >= {"<b>DETR decoder</b>", "<b>ATSS</b>"}
    assert "ground truth" in [trace.name for trace in figure.data if trace.showlegend]
