"""The whole detector: losses, detections, trace, and the invariances that a reader relies on."""

from __future__ import annotations

import pytest
import torch
from conftest_models import AUX_HEADS, TWO, images, objects

from codetr_lab import draws
from codetr_lab.models.config import ConfigError
from codetr_lab.models.presets import create_model
from codetr_lab.models.targets import TargetError
from codetr_lab.structures import GROUND_TRUTH, NEGATIVE, PADDING_NEGATIVE, POSITIVE, ImageBatch


@pytest.mark.parametrize("heads", AUX_HEADS, ids=lambda heads: "+".join(heads) or "none")
def test_losses_reach_every_parameter_with_and_without_objects(small, heads) -> None:
    model = small(heads).train()
    batch = images((64, 64), (64, 64))
    keys = None
    for targets in (TWO, (objects(), TWO[1]), (objects(), objects())):
        model.zero_grad()
        losses = model(batch, targets)
        assert keys is None or list(losses) == keys
        keys = list(losses)
        assert all(torch.isfinite(value) for value in losses.values())
        sum(losses.values()).backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without
    groups = {name.split(".")[1] for name in keys if name.startswith("decoder.")}
    assert groups == {"original", *model.heads}


def test_losses_need_targets_and_training_mode(small) -> None:
    with pytest.raises(ValueError, match="needs targets"):
        small().train()(images((64, 64)))


@pytest.mark.parametrize("heads", AUX_HEADS[1:4], ids="+".join)
def test_auxiliary_heads_do_not_change_evaluation(small, heads) -> None:
    plain, full = small().eval(), small(heads).eval()
    full.load_state_dict(plain.state_dict(), strict=False)
    for name in full.heads:
        full.heads[name].predict = pytest.fail  # must not be run
    batch = images((64, 80), (64, 64))
    with torch.no_grad():
        for ours, theirs in zip(full(batch), plain(batch), strict=True):
            assert torch.equal(ours.boxes, theirs.boxes)
            assert torch.equal(ours.scores, theirs.scores)
            assert torch.equal(ours.source_index, theirs.source_index)


def test_one_pass_over_the_groups_equals_a_pass_for_each(small) -> None:
    model = small(("atss", "faster_rcnn")).eval()
    batch = images((64, 96), (64, 64))
    with torch.no_grad():
        memory = model.encoder(model.neck(model.backbone(batch.pixels)), batch.pad_mask)
        _, (original,) = model.selection(memory)
        pyramid = model.pyramid(memory.levels())
        groups = [original]
        for name, head in model.heads.items():
            positives = head.supervise(pyramid, batch, TWO).positives
            groups.append(model.customizers[name](name, positives, batch.whwh()).query)
        together = model.decoder(groups, memory)
        for group in groups:
            alone = model.decoder([group], memory)[group.name]
            assert torch.allclose(together[group.name].logits, alone.logits, atol=1e-6)
            assert torch.allclose(together[group.name].boxes_cxcywh, alone.boxes_cxcywh, atol=1e-6)


@pytest.mark.parametrize("heads", AUX_HEADS[:4], ids=lambda heads: "+".join(heads) or "none")
def test_one_image_alone_and_padded_in_a_batch_agree(small, heads) -> None:
    model = small(heads).eval()
    small_image, large_image = torch.randn(3, 64, 64), torch.randn(3, 128, 96)
    alone = ImageBatch.from_images([small_image])
    both = ImageBatch.from_images([small_image, large_image])
    # The backbone itself sees the padding through its convolutions; what follows must not. A map whose cells cover
    # the small image exactly is the same in both.
    features_alone = model.neck(model.backbone(alone.pixels))
    features = [
        torch.nn.functional.pad(f, (0, g.shape[3] - f.shape[3], 0, g.shape[2] - f.shape[2])).expand(2, -1, -1, -1)
        for f, g in zip(features_alone, model.neck(model.backbone(both.pixels)), strict=True)
    ]
    with torch.no_grad():
        memory_alone = model.encoder(features_alone, alone.pad_mask)
        memory = model.encoder(features, both.pad_mask)
        for one, two in zip(memory_alone.levels(), memory.levels(), strict=True):
            assert torch.allclose(one[0], two[0, :, : one.shape[2], : one.shape[3]], atol=1e-5)
        group = model.decoder(model.selection(memory_alone)[1], memory_alone)["original"]
        padded = model.decoder(model.selection(memory)[1], memory)["original"]
    assert torch.allclose(group.logits[:, 0], padded.logits[:, 0], atol=1e-4)
    assert torch.allclose(group.boxes_cxcywh[:, 0], padded.boxes_cxcywh[:, 0], atol=1e-5)


