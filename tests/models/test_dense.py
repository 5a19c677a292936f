"""`transformer.decoder_layers=0`: the dense detector that the paper's ablations compare with, for every head."""

from __future__ import annotations

import pytest
import torch
from conftest_models import TWO, images, objects
from torch import Tensor

from codetr_lab.data.shapes import Shapes
from codetr_lab.engine.checkpoint import load, save_model
from codetr_lab.engine.evaluate import evaluate
from codetr_lab.models.config import ConfigError
from codetr_lab.models.heads import HEADS
from codetr_lab.models.meta import parameter_counts
from codetr_lab.models.presets import create_model, preset
from codetr_lab.structures import Target

NO_DECODER = {"transformer.decoder_layers": 0}


def masked(*targets: Target) -> tuple[Target, ...]:
    """The targets with a mask for every object, its whole box, which Mask R-CNN needs."""
    pixel = torch.arange(64)

    def masks(boxes: Tensor) -> Tensor:
        x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
        return ((pixel >= y0) & (pixel < y1))[:, :, None] & ((pixel >= x0) & (pixel < x1))[:, None]

    return tuple(target | {"masks": masks(target["boxes"])} for target in targets)


@pytest.mark.parametrize("head", HEADS)
def test_losses_reach_every_parameter_with_and_without_objects(small, head) -> None:
    model = small((head,), **NO_DECODER).train()
    batch = images((64, 64), (64, 64))
    keys = None
    for targets in (masked(*TWO), masked(objects(), TWO[1]), masked(objects(), objects())):
        model.zero_grad()
        losses = model(batch, targets)
        assert keys is None or list(losses) == keys
        keys = list(losses)
        assert all(torch.isfinite(value) for value in losses.values())
        sum(losses.values()).backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert {name.rpartition(".")[0] for name in keys} == {f"aux.{head}"}


@pytest.mark.parametrize("head", HEADS)
def test_every_door_gives_the_heads_own_detections(small, head) -> None:
    model = small((head,), **NO_DECODER).eval()
    batch = images((64, 64), (48, 64))
    with torch.no_grad():
        memory = model.encoder(model.neck(model.backbone(batch.pixels)), batch.pad_mask)
        expected = model.heads[head].predict(model.pyramid(memory.levels()), batch)
        plain = model(batch)
    trace = model.trace(batch, masked(*TWO))
    assert model.detectors == (head,)
    assert (trace.groups, trace.proposals) == ({}, None)
    assert trace.heads[head].assignments and len(trace.memory) + 1 == len(trace.pyramid)
    for found in (plain, trace.detections, [by_head[head] for by_head in model.detect(batch)]):
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.boxes, theirs.boxes)
            assert torch.equal(ours.scores, theirs.scores)
    with pytest.raises(ConfigError, match=f"unknown head 'detr'; choose from {head}"):
        model.detect(batch, ("detr",))


def test_losses_are_the_heads_own_weights(small) -> None:
    """Without a decoder there is nothing to balance: lambda_2 and the number of layers play no part."""
    dense, aux = small(("atss",), **NO_DECODER).train(), small(("atss",), lambda_2=2.0).train()
    dense.load_state_dict(aux.state_dict(), strict=False)
    batch = images((64, 64), (64, 64))
    ours, theirs = dense(batch, TWO), aux(batch, TWO)
    for name, value in ours.items():
        assert torch.allclose(theirs[name], 2.0 * 2 * value), name  # lambda_2 times two decoder layers


def test_it_is_saved_loaded_and_evaluated(small, tmp_path) -> None:
    model = small(("faster_rcnn", "atss"), **NO_DECODER).eval()
    save_model(model, tmp_path)
    again = load(tmp_path)
    data = Shapes("val", images=2)
    assert list(evaluate(again, data, progress=False)) == ["faster_rcnn"]
    assert list(evaluate(again, data, heads=again.detectors, progress=False)) == ["faster_rcnn", "atss"]
    image = data.image(0)
    found, expected = again.predict([image])[0], model.predict([image], ("faster_rcnn",))[0]
    assert torch.equal(found["faster_rcnn"].boxes, expected["faster_rcnn"].boxes)


def test_all_its_parameters_are_in_use_but_the_other_heads() -> None:
    total, used = parameter_counts(preset("lab_co_k1", **NO_DECODER))
    assert used == total
    more, same = parameter_counts(preset("lab_co_k1", aux_heads=("atss", "faster_rcnn"), **NO_DECODER))
    assert more > total and same == used


def test_a_model_needs_a_decoder_or_a_head() -> None:
    with pytest.raises(ConfigError, match="needs a head"):
        create_model("lab_baseline", **NO_DECODER)
    with pytest.raises(ConfigError, match="must not be negative"):
        create_model("lab_co_k1", **{"transformer.decoder_layers": -1})


@pytest.mark.parametrize(("head", "steps"), [("atss", 40), ("faster_rcnn", 90)])
def test_one_image_can_be_learned_by_heart(small, head, steps) -> None:
    model = small((head,), **NO_DECODER)
    batch, target = images((64, 64)), TWO[0]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    model.train()
    for _ in range(steps):
        total = sum(model(batch, [target]).values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    best = model(batch)[0].select(torch.arange(2))
    assert sorted(best.labels.tolist()) == [0, 3]
    assert (best.boxes[best.labels.argsort()] - target["boxes"]).abs().max() < 6
