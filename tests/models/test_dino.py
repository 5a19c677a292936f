"""Co-DINO on small models: what its decoder, denoising and settings promise."""

from __future__ import annotations

import ast
import operator
import re
from dataclasses import replace

import pytest
import torch
from conftest_models import AUX_HEADS, DINO, TWO, images, objects

from codetr_lab import draws
from codetr_lab.models.config import ConfigError
from codetr_lab.models.denoising import Noise
from codetr_lab.models.presets import preset
from codetr_lab.models.set_loss import PaddedTargets
from codetr_lab.structures import NEGATIVE

VARIANTS = {"deformable": {}, "dino": DINO}
CASES = [TWO, (objects(), TWO[1]), (objects(), objects()), (objects((30, 30, 31, 31, 2)), objects())]


def by_name(value: object) -> str:
    return "+".join(value) or "none" if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("heads", AUX_HEADS, ids=by_name)
def test_losses_reach_every_parameter_with_and_without_objects(small, heads) -> None:
    model = small(heads, **DINO).train()
    batch = images((64, 64), (50, 41))
    keys = None
    for targets in CASES:
        targets = (targets[0], {k: v[:0] for k, v in targets[1].items()} if targets is TWO else targets[1])
        model.zero_grad()
        losses = model(batch, targets)
        assert keys is None or list(losses) == keys
        keys = list(losses)
        assert all(torch.isfinite(value) for value in losses.values())
        sum(losses.values()).backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    alone = model(images((64, 64)), [objects()])
    assert list(alone) == keys
    layers = model.config.transformer.decoder_layers
    for group in ("original", "denoising", *heads):
        assert sum(name.startswith(f"decoder.{group}.") for name in keys) == 3 * layers


def test_one_pass_over_the_groups_equals_a_pass_for_each(small) -> None:
    """Customized groups alone, the original queries alone, and every denoising subgroup together with Q_0 alone."""
    model = small(("atss", "faster_rcnn"), **DINO).eval()
    batch = images((64, 96), (64, 64))
    with torch.no_grad():
        memory = model.encoder(model.neck(model.backbone(batch.pixels)), batch.pad_mask)
        _, (original,) = model.selection(memory)
        pyramid = model.pyramid(memory.levels())
        noisy = model.denoising(PaddedTargets.of(TWO, batch)).query
        groups = [noisy, original]
        for name, head in model.heads.items():
            positives = head.supervise(pyramid, batch, TWO).positives
            groups.append(model.customizers[name](name, positives, batch.whwh()).query)
        together = model.decoder(groups, memory)
        size, queries = noisy.subgroup, noisy.content.shape[1]
        assert queries // size == 5
        for group in groups[1:]:
            agree(together[group.name], model.decoder([group], memory)[group.name])
        for start in range(0, queries, size):
            own = slice(start, start + size)
            alone = replace(
                noisy, content=noisy.content[:, own], reference_boxes=noisy.reference_boxes[:, own],
                kind=noisy.kind[:, own],
            )  # fmt: skip
            agree(together["denoising"], model.decoder([alone, original], memory)["denoising"], own)
            blind = model.decoder([replace(alone, sees=())], memory)["denoising"]
            assert (blind.logits - together["denoising"].logits[:, :, own]).abs().max() > 1e-4


