"""Learned queries, Group-DETR and H-DETR: each with K = 0, 1, 2 through the one flow."""

from __future__ import annotations

import pytest
import torch
from conftest_models import TWO, images, objects

from codetr_lab.analysis import positives_per_object
from codetr_lab.assign import hungarian, repeated_hungarian
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.config import ConfigError
from codetr_lab.models.meta import parameter_counts
from codetr_lab.models.presets import BASELINES, preset
from codetr_lab.structures import Positives

DINO = {"decoder.scheme": "dino", "decoder.final_norm": True, "denoising.queries": 6, "decoder.encoder_loss": "classes"}
SCHEMES = {
    **{name: changes for name, changes in BASELINES.items() if name != "dense"},
    "hybrid": {"decoder.one_to_many": 30, "decoder.repeats": 3},
    "learned hybrid": {"decoder.queries": "learned", "decoder.one_to_many": 30, "decoder.repeats": 3},
    "learned group": {"decoder.queries": "learned", "decoder.groups": 2},
    "dino group hybrid": {**DINO, "decoder.groups": 2, "decoder.one_to_many": 30},
}
IN_TRAINING = {name: scheme for name, scheme in SCHEMES.items() if "group" in name or "hybrid" in name}
HEADS = {0: (), 1: ("atss",), 2: ("atss", "faster_rcnn")}


def training_groups(model: CoDETR) -> set[str]:
    """The names of the matched groups that exist in training only."""
    settings = model.config.decoder
    return {f"group_{g}" for g in range(2, settings.groups + 1)} | ({"one_to_many"} if settings.one_to_many else set())


