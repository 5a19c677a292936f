"""K = 6: all heads of Table 7 in one detector, repeats, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from conftest_models import TWO, images, objects

from codetr_lab.boxes import iou
from codetr_lab.models.heads import HEADS

SIX = ("atss", "faster_rcnn", "paa", "retinanet", "fcos", "gfl")
MASKS = tuple(target | {"masks": torch.ones(len(target["labels"]), 64, 64, dtype=torch.bool)} for target in TWO)


@pytest.mark.parametrize("heads", [SIX, ("mask_rcnn", "atss", "atss"), ("atss",) * 6], ids=["six", "masks", "repeats"])
def test_losses_reach_every_parameter_and_inference_stays_as_it_was(small, heads) -> None:
    model, plain = small(heads), small()
    names = [f"{head}_{heads[:i].count(head) + 1}" if head in heads[:i] else head for i, head in enumerate(heads)]
    assert list(model.heads) == names and model.detectors == ("detr", *names)
    batch, keys = images((64, 64), (64, 64)), None
    for targets in (MASKS, (objects(), MASKS[1]), (objects(), objects())):
        model.train().zero_grad(set_to_none=True)
        losses = model(batch, targets)
        assert keys is None or list(losses) == keys
        keys = list(losses)
        sum(losses.values()).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    assert {key.split(".")[1] for key in keys if key.startswith("decoder.")} == {"original", *names}

    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for ours, theirs in zip(model.eval()(batch), plain.eval()(batch), strict=True):
            assert torch.equal(ours.boxes, theirs.boxes) and torch.equal(ours.scores, theirs.scores)
    found = model.detect(batch, model.detectors)
    assert list(found[0]) == ["detr", *names]


def test_repeats_have_their_own_weights(small) -> None:
    model = small(("atss", "atss"))
    first, second = model.heads["atss"], model.heads["atss_2"]
    assert not any(a is b for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.atss_cls.weight, second.atss_cls.weight)


def test_every_head_has_its_settings(small) -> None:
    config = small().config
    assert all(hasattr(config, kind) for kind in HEADS)
    assert [config.needs_masks, small(("mask_rcnn",)).config.needs_masks] == [False, True]


@pytest.mark.slow
def test_six_heads_learn_an_image_by_heart(small) -> None:
    model, batch, truth = small(SIX, num_queries=10).train(), images((64, 64)), TWO[0]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    totals = []
    for _ in range(90):
        total = sum(model(batch, [truth]).values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.5 * totals[0]
    found = model.eval().detect(batch, ("detr", "atss", "fcos"))[0]
    for head, detections in found.items():
        best = detections.select(torch.arange(2))
        assert sorted(best.labels.tolist()) == [0, 3], head
        assert iou(best.boxes[best.labels.argsort()], truth["boxes"]).min() > 0.6, head
