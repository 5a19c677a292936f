"""The nouns: conversions, moves, and what an assignment says of itself."""

from __future__ import annotations

import pytest
import torch

from codetr_lab import draws
from codetr_lab.structures import (
    IGNORED,
    NEGATIVE,
    Assignment,
    Candidates,
    Detections,
    ImageBatch,
    Quality,
)

TARGET = {"boxes": torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 20]]), "labels": torch.tensor([2, 4])}


def assignment(gt_index: list[int], valid: list[bool] | None = None) -> Assignment:
    """A record of four candidates."""
    candidates = Candidates.of_boxes(torch.zeros(4, 4), level=1, stride=8)
    if valid is not None:
        candidates = Candidates(candidates.boxes, candidates.level, candidates.stride, torch.tensor(valid))
    index = torch.tensor(gt_index)
    return Assignment(candidates, TARGET, index, torch.tensor([True, True, False, True]), Quality("IoU", True),
                      torch.tensor([0.5, 0.5]), "rule")  # fmt: skip


def test_an_assignment_reads_its_labels_boxes_and_counts_off_the_index() -> None:
    record = assignment([1, NEGATIVE, 0, IGNORED])
    assert record.positive.tolist() == [True, False, True, False]
    assert record.negative.tolist() == [False, True, False, False]
    assert record.ignored.tolist() == [False, False, False, True]
    assert record.labels.tolist() == [4, -1, 2, -1]
    assert record.target_boxes[0].tolist() == [5, 5, 20, 20]
    assert record.target_boxes[1].tolist() == [0, 0, 0, 0]
    assert record.count_per_object().tolist() == [0, 1]  # candidate 2 was not used


def test_explain_names_padding_and_wrong_indices() -> None:
    record = assignment([NEGATIVE] * 4, valid=[True, False, True, True])
    assert "padding" in record.explain(1)
    assert "no explanation" in record.explain(0)
    with pytest.raises(IndexError, match=r"candidate 4: this assignment has candidates 0\.\.3"):
        record.explain(4)


def test_records_move_and_detach_as_a_whole() -> None:
    record = assignment([0, 0, 0, 0])
    moved = record.to("meta")
    assert {x.device.type for x in (moved.gt_index, moved.candidates.boxes, moved.target["boxes"])} == {"meta"}
    leaf = torch.ones(1, 4, requires_grad=True)
    found = Detections(leaf * 2, torch.ones(1), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    assert not found.detach().boxes.requires_grad


def test_a_batch_pads_at_the_right_and_bottom() -> None:
    batch = ImageBatch.from_images([torch.ones(3, 4, 6), torch.ones(3, 5, 3)], divisor=4)
    assert batch.pixels.shape == (2, 3, 8, 8)
    assert batch.valid_sizes == ((4, 6), (5, 3))
    assert batch.padded_sizes == ((4, 8), (8, 4))
    assert (~batch.pad_mask).sum((1, 2)).tolist() == [24, 15]
    assert batch.pixels.sum() == 3 * 39
    assert batch.whwh().tolist() == [[6, 4, 6, 4], [3, 5, 3, 5]]
    assert len(batch.to("cpu")) == 2


def test_detections_go_to_the_file_s_pixels_and_to_coco() -> None:
    found = Detections(torch.tensor([[4.0, 2, 12, 40]]), torch.tensor([0.5]), torch.tensor([1]), torch.tensor([7]))
    original = found.to_original(scale=(2.0, 0.5), size=(60, 5))
    assert original.boxes.tolist() == [[2, 4, 5, 60]]
    assert found.to_coco(9, category_ids=[3, 8]) == [
        {"image_id": 9, "category_id": 8, "bbox": [4.0, 2.0, 8.0, 38.0], "score": 0.5}
    ]
    assert len(found.select(torch.tensor([False]))) == 0


def test_detections_become_supervision_s() -> None:
    pytest.importorskip("supervision")
    found = Detections(torch.ones(2, 4), torch.ones(2), torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert found.to_supervision().class_id.tolist() == [0, 1]


def test_choose_takes_all_the_first_or_a_reproducible_few() -> None:
    items = torch.arange(100, 150)
    assert torch.equal(draws.choose(items, 60), items)
    with draws.first_k():
        assert torch.equal(draws.choose(items, 3), items[:3])
    one, two = (draws.choose(items, 10, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)
    assert len(set(one.tolist())) == 10