@pytest.mark.parametrize("k", HEADS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_losses_reach_every_parameter_with_and_without_objects(small, scheme, k) -> None:
    model = small(HEADS[k], **SCHEMES[scheme]).train()
    batch = images((64, 64), (64, 64))
    keys = None
    for targets in (TWO, (objects(), objects())):
        model.zero_grad()
        losses = model(batch, targets)
        assert keys is None or list(losses) == keys
        keys = list(losses)
        assert all(torch.isfinite(value) for value in losses.values())
        sum(losses.values()).backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    groups = {name.split(".")[1] for name in keys if name.startswith("decoder.")}
    assert groups - {"denoising"} == {"original", *training_groups(model), *HEADS[k]}
    assert any(name.startswith("encoder.") for name in keys) == (model.config.decoder.queries != "learned")


@pytest.mark.parametrize("scheme", IN_TRAINING)
def test_what_is_for_training_plays_no_part_in_inference(small, scheme) -> None:
    alone = {"decoder.groups": 1, "decoder.one_to_many": 0, "denoising.queries": 0}
    plain, full = small(**(IN_TRAINING[scheme] | alone)).eval(), small(**IN_TRAINING[scheme]).eval()
    assert not plain.load_state_dict(full.state_dict(), strict=False).missing_keys
    for selection in full.training_groups.values():
        selection.forward = pytest.fail  # must not be run
    batch = images((64, 80), (64, 64))
    with torch.no_grad():
        for ours, theirs in zip(full(batch), plain(batch), strict=True):
            assert torch.equal(ours.boxes, theirs.boxes)
            assert torch.equal(ours.scores, theirs.scores)
            assert torch.equal(ours.source_index, theirs.source_index)
    assert list(full.trace(batch).groups) == ["original"]


@pytest.mark.parametrize("scheme", IN_TRAINING)
def test_groups_do_not_see_each_other_in_the_one_pass(small, scheme) -> None:
    model = small(**IN_TRAINING[scheme]).eval()
    batch = images((64, 80), (64, 64))
    passes = []
    model.decoder.register_forward_hook(lambda *_: passes.append(1))
    together, alone = model.trace(batch, TWO).groups, model.trace(batch).groups
    assert len(passes) == 2
    assert {*together} - {"denoising"} == {"original", *training_groups(model)}
    assert torch.allclose(together["original"].logits, alone["original"].logits, atol=1e-5)
    assert torch.allclose(together["original"].boxes_cxcywh, alone["original"].boxes_cxcywh, atol=1e-6)


@pytest.mark.parametrize("scheme", ["group", "hybrid"])
def test_schemes_cost_no_parameters_in_inference(scheme) -> None:
    total, used = parameter_counts(preset("lab_baseline", **BASELINES[scheme]))
    assert used == parameter_counts(preset("lab_baseline"))[1] < total


def test_every_group_gives_every_object_its_own_query(small) -> None:
    trace = small(**BASELINES["group"]).trace(images((64, 64), (64, 64)), TWO)
    for name in ("original", "group_2", "group_3"):
        group = trace.groups[name]
        for layer, image in ((0, 0), (1, 1)):
            record = group.assignments[layer][image]
            assert record.count_per_object().tolist() == [1] * len(TWO[image]["labels"])
            again = hungarian(record.candidates, TWO[image], image_size=(64, 64))
            assert torch.equal(record.gt_index, again.gt_index)
    originals, others = (trace.groups[name].reference_boxes[0] for name in ("original", "group_2"))
    assert not torch.allclose(originals, others)  # proposal heads of their own


def test_groups_of_the_same_weights_learn_the_same_and_count_a_share_each(small) -> None:
    plain, model = small().train(), small(**BASELINES["group"]).train()
    model.load_state_dict(plain.state_dict(), strict=False)
    for selection in model.training_groups.values():
        selection.load_state_dict(model.selection.state_dict())
    batch = images((64, 64), (64, 64))
    ours, theirs = model(batch, TWO), plain(batch, TWO)
    for name, value in theirs.items():
        part, *rest = name.split(".")
        copies = [".".join(("decoder", group, *rest[1:])) for group in ("group_2", "group_3")]
        if part == "encoder":
            copies = [f"encoder.{group}.{rest[0]}" for group in ("group_2", "group_3")]
        for copy in (name, *copies):
            assert torch.allclose(3 * ours[copy], value, rtol=1e-4), copy


def test_one_to_many_queries_are_matched_to_repeated_objects(small) -> None:
    model = small(**{"decoder.one_to_many": 5, "decoder.repeats": 3})
    trace = model.trace(images((64, 64), (64, 64)), TWO)
    group = trace.groups["one_to_many"]
    assert group.kind.shape == (2, 5)
    counts = [record.count_per_object().tolist() for record in group.assignments[-1]]
    assert sum(counts[0]) == 5 and max(counts[0]) == 3  # two objects would take six queries
    assert counts[1] == [3]
    for image, record in enumerate(group.assignments[-1]):
        again = repeated_hungarian(record.candidates, TWO[image], image_size=(64, 64), repeats=3)
        assert torch.equal(record.gt_index, again.gt_index)
        for query in range(5):
            assert record.explain(query) == again.explain(query)
    matched = torch.stack([record.positive for record in group.assignments[-1]])
    wanted = torch.stack([record.target_boxes for record in group.assignments[-1]])[matched]
    cxcywh = torch.cat([(wanted[:, :2] + wanted[:, 2:]) / 2, wanted[:, 2:] - wanted[:, :2]], 1) / 64
    l1 = (group.boxes_cxcywh[-1][matched] - cxcywh).abs().sum() / 8  # over all matched queries of the batch
    assert torch.allclose(trace.losses["decoder.one_to_many.1.l1"], 5 * l1, rtol=1e-4)


def test_positives_are_counted_group_by_group(small) -> None:
    model = small(("atss",), **{"decoder.groups": 2, "decoder.one_to_many": 20, "decoder.repeats": 3})
    counts = positives_per_object(model.trace(images((64, 64), (64, 64)), TWO))
    assert counts.pop("atss") > 1
    assert counts == {"original": 1, "one_to_many": 3, "group_2": 1}


def test_one_to_many_queries_are_the_next_best_tokens(small) -> None:
    trace = small(**SCHEMES["hybrid"]).eval().trace(images((64, 64)), TWO[:1])
    order = trace.proposals.logits[0, :, 0].argsort(descending=True)
    assert torch.equal(trace.proposals.index[0], order[:20])
    boxes = trace.proposals.boxes_cxcywh[0, order[20:50]]
    assert torch.equal(trace.groups["one_to_many"].reference_boxes[0, 0], boxes)


def test_fewer_tokens_than_queries(small) -> None:
    """33 x 47 pixels are 43 tokens."""
    model = small(("atss",), **{"decoder.one_to_many": 30, "decoder.groups": 2})
    losses = model.train()(images((33, 47)), (objects((1, 1, 20, 20, 0)),))
    assert all(torch.isfinite(value) for value in losses.values())
    assert model.trace(images((33, 47)), (objects(),)).groups["one_to_many"].kind.shape == (1, 23)
    assert model.trace(images((20, 20)), (objects(),)).groups["one_to_many"].kind.shape[1] == 0


@pytest.mark.parametrize("refine", [True, False])
def test_a_decoder_of_points_reads_the_centres_of_customized_boxes(small, refine) -> None:
    model = small(("atss",), **{"decoder.queries": "learned", "decoder.refine": refine}).eval()
    trace = model.trace(images((64, 64)), TWO[:1])
    group, positives = trace.groups["atss"], trace.heads["atss"].positives[0]
    found = group.reference_boxes[:, 0, : len(positives)]
    centres = (positives.boxes[:, :2] + positives.boxes[:, 2:]) / 2 / 64
    assert torch.allclose(found[0, :, :2], centres, atol=1e-6)
    assert (found[0, :, 2:] == 0).all()
    if refine:  # from the second layer on, boxes
        assert torch.equal(found[1], group.boxes_cxcywh[0, 0, : len(positives)])
        assert model.decoder.class_branches[0] is not model.decoder.class_branches[1]
    else:
        assert torch.equal(found[1], found[0])
        assert model.decoder.class_branches[0] is model.decoder.class_branches[1]
        assert model.decoder.box_branches[0] is model.decoder.box_branches[1]


def test_the_whole_box_goes_into_a_customized_querys_position(small) -> None:
    customize = small(("atss",), **{"decoder.queries": "learned"}).customizers["atss"]
    boxes = torch.tensor([[16.0, 16, 48, 48], [24, 24, 40, 40]])  # one centre
    zero = torch.zeros(2, dtype=torch.long)
    features = torch.zeros(2, 32)
    positives = Positives(boxes, zero, boxes, zero, zero, features, zero + 1, boxes[:0], features[:0])
    position = customize("atss", [positives], torch.full((1, 4), 64.0)).query.position[0]
    assert (position[0] - position[1]).abs().max() > 0.1


def test_a_point_starts_with_a_box_of_an_eighth(small) -> None:
    trace = small(**BASELINES["deformable"]).trace(images((64, 64)))
    assert torch.allclose(trace.groups["original"].boxes_cxcywh[..., 2:], torch.tensor(-2.0).sigmoid())


@pytest.mark.parametrize("scheme", [name for name in BASELINES if name != "dense"])
def test_a_few_steps_lower_the_loss(small, scheme) -> None:
    model = small(("atss",), num_queries=10, **SCHEMES[scheme]).train()
    batch, target = images((64, 64)), TWO[0]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    totals: dict[str, list[float]] = {}
    for _ in range(20):
        losses = model(batch, [target])
        for name in ("original", *training_groups(model), "atss"):
            terms = [value for key, value in losses.items() if key.startswith(f"decoder.{name}.")]
            totals.setdefault(name, []).append(float(sum(terms).detach()))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for name, values in totals.items():
        assert min(values[-5:]) < 0.8 * values[0], (name, values[0], values[-5:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder.groups": 0}, "decoder.groups must be at least 1, got 0"),
        ({"decoder.one_to_many": -1}, "decoder.one_to_many must be at least 0, got -1"),
        ({"decoder.repeats": 0}, "decoder.repeats must be at least 1, got 0"),
        ({"decoder.queries": "learnt"}, "did you mean 'learned'"),
        ({"decoder.scheme": "dino", "decoder.queries": "learned"}, "needs decoder.scheme='deformable'"),
    ],
)
def test_what_cannot_be_is_refused(small, changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)