def agree(together, alone, own: slice = slice(None)) -> None:
    assert torch.allclose(together.logits[:, :, own], alone.logits, atol=1e-5)
    assert torch.allclose(together.boxes_cxcywh[:, :, own], alone.boxes_cxcywh, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluation_with_heads_equals_evaluation_without_and_runs_none(small, variant, monkeypatch) -> None:
    two, none = small(("atss", "faster_rcnn"), **VARIANTS[variant]).eval(), small((), **VARIANTS[variant]).eval()
    none.load_state_dict({k: v for k, v in two.state_dict().items() if k in none.state_dict()})
    for part in (two.pyramid, two.denoising, *two.heads.values(), *two.customizers.values()):
        if part is not None:
            for method in ("forward", "supervise", "predict"):
                if hasattr(part, method):
                    monkeypatch.setattr(part, method, None)  # would fail if it were called
    batch = images((64, 64), (48, 64))
    with torch.no_grad():
        for ours, theirs in zip(two(batch), none(batch), strict=True):
            for field in ("boxes", "scores", "labels", "source_index"):
                assert torch.equal(getattr(ours, field), getattr(theirs, field)), field


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointed_encoder_layers_change_nothing_but_memory(small, variant) -> None:
    batch, gradients = images((64, 64), (48, 64)), []
    for layers in (0, 1, 2):
        depth = {"transformer.encoder_layers": 2, "transformer.checkpointed_layers": layers}
        model = small(("atss",), **VARIANTS[variant], **depth).train()
        calls = count_calls(model.encoder.layers)
        torch.manual_seed(1)
        with draws.first_k():
            sum(model(batch, TWO).values()).backward()
        assert len(calls) == 2 + layers  # once more in the backward pass
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for name, gradient in gradients[0].items():
            assert torch.equal(gradient, other[name]), name


def count_calls(layers) -> list[int]:
    calls: list[int] = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_denoising_queries_say_what_they_must_become(small) -> None:
    model = small((), **DINO)
    batch = images((64, 64), (64, 48))
    group = model.denoising(PaddedTargets.of(TWO, batch), torch.Generator().manual_seed(3))
    assert group.query.sees == ("original",) and group.query.subgroup == 4
    assert group.gt_index.shape == (2, 20) and group.count == 3 * 5
    # subgroup by subgroup: positives of both objects, negatives of both; the second image has one object
    assert group.gt_index[0].tolist() == [0, 1, NEGATIVE, NEGATIVE] * 5
    assert group.gt_index[1].tolist() == [0, NEGATIVE, NEGATIVE, NEGATIVE] * 5
    missing = [1, 3]
    assert (group.query.reference_boxes[1, missing] == 0.5).all()
    assert (group.query.content[1, missing] == 0).all()
    positives = group.boxes[0, :2]
    half = (TWO[0]["boxes"][:, 2:] - TWO[0]["boxes"][:, :2]).repeat(1, 2) / 2
    assert ((positives - TWO[0]["boxes"]).abs() <= half + 0.1).all()
    trace = model.trace(batch, TWO, seed=3)
    record = trace.groups["denoising"].assignments[0][0]
    assert torch.equal(record.gt_index, group.gt_index[0])
    assert "object 1 with noise" in record.explain(1) and "background" in record.explain(2)


def test_negatives_move_further_than_positives(small) -> None:
    model = small((), **DINO)
    truth = PaddedTargets.of([objects((24, 24, 40, 40, 1))], images((64, 64)))
    noise = Noise(torch.ones(1, 1, 2, 1), torch.zeros(1, 1, 2, 1).long(), torch.ones(1, 1, 2, 1, 4),
                  torch.full((1, 1, 2, 1, 4), 0.5))  # fmt: skip
    labels, boxes = model.denoising.disturb(
        truth.labels[:, None, None].expand(1, 1, 2, 1), torch.tensor([0.5, 0.5, 0.25, 0.25]).view(1, 1, 1, 1, 4), noise
    )
    assert labels.flatten().tolist() == [1, 1]
    centres = boxes[..., 0].flatten() - 0.5
    assert torch.allclose(centres, torch.tensor([0.0625, 0.1875]), atol=1e-6)


def test_denoising_needs_a_decoder_that_makes_positions(small) -> None:
    with pytest.raises(ConfigError, match=r'denoising\.queries needs decoder\.scheme="dino"'):
        small((), **{"denoising.queries": 10})


def test_labels_flip_with_half_the_noise(small) -> None:
    model = small((), **DINO)
    noise = Noise.draw((1, 4000, 2, 1), 6, torch.Generator().manual_seed(0))
    labels, _ = model.denoising.disturb(torch.ones(1, 4000, 2, 1).long(), torch.full((1, 1, 1, 1, 4), 0.5), noise)
    assert float((labels != 1).float().mean()) == pytest.approx(0.25 * 5 / 6, abs=0.015)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("targets", [TWO, (TWO[0], objects()), (objects(), objects())])
def test_empty_padding_gives_finite_numbers(small, variant, targets) -> None:
    """The paper's wording: no negatives among the customized queries. The release gives NaN for it."""
    model = small(("atss", "faster_rcnn"), **VARIANTS[variant], **{"queries.padding": "empty"}).train()
    losses = model(images((64, 64), (64, 64)), targets)
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


SETTINGS = [
    {"lambda_2_per_layer": False}, {"queries.minimum": 1, "queries.maximum": 3}, {"queries.head_embedding": "none"},
    {"queries.features": True}, {"queries.features": False}, {"decoder.rank_invalid": False},
    {"decoder.encoder_loss": "objects", "decoder.rank_by": "first_class", "decoder.classification_loss": "focal"},
    {"decoder.encoder_loss": "classes", "decoder.rank_by": "best_class"}, {"decoder.final_norm": True},
    {"decoder.final_norm": False}, {"soft_nms_iou": None}, {"denoising.queries": 0}, {"faster_rcnn.roi_levels": 4},
    {"atss.stacked_convs": 2},
]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "+".join(setting))
def test_every_setting_trains(small, variant, setting) -> None:
    model = small(("faster_rcnn",) if "roi" in str(setting) else ("atss",), **(VARIANTS[variant] | setting)).train()
    losses = model(images((64, 64), (40, 64)), (TWO[0], objects()))
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_lambda_2_counts_per_layer_or_once() -> None:
    config = preset("co_dino_5scale_r50")
    assert config.aux_loss_factor == 12
    assert replace(config, lambda_2_per_layer=False).aux_loss_factor == 2


