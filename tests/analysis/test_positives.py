"""Positives per object, counted by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from codetr_lab.analysis import AnalysisError, PositivesCounter, positives_per_object
from codetr_lab.structures import Assignment, Candidates, HeadOutput, ImageBatch, Quality, QueryGroup, Target, Trace


def target(count: int, crowd: int = 0) -> Target:
    return {
        "boxes": torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(count, 1),
        "labels": torch.zeros(count, dtype=torch.long),
        "iscrowd": torch.arange(count) < crowd,
    }


def assignment(truth: Target, gt_index: list[int], unused: tuple[int, ...] = ()) -> Assignment:
    used = torch.ones(len(gt_index), dtype=torch.bool)
    used[list(unused)] = False
    candidates = Candidates.of_boxes(torch.zeros(len(gt_index), 4))
    threshold = torch.zeros(len(truth["boxes"]))
    return Assignment(candidates, truth, torch.tensor(gt_index), used, Quality("IoU", True), threshold, "by hand")


def trace(targets: list[Target] | None, last_layer: list[Assignment], heads: dict[str, list[Assignment]]) -> Trace:
    none = torch.zeros(2, 1, 3, 4)
    # The first layer is matched to nothing, so that a mistaken layer would show.
    first = [assignment(a.target, [-1] * len(a.gt_index)) for a in last_layer]
    groups = {"original": QueryGroup("original", none, none, none, none[0], [first, last_layer])}
    batch = ImageBatch.from_images([torch.zeros(3, 8, 8)] * len(targets or [0]))
    outputs = {name: HeadOutput(name, assignments=given) for name, given in heads.items()}
    return Trace(batch, targets, [], [], (), None, groups, outputs, {}, [])


def test_last_layer_and_every_head_over_all_images():
    two, one = target(2), target(1)
    last = [assignment(two, [0, -1, 1]), assignment(one, [-1, 0, -1])]
    atss = [assignment(two, [0, 0, 0, 1, -1]), assignment(one, [0, 0, -2, -1, -1])]
    rcnn = [assignment(two, [0, 0, 1], unused=(1,)), assignment(one, [0, 0, 0], unused=(0, 2))]
    made = trace([two, one], last, {"atss": atss, "faster_rcnn": rcnn})
    assert positives_per_object(made) == {"original": 1.0, "atss": 2.0, "faster_rcnn": 1.0}


def test_the_counter_weighs_objects_not_batches():
    few, many = target(1), target(3)
    counter = PositivesCounter()
    counter.add(trace([few], [assignment(few, [0])], {"atss": [assignment(few, [0] * 9)]}))
    counter.add(trace([many], [assignment(many, [0, 1, 2])], {"atss": [assignment(many, [0, 1, 2])]}))
    assert counter.images == 2
    assert counter.result() == {"original": 1.0, "atss": 3.0}


def test_crowd_is_no_object_and_no_objects_give_nan():
    crowded = target(3, crowd=2)
    assert positives_per_object(trace([crowded], [assignment(crowded, [2, -1])], {})) == {"original": 1.0}
    empty = target(0)
    assert math.isnan(positives_per_object(trace([empty], [assignment(empty, [-1, -1])], {}))["original"])


def test_a_trace_without_targets_is_refused():
    with pytest.raises(AnalysisError, match="has no targets"):
        positives_per_object(trace(None, [], {}))


def test_objects_count_by_their_size_in_the_file():
    truth = target(3, crowd=1)
    truth["boxes"] = torch.tensor([[0.0, 0.0, 90.0, 90.0], [0.0, 0.0, 60.0, 60.0], [0.0, 0.0, 80.0, 80.0]])
    made = trace([truth], [assignment(truth, [1, 2])], {"atss": [assignment(truth, [1, 1, 1, 2])]})
    counter = PositivesCounter()
    counter.add(made)
    assert counter.by_size()["atss"]["medium"] == 2  # the crowd is no object
    assert math.isnan(counter.by_size()["atss"]["small"])
    # the same image at twice its size in the file: 120 x 120 and 160 x 160 pixels
    halved = PositivesCounter()
    halved.add(dataclasses.replace(made, batch=dataclasses.replace(made.batch, scales=((0.5, 0.5),))))
    assert halved.by_size()["atss"]["large"] == 2
    assert halved.result() == counter.result() == {"original": 1.0, "atss": 2.0}
