"""What is compared with the reference numbers, for every variant and backbone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from golden_case import Golden, batch, targets
from scipy.optimize import linear_sum_assignment
from torch import nn

from codetr_lab import draws
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.released import released_key
from codetr_lab.structures import Detections, Trace

RELATIVE = 1e-4
HEADS = {"detr": "det", "faster_rcnn": "det_two_stage", "atss": "det_one_stage"}
TERMS = {"classification": "cls", "l1": "bbox", "giou": "iou"}
HEAD_LOSSES = {
    "atss.classification": "loss_cls1", "atss.box": "loss_bbox1", "atss.centerness": "loss_centerness1",
    "faster_rcnn.rpn_classification": "loss_rpn_cls", "faster_rcnn.rpn_box": "loss_rpn_bbox",
    "faster_rcnn.roi_classification": "loss_cls0", "faster_rcnn.roi_box": "loss_bbox0",
}  # fmt: skip
AUX = {"faster_rcnn": "aux0_rcnn", "atss": "aux1_atss"}


@contextmanager
def ranked(model: CoDETR, reference: Golden | None) -> Iterator[None]:
    """Rank the tokens as `reference` did, where float noise alone decides: a query's content depends on its rank.

    Every token must still be within 1e-4 of the logit that the reference has at that rank.
    """
    if reference is None:
        yield
        return
    index = torch.from_numpy(reference["topk_indices"])
    values = torch.from_numpy(reference["topk_values"])[:, : index.shape[1]]

    def select(logits: torch.Tensor) -> torch.Tensor:
        score = logits[..., 0] if model.config.decoder.rank_by == "first_class" else logits.amax(-1)
        ours = score.detach().topk(index.shape[1], dim=1)
        assert (ours.values - values).abs().max() < 1e-4
        assert (score.detach().gather(1, index) - values).abs().max() < 1e-4
        assert (ours.indices == index).float().mean() > 0.98
        return index

    model.selection.select = select
    try:
        yield
    finally:
        del model.selection.select


@torch.no_grad()
def check_evaluation(model: CoDETR, golden: Golden, case: str) -> Trace:
    """Everything that the file keeps of an evaluation pass; returns the trace."""
    images = batch(case)
    model.eval()
    listed = {"encoder_layer": model.encoder.layers, "decoder_layer": model.decoder.layers}
    modules = {f"{name}/{i}": layer for name, layers in listed.items() for i, layer in enumerate(layers)}
    modules |= {"backbone": model.backbone, "neck": model.neck, "enc_output_memory": model.selection.enc_output_norm}
    with outputs_of(modules) as seen:
        trace = model.trace(images)
    stages = {f"{name}/{i}": x for name in ("backbone", "neck") for i, x in enumerate(seen[name])}
    stages |= {name: x[0].transpose(0, 1) for name, x in seen.items() if "layer/" in name}
    stages |= {"memory": stages[f"encoder_layer/{len(model.encoder.layers) - 1}"]}
    stages |= {"enc_output_memory": seen["enc_output_memory"][0]}
    stages |= {f"pyramid/{i}": x for i, x in enumerate(trace.pyramid)}
    stages |= dict(_head_outputs(model, trace))
    stages |= _roi_outputs(model, trace, golden)
    if "enc_cls_all" in golden.data:
        stages |= {"enc_cls_all": trace.proposals.logits, "enc_box_all": trace.proposals.boxes_cxcywh}
    for name, ours in stages.items():
        assert golden.error(name, ours) < RELATIVE, name
    original = trace.groups["original"]
    magnitude = np.abs(golden.data["dec_cls"]).max()
    assert golden.error("dec_cls", original.logits) * magnitude < 1e-3
    assert golden.error("dec_box", original.boxes_cxcywh) < 1e-4
    for head, key in HEADS.items():
        for image in range(len(images)):
            found = trace.detections[image] if head == "detr" else trace.heads[head].detections[image]
            check_detections(found, golden, f"{key}/{image}")
    return trace


@contextmanager
def outputs_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, Sequence[torch.Tensor]]]:
    """What each module gives at its last call inside; a single tensor as a list of one."""
    seen: dict[str, Sequence[torch.Tensor]] = {}
    with ExitStack() as hooks:
        for name, module in modules.items():

            def keep(_, __, output, name: str = name) -> None:
                seen[name] = [output] if isinstance(output, torch.Tensor) else output

            hooks.callback(module.register_forward_hook(keep).remove)
        yield seen


def _roi_outputs(model: CoDETR, trace: Trace, golden: Golden) -> dict[str, torch.Tensor]:
    """Of the RoI head, for the regions that the file gives."""
    head, rois = model.heads["faster_rcnn"], torch.from_numpy(golden["roi/rois"])
    assert (head.roi_level(rois[:, 1:]).numpy() == golden["roi/levels"]).all()
    features = head.roi_features(trace.pyramid, [rois[rois[:, 0] == i, 1:] for i in range(len(trace.batch))])
    logits, deltas = head.roi(features)
    return {"roi/feats": features, "roi/cls": logits, "roi/reg": deltas.flatten(1)}


def _head_outputs(model: CoDETR, trace: Trace) -> Iterator[tuple[str, torch.Tensor]]:
    """The raw outputs of the auxiliary heads by level, (B,channels,H,W)."""
    shapes = [tuple(level.shape[-2:]) for level in trace.pyramid]
    cells = [height * width for height, width in shapes]
    objectness, deltas = model.heads["faster_rcnn"].rpn(trace.pyramid)
    logits, boxes, centerness = model.heads["atss"](trace.pyramid)
    for name, flat, channels in (
        ("rpn_cls", objectness, 9), ("rpn_reg", deltas, 36), ("atss_cls", logits, logits.shape[-1]),
        ("atss_reg", boxes, 4), ("atss_ctr", centerness, 1),
    ):  # fmt: skip
        tokens = flat.reshape(len(flat), -1, channels)
        for level, (part, shape) in enumerate(zip(tokens.split(cells, 1), shapes, strict=True)):
            yield f"{name}/{level}", part.transpose(1, 2).unflatten(2, shape)


def check_detections(found: Detections, golden: Golden, key: str) -> None:
    """Labels equal, scores to 1e-4, boxes to 0.05 pixels, in the same order, but for scores equal to 1e-6."""
    boxes, scores = np.split(golden[f"{key}/bboxes"], [4], 1)
    score, place = found.scores.numpy(), np.arange(len(scores))
    assert len(score) == len(scores), key
    same = (found.labels.numpy()[:, None] == golden[f"{key}/labels"]) & (np.abs(score[:, None] - scores[:, 0]) < 1e-4)
    same &= np.abs(found.boxes.numpy()[:, None] - boxes).max(-1) < 0.05
    same &= (place[:, None] == place) | (np.abs(scores - scores[:, 0]) < 1e-6)
    ours, theirs = linear_sum_assignment(~same)
    assert same[ours, theirs].all(), (key, ours[~same[ours, theirs]])


def check_training(model: CoDETR, golden: Golden, case: str) -> Trace:
    """Losses, gradient norms, positives and matches; returns the trace of the training flow."""
    images, truth = batch(case), targets(golden, case)
    model.zero_grad()
    with draws.first_k():
        trace = model.trace(images, truth, grad=True)  # the training flow, and what it decided
    losses = trace.losses
    expected = {name: sum(v) if isinstance(v, list) else v for name, v in golden.notes["losses"].items()}
    last = str(model.config.transformer.decoder_layers - 1)
    names = {name: _released_loss(name, last) for name in losses}
    assert set(names.values()) == {name for name in expected if not name.startswith("acc")}
    for name, loss in losses.items():
        assert float(loss.detach()) == pytest.approx(expected[names[name]], rel=1e-4, abs=1e-6), name
    total = sum(losses.values())
    total.backward()
    assert float(total.detach()) == pytest.approx(golden.notes["total_loss"], rel=1e-4)
    _check_gradients(model, golden)
    for head, key in AUX.items():
        for image in range(len(images)):
            positives = trace.heads[head].positives[image]
            assert np.abs(positives.boxes.detach().numpy() - golden[f"{key}/{image}/pos_coords"]).max() < 1e-3
            assert (positives.labels.numpy() == golden[f"{key}/{image}/pos_labels"]).all()
        assert [len(p) for p in trace.heads[head].positives] == golden.notes[f"{key}_num_pos"]
        assert trace.groups[head].kind.shape[1] == golden.notes[f"{key}_num_queries"][1]
    _check_matches(trace, golden, encoder_first=model.config.decoder.scheme == "dino")
    return trace


def _check_gradients(model: CoDETR, golden: Golden) -> None:
    norms = dict(zip(golden.data["grad/names"], golden.data["grad/stats"][:, 0], strict=True))
    floor = 1e-5 * golden.notes["grad_total_norm"]
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # some of our parameters share one released tensor
            key = released_key(name, model)
            squares[key] = squares.get(key, 0.0) + float(parameter.grad.double().square().sum())
    assert squares.keys() == norms.keys()
    for name, square in squares.items():
        assert abs(square**0.5 - norms[name]) < 1e-3 * norms[name] + floor, name


def _check_matches(trace: Trace, golden: Golden, encoder_first: bool) -> None:
    layers = trace.groups["original"].assignments
    encoder = [trace.proposals.assignments]
    stages: Iterable = [*encoder, *layers] if encoder_first else [*layers, *encoder]
    for number, record in enumerate(record for stage in stages for record in stage):
        query = record.positive.nonzero().flatten()
        order = np.argsort(golden[f"hungarian/{number}"])
        assert (query.numpy() == golden[f"hungarian/{number}"][order]).all(), number
        assert (record.gt_index[query].numpy() == golden[f"hungarian/{number}_gt"][order]).all(), number


def _released_loss(name: str, last: str) -> str:
    """The released name of one of our losses; `last`: the number of the last decoder layer."""
    part, *rest = name.split(".")
    if part == "encoder":
        return f"enc_loss_{TERMS[rest[0]]}"
    if part == "aux":
        return HEAD_LOSSES[".".join(rest)]
    group, layer, term = rest
    prefix, suffix = {
        "original": ("", ""), "denoising": ("dn_", ""), "faster_rcnn": ("", "_aux0"), "atss": ("", "_aux1"),
    }[group]  # fmt: skip
    return ("" if layer == last else f"d{layer}.") + f"{prefix}loss_{TERMS[term]}{suffix}"
