"""The assignment figure draws what the assignment says, and every marker knows its candidate."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import viz_case

from codetr_lab import boxes as box_ops
from codetr_lab.structures import NEGATIVE, Candidates, Quality
from codetr_lab.viz import assignment_figure, colors
from codetr_lab.viz.assignment import candidate_table, overlaps


def named(figure, start: str):
    (trace,) = [t for t in figure.data if t.mode == "markers" and t.name and t.name.startswith(start)]
    return trace


def candidates_of(trace) -> list[int]:
    return viz_case.array(trace.customdata)[:, 0].astype(int).tolist()


def test_each_candidate_is_drawn_once_where_it_is() -> None:
    figure = assignment_figure(viz_case.picture(), viz_case.assignment(), "atss", classes=viz_case.CLASSES)
    assert candidates_of(named(figure, "own box · 1")) == [0]
    assert candidates_of(named(figure, "stride 8 · 1")) == [1]
    assert candidates_of(named(figure, "stride 16 · 1")) == [2]
    assert candidates_of(named(figure, "negative · 1")) == [3]
    assert candidates_of(named(figure, "ignored · 1")) == [4]
    trace = named(figure, "stride 16")
    assert (viz_case.array(trace.x)[0], viz_case.array(trace.y)[0]) == (40, 19)
    assert trace.marker.symbol == colors.LEVEL_SYMBOLS[1]
    assert [note.text for note in figure.layout.annotations] == ["0 star", "1 square"]


def test_table_says_what_decided() -> None:
    table = candidate_table(viz_case.assignment())
    iou = float(box_ops.iou(torch.tensor([6.0, 4, 22, 20]), torch.tensor([4.0, 4, 20, 20])))
    np.testing.assert_allclose(table[1], [1, 8, iou, 0, 0.5, np.nan])
    np.testing.assert_allclose(table[3], [3, 8, 0, np.nan, np.nan, np.nan])
    about = candidate_table(viz_case.assignment(), object_index=1)
    np.testing.assert_allclose(about[1, 2:5], [0, 0, 0.6])


def test_scores_are_logits_per_class_or_objectness() -> None:
    made = viz_case.assignment()
    logits = replace(made.candidates, scores=torch.tensor([[0.0, -1.0]] * 5))
    assert candidate_table(replace(made, candidates=logits))[0, 5] == 0.5
    objectness = replace(made.candidates, scores=torch.full((5,), 0.25))
    assert candidate_table(replace(made, candidates=objectness))[0, 5] == 0.25


def test_hover_names_cost_instead_of_threshold_for_matching() -> None:
    matching = viz_case.assignment(quality=Quality("matching cost", higher_is_better=False))
    figure = assignment_figure(viz_case.picture(), matching, "original")
    hover = named(figure, "stride 16").hovertemplate
    assert "cost of its match %{customdata[4]" in hover
    assert "threshold" not in hover
    hover = named(assignment_figure(viz_case.picture(), viz_case.assignment(), "atss"), "stride 16").hovertemplate
    assert "threshold %{customdata[4]" in hover
    assert "score" not in hover


def test_one_object_alone_shows_its_boxes_and_fades_the_others() -> None:
    figure = assignment_figure(viz_case.picture(), viz_case.assignment(), "atss", object_index=1)
    assert candidates_of(named(figure, "stride 16 · 1")) == [2]
    assert candidates_of(named(figure, "other objects · 2")) == [0, 1]
    lines = [t for t in figure.data if t.mode == "lines" and t.name == "stride 16 · 1"]
    assert len(lines) == 2  # the box and its halo


def test_what_the_sampler_left_out_is_hollow() -> None:
    made = viz_case.assignment(used=torch.tensor([True, False, True, True, False]))
    figure = assignment_figure(viz_case.picture(), made, "faster_rcnn")
    assert candidates_of(named(figure, "not sampled · 1")) == [1]
    assert named(figure, "not sampled").marker.symbol == "circle-open"


def test_chosen_candidate_is_pointed_out() -> None:
    figure = assignment_figure(viz_case.picture(), viz_case.assignment(), "atss", selected=3)
    assert [t.name for t in figure.data if t.mode == "lines" and t.line.color == colors.SELECTED] == [
        "chosen candidate"
    ]


def test_wrong_choices_are_named() -> None:
    with pytest.raises(ValueError, match="object 2: this image has 2 objects"):
        assignment_figure(viz_case.picture(), viz_case.assignment(), "atss", object_index=2)
    with pytest.raises(ValueError, match="candidate 5: this assignment has 5 candidates"):
        assignment_figure(viz_case.picture(), viz_case.assignment(), "atss", selected=5)


def test_image_without_objects() -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    made = viz_case.assignment(target=nothing, gt_index=torch.full((5,), NEGATIVE), threshold=torch.zeros(0))
    assert np.isnan(overlaps(made)).all()
    figure = assignment_figure(viz_case.picture(), made, "atss")
    assert candidates_of(named(figure, "negative · 5")) == [0, 1, 2, 3, 4]


def test_padding_is_left_out() -> None:
    made = viz_case.assignment()
    valid = torch.tensor([True, True, True, False, True])
    figure = assignment_figure(
        viz_case.picture(), replace(made, candidates=replace(made.candidates, valid=valid)), "atss"
    )
    assert not [t for t in figure.data if t.name and t.name.startswith("negative")]


def test_twenty_thousand_candidates_stay_few_traces_and_quick() -> None:
    count = 20_000
    corner = torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * 40
    candidates = Candidates.of_boxes(torch.cat([corner, corner + 8], 1), 0, 8)
    made = viz_case.assignment(
        candidates=candidates, gt_index=torch.full((count,), NEGATIVE), used=torch.ones(count, dtype=torch.bool)
    )
    start = time.process_time()
    figure = assignment_figure(viz_case.picture(), made, "atss")
    text = figure.to_json()
    assert time.process_time() - start < 2
    assert named(figure, "negative").type == "scattergl"
    assert len(figure.data) < 10
    assert len(text) < 3_000_000


def test_centres_beyond_the_image_are_put_on_its_edge() -> None:
    made = viz_case.assignment()
    boxes = made.candidates.boxes.clone()
    boxes[3] = torch.tensor([-30.0, 10.0, 10.0, 500.0])
    height = viz_case.picture().shape[0]
    moved = replace(made, candidates=replace(made.candidates, boxes=boxes))
    trace = named(assignment_figure(viz_case.picture(), moved, "atss"), "negative")
    assert (viz_case.array(trace.x).tolist(), viz_case.array(trace.y).tolist()) == ([0], [height])


def test_a_negative_under_a_positive_does_not_answer_the_pointer() -> None:
    made = viz_case.assignment()
    boxes = made.candidates.boxes.clone()
    boxes[3] = boxes[2]
    figure = assignment_figure(
        viz_case.picture(), replace(made, candidates=replace(made.candidates, boxes=boxes)), "atss"
    )
    under = named(figure, "negative · 1")
    assert under.hoverinfo == "skip" and candidates_of(under) == [3] and under.showlegend
    assert named(figure, "stride 16 · 1").hoverinfo is None