@pytest.mark.parametrize("heads", AUX_HEADS[:4], ids=lambda heads: "+".join(heads) or "none")
def test_the_trace_is_the_plain_forward(small, heads) -> None:
    model = small(heads)
    batch = images((64, 64), (64, 48))
    with draws.first_k(), torch.no_grad():
        model.train()
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.eval()  # a trace is in evaluation mode
        losses = model(batch, TWO)
        trace = model.trace(batch, TWO)
    assert model.training
    assert trace.losses.keys() == losses.keys()
    for name, value in losses.items():
        assert torch.equal(trace.losses[name], value), name
    with torch.no_grad():
        plain = model.eval()(batch)
    alone = model.trace(batch)
    for traced, one_group, theirs in zip(trace.detections, alone.detections, plain, strict=True):
        assert torch.equal(one_group.boxes, theirs.boxes)
        assert torch.equal(one_group.scores, theirs.scores)
        # more groups in one matrix product are summed in another order
        assert torch.allclose(traced.scores, theirs.scores, atol=1e-6)
    assert set(trace.groups) == {"original", *heads}
    assert set(trace.heads) == set(heads)
    queries = trace.groups["original"]
    weights = queries.attention_weights.sum((-1, -2))
    assert torch.allclose(weights, torch.ones_like(weights), atol=1e-5)
    assert queries.sampling_locations.shape[:3] == queries.logits.shape[:3]


def test_a_trace_with_gradient_keeps_the_graph_from_memory_to_logits(small) -> None:
    model = small(("atss",)).eval()
    trace = model.trace(images((64, 64)), TWO[:1], grad=True)
    logits = trace.groups["original"].logits[-1].amax()
    (gradient,) = torch.autograd.grad(logits, trace.memory[0])
    assert gradient.abs().sum() > 0
    assert not model.trace(images((64, 64))).memory[0].requires_grad


def test_the_trace_says_what_each_query_is(small) -> None:
    trace = small(("atss", "faster_rcnn")).trace(images((64, 64), (64, 64)), TWO)
    for name in ("atss", "faster_rcnn"):
        group, positives = trace.groups[name], trace.heads[name].positives
        for image, found in enumerate(positives):
            kind = group.kind[image]
            real = (kind == POSITIVE) | (kind == GROUND_TRUTH)
            assert int(real.sum()) == len(found)
            assert int((kind == PADDING_NEGATIVE).sum()) == len(kind) - len(found)
            given = group.assignments[0][image]
            assert torch.equal(given.gt_index[real], found.gt_index)
            assert (given.gt_index[~real] == NEGATIVE).all()
    boxes = trace.heads["faster_rcnn"].positives[0].boxes
    assert (trace.groups["faster_rcnn"].kind[0] == GROUND_TRUTH).sum() == 2
    assert torch.allclose(boxes[:2], TWO[0]["boxes"])
    matched = trace.groups["original"].assignments[-1][0]
    assert matched.count_per_object().tolist() == [1, 1]
    assert "positive" in matched.explain(int(matched.positive.nonzero()[0]))
    assert "takes one query only" in matched.explain(int(matched.negative.nonzero()[0]))


def test_empty_slots_are_seen_by_nobody_and_give_finite_gradients(small) -> None:
    """The paper's wording: no negatives among the customized queries."""
    model = small(("atss",), **{"queries.padding": "empty"}).train()
    losses = model(images((64, 64), (64, 64)), (TWO[0], objects()))
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    group = model.trace(images((64, 64), (64, 64)), (TWO[0], objects())).groups["atss"]
    assert (group.kind[1] == 5).all()
    assert not group.assignments[0][1].used.any()


