"""Claims of heads, cell by cell, and where they contradict each other."""

from __future__ import annotations

import pytest
import torch

from codetr_lab.analysis import AnalysisError, disputed, head_claims
from codetr_lab.models.presets import create_model
from codetr_lab.structures import ImageBatch

TARGET = {"boxes": torch.tensor([[8.0, 8, 56, 56], [70, 60, 110, 120]]), "labels": torch.tensor([0, 3])}


def table(*rows: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def test_a_cell_is_disputed_unless_all_say_the_same() -> None:
    first = table((0, 0), (1, 0), (1, 0), (1, 0), (1, 1))
    second = table((0, 0), (1, 0), (0, 0), (0, 1), (1, 0))
    assert disputed([first, second]).tolist() == [False, False, True, True, True]
    assert not disputed([first, first, first]).any()
    assert not disputed([first]).any()


def test_claims_are_the_assignments_cell_by_cell() -> None:
    torch.manual_seed(0)
    model = create_model("lab_co_k2", aux_heads=("atss", "retinanet", "faster_rcnn", "atss")).eval()
    batch = ImageBatch.from_images([torch.randn(3, 128, 128)] * 2)
    trace = model.trace(batch, [TARGET, TARGET])
    claims = head_claims(trace, image=1)
    cells = 16**2 + 8**2 + 4**2 + 2**2
    assert {name: tuple(one.shape) for name, one in claims.items()} == {
        name: (cells, 2) for name in ("atss", "retinanet", "faster_rcnn", "atss_2")
    }
    atss = trace.heads["atss"].assignments[1]
    assert torch.equal(claims["atss"].any(1), atss.positive)  # one anchor per cell
    assert not disputed([claims["atss"], claims["atss_2"]]).any()
    for name, assignment in {
        "retinanet": trace.heads["retinanet"].assignments[1],
        "faster_rcnn": trace.heads["faster_rcnn"].stages["rpn"][1],
    }.items():  # several anchors per cell: each positive's own place says the same
        positive = assignment.positive
        centres = (assignment.candidates.boxes[:, :2] + assignment.candidates.boxes[:, 2:]) / 2
        place = (centres / assignment.candidates.stride[:, None]).round().long()
        level = assignment.candidates.level
        side = torch.tensor([16, 8, 4, 2])
        start = torch.tensor([0, 256, 320, 336])
        cell = start[level] + place[:, 1] * side[level] + place[:, 0]
        expected = torch.zeros(cells, 2, dtype=torch.bool)
        expected[cell[positive], assignment.gt_index[positive]] = True
        assert torch.equal(claims[name], expected)
        assert expected.any()


def test_without_targets_or_heads_there_are_no_claims() -> None:
    batch = ImageBatch.from_images([torch.zeros(3, 128, 128)])
    for trace in (
        create_model("lab_co_k1").eval().trace(batch),
        create_model("lab_baseline").eval().trace(batch, [TARGET]),
    ):
        with pytest.raises(AnalysisError, match="auxiliary heads and targets"):
            head_claims(trace)
