"""Right, false and missed in the figure are what the verdicts say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import viz_case

from codetr_lab.analysis.verdicts import verdicts
from codetr_lab.viz import verdict_figure


def test_right_false_and_missed() -> None:
    found, target = viz_case.detections(), viz_case.target()
    figure = verdict_figure(
        viz_case.picture(), found, verdicts(found, target), target, "atss", classes=viz_case.CLASSES
    )
    names = {trace.name for trace in figure.data if trace.showlegend}
    assert names == {"right · 2", "false · 1"}
    assert [note.text for note in figure.layout.annotations] == ["circle 0.20", "square 0.50", "star 0.90"]
    nothing = found.select(torch.zeros(3, dtype=torch.bool))
    empty = verdict_figure(viz_case.picture(), nothing, verdicts(nothing, target), target, "atss")
    assert [note.text for note in empty.layout.annotations] == ["missed class 2", "missed class 1"]
    with pytest.raises(ValueError, match="verdicts on 3 detections, but there are 0"):
        verdict_figure(viz_case.picture(), nothing, verdicts(found, target), target, "atss")


def test_an_object_is_found_once_and_by_its_class_alone() -> None:
    target = viz_case.target()
    found = viz_case.detections()
    twice = replace(found, boxes=torch.cat([target["boxes"][[0, 0]], found.boxes[2:]]), labels=torch.tensor([2, 2, 0]))
    judged = verdicts(twice, target)
    assert judged.gt_index.tolist() == [0, -1, -1]
    assert judged.right.tolist() == [True, False, False] and judged.false.tolist() == [False, True, True]
    assert judged.iou.tolist() == pytest.approx([1, 1, 0], abs=1e-5)
    assert judged.missed.tolist() == [False, True]
    wrong = verdicts(replace(twice, labels=torch.tensor([1, 1, 1])), target)
    assert not wrong.right.any()


def test_the_better_score_takes_the_object_and_the_threshold_counts() -> None:
    target = viz_case.target()
    shifted = target["boxes"][:1] + torch.tensor([2.0, 0, 2, 0])  # IoU 14/18
    found = replace(
        viz_case.detections(), boxes=torch.cat([target["boxes"][:1], shifted, target["boxes"][1:]]),
        scores=torch.tensor([0.2, 0.9, 0.5]), labels=torch.tensor([2, 2, 1]),
    )  # fmt: skip
    assert verdicts(found, target).gt_index.tolist() == [-1, 0, 1]
    assert verdicts(found, target, iou=0.8).gt_index.tolist() == [0, -1, 1]


def test_crowds_count_neither_way() -> None:
    target = viz_case.target() | {"iscrowd": torch.tensor([True, False])}
    found = replace(viz_case.detections(), boxes=torch.tensor([[6.0, 6, 10, 10], [30, 10, 50, 30], [0, 0, 5, 5]]))
    judged = verdicts(found, target)
    assert judged.gt_index.tolist() == [-2, 1, -1]
    assert judged.missed.tolist() == [False, False]
