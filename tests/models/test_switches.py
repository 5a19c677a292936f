"""Table 9: auxiliary heads without customized queries, customized queries without the heads' losses, both, none."""

from __future__ import annotations

import pytest
import torch
from conftest_models import TWO, images, objects

from codetr_lab.models.config import ConfigError, override

SWITCHES = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize(("losses", "queries"), SWITCHES)
def test_each_switch_takes_its_losses_and_its_parameters_away(small, losses: bool, queries: bool) -> None:
    model = small(("atss",), aux_losses=losses, customized_queries=queries).train()
    for targets in (TWO, (objects(), objects())):
        model.zero_grad(set_to_none=True)
        found = model(images((64, 64), (64, 64)), targets)
        assert any(name.startswith("aux.atss") for name in found) == losses
        assert any(name.startswith("decoder.atss") for name in found) == queries
        sum(found.values()).backward()
        assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert ("heads" in trained, "customizers" in trained) == (losses, queries)
    assert ("pyramid" in trained) == (losses or queries)


def test_with_both_off_the_detector_is_the_baseline(small) -> None:
    off, baseline = small(("atss",), aux_losses=False, customized_queries=False), small()
    assert off.state_dict().keys() == baseline.state_dict().keys()
    assert off.detectors == ("detr",)


def test_positives_are_the_same_with_and_without_the_heads_losses(small) -> None:
    both, alone = (small(("atss",), aux_losses=losses).eval() for losses in (True, False))
    first, second = (model.trace(images((64, 64), (64, 64)), TWO) for model in (both, alone))
    for one, two in zip(first.heads["atss"].assignments, second.heads["atss"].assignments, strict=True):
        assert torch.equal(one.gt_index, two.gt_index)
    assert torch.equal(first.groups["atss"].reference_boxes[0], second.groups["atss"].reference_boxes[0])
    assert second.heads["atss"].detections == [] and first.heads["atss"].detections
    assert second.heads["atss"].losses == {}


def test_without_queries_the_heads_losses_stay_what_they_were(small) -> None:
    both, alone = (small(("atss",), customized_queries=queries).eval() for queries in (True, False))
    alone.load_state_dict(both.state_dict(), strict=False)
    first, second = (model.trace(images((64, 64)), TWO[:1]) for model in (both, alone))
    assert set(second.groups) == {"original"}
    assert second.losses.keys() == {name for name in first.losses if not name.startswith("decoder.atss")}
    for name in second.heads["atss"].losses:
        assert torch.equal(first.losses[f"aux.atss.{name}"], second.losses[f"aux.atss.{name}"])


def test_an_untrained_head_detects_nothing(small) -> None:
    model = small(("atss",), aux_losses=False)
    assert model.detectors == ("detr",)
    with pytest.raises(ConfigError, match="head 'atss' is untrained, because aux_losses is off"):
        model.detect(images((64, 64)), ("atss",))


def test_heads_whose_positives_need_training_say_so(small) -> None:
    with pytest.raises(ConfigError, match=r"leaves faster_rcnn untrained, but its positives come from its own"):
        small(("atss", "faster_rcnn"), aux_losses=False)
    assert list(small(("faster_rcnn",), customized_queries=False).heads) == ["faster_rcnn"]


def test_queries_without_features_leave_the_pyramid_out(small) -> None:
    model = small(("atss",), aux_losses=False, **{"queries.features": False}).train()
    sum(model(images((64, 64)), TWO[:1]).values()).backward()
    assert not any(p.requires_grad for p in model.pyramid.parameters())


def test_switches_are_true_or_false(small) -> None:
    with pytest.raises(ConfigError, match="aux_losses must be true or false, got 'no'"):
        override(small().config, aux_losses="no")