@pytest.mark.parametrize("kind", ["scalar", "vector", "none"])
def test_the_heads_own_embedding(small, kind) -> None:
    model = small(("atss",), **{"queries.head_embedding": kind})
    customizer = model.customizers["atss"]
    found = customizer.head_pos_embed
    assert (0 if found is None else found.numel()) == {"scalar": 1, "vector": 32, "none": 0}[kind]
    encoded = torch.ones(1, 2, 64)
    content, position = customizer.embed(encoded)
    assert torch.equal(content, torch.ones(1, 2, 32))
    assert torch.equal(position - 1, torch.zeros(1, 2, 32) + (0 if found is None else (1 + found) - 1))
    assert found is None or found.abs().max() > 0
    losses = model.train()(images((64, 64)), TWO[:1])
    assert all(torch.isfinite(value) for value in losses.values())


def test_border_tokens_are_selected_or_not(small) -> None:
    """Masked and border tokens share one logit; where it is the best, the release selects them as boxes (1,1,1,1)."""
    for keeps, variant in ((True, "deformable"), (False, "deformable"), (True, "dino"), (False, "dino")):
        model = small((), **VARIANTS[variant], **{"decoder.rank_invalid": keeps, "num_queries": 8})
        torch.nn.init.zeros_(model.selection.class_branch.weight)  # all tokens alike
        proposals = model.trace(images((64, 64), (32, 32))).proposals
        if not keeps:
            assert proposals.valid.gather(1, proposals.index).all()
            continue
        invalid = ~proposals.valid
        assert invalid[1].sum() > 48
        assert (proposals.boxes_cxcywh[invalid] == 1).all()


def test_the_documentation_names_settings_and_their_released_values(repository) -> None:
    text = (repository / "docs" / "paper_and_release.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| `(.+?)` \| `(.+?)` \|", text, re.M)
    covered = {name for setting in SETTINGS for name in setting} | {"queries.padding", "image.square"}
    assert len(rows) == 15 and {name for name, *_ in rows} <= covered
    for name, *values in rows:
        for architecture, value in zip(("co_deformable_detr_r50", "co_dino_5scale_r50"), values, strict=True):
            assert operator.attrgetter(name)(preset(architecture)) == ast.literal_eval(value), name
