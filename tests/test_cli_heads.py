"""`codetr models --heads` and `codetr data assign-stats`."""

from __future__ import annotations

import pytest
import torch

from codetr_lab.analysis.positives import PositivesCounter
from codetr_lab.analysis.rule_stats import UntrainedRules
from codetr_lab.assign import atss
from codetr_lab.cli import main
from codetr_lab.models.heads import HEADS
from codetr_lab.models.meta import head_cost
from codetr_lab.models.presets import create_model, preset
from codetr_lab.structures import ImageBatch


def test_models_heads_lists_every_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--heads", "--preset", "lab_co_k2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(HEADS)]] == list(HEADS)
    assert lines[0] == "for lab_co_k2, detecting in one image of 128 x 128 pixels"


def test_the_cost_of_a_head() -> None:
    cost, model = head_cost(preset("lab_co_k1"), (64, 64)), create_model("lab_co_k1")
    assert cost.head == sum(p.numel() for p in model.heads["atss"].parameters())
    assert cost.queries == sum(p.numel() for p in model.customizers["atss"].parameters())
    # two towers and 6 + 4 + 1 channels of 3 x 3, on 8 x 8 + 4 x 4 + 2 x 2 + 1 cells
    assert cost.multiply_adds == 85 * 9 * 64 * (2 * 64 + 11)


def test_assign_stats_prints_every_rule_by_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "assign-stats", "--limit", "2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "shapes, 2 images at 128 pixels, candidates of lab_co_k2"
    assert out[1].split()[-4:] == ["small", "medium", "large", "all"]
    assert [line.split()[0] for line in out[2:]] == ["atss", "fcos", "retinanet", "paa", "rpn", "objects"]
    assert sum(int(n) for n in out[-1].split()[1:4]) == int(out[-1].split()[4]) > 0


def test_untrained_rules_are_those_of_the_heads() -> None:
    model = create_model("lab_co_k1")
    batch = ImageBatch.from_images([torch.randn(3, 96, 128)])
    target = {"boxes": torch.tensor([[20.0, 30, 60, 70], [70, 10, 90, 30]]), "labels": torch.tensor([0, 1])}
    rules = UntrainedRules(model.config)
    assert rules.strides == model.strides
    found = rules.assign(batch, [target])
    (expected,) = model.eval().trace(batch, [target]).heads["atss"].assignments
    assert torch.equal(found["atss"][0].gt_index, expected.gt_index)
    assert torch.equal(atss(found["paa"][0].candidates, target).gt_index, expected.gt_index)
    counter = PositivesCounter()
    counter.add_assignment("atss", expected)
    assert counter.objects() == {"small": 1, "medium": 1, "large": 0}
    assert counter.result()["atss"] == int(expected.positive.sum()) / 2
