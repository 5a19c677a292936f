"""Co-Deformable-DETR R50 against the released implementation's numbers (tests/golden/FORMAT.md)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_case import SIZES, Golden, batch, released_model, targets

from codetr_lab import draws
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.released import released_key

NAME = "co_deformable_detr_r50_1x_coco"
RELATIVE = 1e-4
HEADS = {"detr": "det", "faster_rcnn": "det_two_stage", "atss": "det_one_stage"}
TERMS = {"classification": "cls", "l1": "bbox", "giou": "iou"}
HEAD_LOSSES = {
    "atss.classification": "loss_cls1", "atss.box": "loss_bbox1", "atss.centerness": "loss_centerness1",
    "faster_rcnn.rpn_classification": "loss_rpn_cls", "faster_rcnn.rpn_box": "loss_rpn_bbox",
    "faster_rcnn.roi_classification": "loss_cls0", "faster_rcnn.roi_box": "loss_bbox0",
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> CoDETR:
    return released_model("co_deformable_detr_r50", NAME)


@pytest.fixture
def ranked(model: CoDETR, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank the tokens as the reference did, where float noise alone decides: a query's content depends on its rank.

    Every token must still be within 1e-4 of the logit that the reference has at that rank.
    """
    reference = Golden(f"golden_{NAME}_{case}")
    index = torch.from_numpy(reference["topk_indices"])
    values = torch.from_numpy(reference["topk_values"])[:, : index.shape[1]]

    def select(logits: torch.Tensor) -> torch.Tensor:
        ours = logits[..., 0].detach().topk(index.shape[1], dim=1)
        assert (ours.values - values).abs().max() < 1e-4
        assert (logits[..., 0].detach().gather(1, index) - values).abs().max() < 1e-4
        assert (ours.indices == index).float().mean() > 0.98
        return index

    monkeypatch.setattr(model.selection, "select", select)


@pytest.mark.usefixtures("ranked")
@pytest.mark.parametrize("case", SIZES)
@torch.no_grad()
def test_evaluation_gives_the_released_numbers(model: CoDETR, case: str) -> None:
    golden, images = Golden(f"golden_{NAME}_{case}"), batch(case)
    model.eval()
    features = model.backbone(images.pixels)
    neck = model.neck(features)
    memory = model.encoder(neck, images.pad_mask)
    trace = model.trace(images)
    original = trace.groups["original"]
    stages = {f"backbone/{i}": x for i, x in enumerate(features)}
    stages |= {f"neck/{i}": x for i, x in enumerate(neck)}
    stages |= {"memory": memory.tokens.transpose(0, 1)}
    stages |= {f"pyramid/{i}": x for i, x in enumerate(trace.pyramid)}
    stages |= {"enc_cls_all": trace.proposals.logits, "enc_box_all": trace.proposals.boxes_cxcywh}
    for name, ours in stages.items():
        assert golden.error(name, ours) < RELATIVE, name
    magnitude = np.abs(golden.data["dec_cls"]).max()
    assert golden.error("dec_cls", original.logits) * magnitude < 1e-3
    assert golden.error("dec_box", original.boxes_cxcywh) < 1e-4
    for head, key in HEADS.items():
        for image in range(len(images)):
            found = trace.detections[image] if head == "detr" else trace.heads[head].detections[image]
            expected = golden[f"{key}/{image}/bboxes"]
            assert (found.labels.numpy() == golden[f"{key}/{image}/labels"]).all(), (head, image)
            assert np.abs(found.scores.numpy() - expected[:, 4]).max() < 1e-4, (head, image)
            assert np.abs(found.boxes.numpy() - expected[:, :4]).max() < 0.05, (head, image)


@pytest.mark.usefixtures("ranked")
@pytest.mark.parametrize("case", SIZES)
def test_training_gives_the_released_losses_positives_and_gradients(model: CoDETR, case: str) -> None:
    golden, images = Golden(f"train_{NAME}_{case}"), batch(case)
    truth = targets(golden, case)
    model.train()
    model.zero_grad()
    with draws.first_k():
        losses = model(images, truth)
    expected = {name: sum(v) if isinstance(v, list) else v for name, v in golden.notes["losses"].items()}
    assert {_released_loss(name) for name in losses} == {name for name in expected if not name.startswith("acc")}
    for name, loss in losses.items():
        assert float(loss.detach()) == pytest.approx(expected[_released_loss(name)], rel=1e-4, abs=1e-6), name
    sum(losses.values()).backward()
    assert float(sum(losses.values()).detach()) == pytest.approx(golden.notes["total_loss"], rel=1e-4)

    norms = dict(zip(golden.data["grad/names"], golden.data["grad/stats"][:, 0], strict=True))
    floor = 1e-5 * golden.notes["grad_total_norm"]
    shared = torch.cat([model.customizers[head].head_pos_embed.grad for head in ("faster_rcnn", "atss")]).norm()
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            released = released_key(name, model)
            ours = shared if released.endswith("head_pos_embed.weight") else parameter.grad.norm()
            assert abs(float(ours) - norms[released]) < 1e-3 * norms[released] + floor, name
            compared += 1
    assert compared == len(norms) + 1  # two scalars here share one released tensor

    with draws.first_k():
        trace = model.trace(images, truth)
    for image in range(len(images)):
        for index, head in enumerate(("faster_rcnn", "atss")):
            positives = trace.heads[head].positives[image]
            where = f"aux{index}_{'rcnn' if head == 'faster_rcnn' else head}/{image}"
            assert np.abs(positives.boxes.numpy() - golden[f"{where}/pos_coords"]).max() < 1e-3
            assert (positives.labels.numpy() == golden[f"{where}/pos_labels"]).all()
    layers = model.config.transformer.decoder_layers
    for layer in range(layers + 1):
        for image in range(len(images)):
            records = trace.groups["original"].assignments
            record = trace.proposals.assignments[image] if layer == layers else records[layer][image]
            key = f"hungarian/{layer * len(images) + image}"
            query = record.positive.nonzero().flatten()
            order = np.argsort(golden[key])
            assert (query.numpy() == golden[key][order]).all()
            assert (record.gt_index[query].numpy() == golden[f"{key}_gt"][order]).all()


def _released_loss(name: str) -> str:
    """The released name of one of our losses."""
    part, *rest = name.split(".")
    if part == "encoder":
        return f"enc_loss_{TERMS[rest[0]]}"
    if part == "aux":
        return HEAD_LOSSES[".".join(rest)]
    group, layer, term = rest
    suffix = {"original": "", "faster_rcnn": "_aux0", "atss": "_aux1"}[group]
    return ("" if layer == "5" else f"d{layer}.") + f"loss_{TERMS[term]}{suffix}"