def test_the_same_seed_gives_the_same_losses(small) -> None:
    def run(seed: int) -> list[float]:
        model = small(("atss", "faster_rcnn")).train()
        torch.manual_seed(seed)
        return [float(v.detach()) for v in model(images((64, 64), (64, 64)), TWO).values()]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_one_image_can_be_learned_by_heart(small) -> None:
    model = small(("atss",), num_queries=10)
    batch, target = images((64, 64)), TWO[0]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    model.train()
    for step in range(150):
        losses = model(batch, [target])
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step == 0:
            first = float(total.detach())
    assert float(total.detach()) < 0.4 * first
    model.eval()
    for head, found in model.detect(batch, ("detr", "atss"))[0].items():
        best = found.select(torch.arange(2))
        assert sorted(best.labels.tolist()) == [0, 3], head
        order = best.labels.argsort()
        assert (best.boxes[order] - target["boxes"]).abs().max() < 6, head


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (objects((4, 4, 20, 20, 6)), "image 0, box 0: has label outside 0..5"),
        (objects((4, 4, 20, 20, 0), (4, 4, 4, 20, 0)), "image 0, box 1: has no area"),
        (objects((4, 4, float("nan"), 20, 0)), "not finite"),
        (objects((70, 4, 90, 20, 0)), "no part inside its 64 x 64 image"),
        ({"boxes": torch.zeros(2, 4)}, "has no 'labels'"),
        ({"boxes": torch.zeros(2, 3), "labels": torch.zeros(2)}, r"expected boxes \(N, 4\)"),
    ],
)
def test_bad_targets_are_named(small, target, message) -> None:
    with pytest.raises(TargetError, match=message):
        small().train()(images((64, 64)), [target])


def test_a_missing_target_is_named(small) -> None:
    with pytest.raises(TargetError, match="2 images, but 1 targets"):
        small().train()(images((64, 64), (64, 64)), TWO[:1])


def test_crowd_regions_are_left_out(small) -> None:
    model = small().eval()
    crowd = TWO[0] | {"iscrowd": torch.tensor([0, 1])}
    trace = model.trace(images((64, 64)), [crowd])
    assert trace.groups["original"].assignments[0][0].count_per_object().tolist() == [1]


@pytest.mark.parametrize(
    ("images_", "message"),
    [([], "at least one image"), ([torch.zeros(1, 8, 8)], "image 0: expected shape"),
     ([torch.zeros(3, 8, 8), torch.zeros(3, 0, 8)], "image 1: has a side of zero"),
     ([torch.full((3, 8, 8), float("nan"))], "image 0: contains NaN")],
)  # fmt: skip
def test_bad_images_are_named(images_, message) -> None:
    with pytest.raises(ValueError, match=message):
        ImageBatch.from_images(images_)


def test_detections_stay_inside_the_image_and_name_their_query(small) -> None:
    model = small(("atss", "faster_rcnn")).eval()
    batch = images((64, 80), (48, 64))
    for image, found in enumerate(model.detect(batch, ("detr", "atss", "faster_rcnn"))):
        height, width = batch.valid_sizes[image]
        for head, detections in found.items():
            assert (detections.boxes >= 0).all()
            assert (detections.boxes[:, 0::2] <= width).all()
            assert (detections.boxes[:, 1::2] <= height).all()
            assert (detections.scores.diff() <= 0).all(), head
        assert (found["detr"].source_index < 20).all()


def test_unknown_names_suggest_the_nearest(small) -> None:
    with pytest.raises(ConfigError, match="did you mean 'lab_co_k1'"):
        create_model("lab_co_k11")
    with pytest.raises(ConfigError, match="did you mean 'atss'"):
        create_model("lab_co_k1", aux_heads=("ats",))
    with pytest.raises(ConfigError, match="did you mean 'atss'"):
        small(("atss",)).detect(images((64, 64)), ("atsss",))
    with pytest.raises(ConfigError, match="did you mean 'resnet"):
        create_model("lab_baseline", **{"backbone.name": "resnet5000"})


def test_tiny_and_odd_images(small) -> None:
    model = small(("atss", "faster_rcnn"))
    batch = images((33, 47), (7, 90))
    losses = model.train()(batch, (objects((1, 1, 2, 2, 0)), objects()))
    assert all(torch.isfinite(value) for value in losses.values())
    assert len(model.eval().detect(batch, ("detr", "atss", "faster_rcnn"))) == 2
