"""One-to-one matching by minimal total cost (DETR, Carion et al., 2020; costs as Deformable DETR)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from codetr_lab import boxes as box_ops
from codetr_lab.structures import NEGATIVE, Assignment, Candidates, Quality, Size, Target


def matching_costs(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    whwh: Tensor,
    *,
    classification: float = 2.0,
    l1: float = 5.0,
    giou: float = 2.0,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
) -> dict[str, Tensor]:
    """The weighted terms of the cost of giving prediction q to object n; leading dimensions broadcast.

    Args:
        logits: (...,Q,C). `boxes_cxcywh`: (...,Q,4) normalised.
        labels: (...,N). `target_boxes`: (...,N,4) xyxy pixels.
        whwh: (...,4) valid width, height, width, height.

    Returns:
        `classification`, `l1`, `giou`, each (...,Q,N).
    """
    probability = logits.sigmoid()
    negative = -(1 - probability + 1e-12).log() * (1 - focal_alpha) * probability**focal_gamma
    positive = -(probability + 1e-12).log() * focal_alpha * (1 - probability) ** focal_gamma
    difference = positive - negative
    index = labels[..., None, :].expand(*difference.shape[:-1], labels.shape[-1])
    normalised = box_ops.xyxy_to_cxcywh(target_boxes / whwh[..., None, :])
    predicted = box_ops.cxcywh_to_xyxy(boxes_cxcywh) * whwh[..., None, :]
    return {
        "classification": classification * difference.gather(-1, index),
        "l1": l1 * torch.cdist(boxes_cxcywh, normalised.expand(*boxes_cxcywh.shape[:-2], -1, -1), p=1),
        "giou": -giou * box_ops.giou(predicted[..., None, :], target_boxes[..., None, :, :]),
    }


@torch.no_grad()
def match_batch(
    logits: Tensor, boxes_cxcywh: Tensor, labels: Tensor, target_boxes: Tensor, counts: list[int], whwh: Tensor,
    *, repeats: int = 1, **weights: float,
) -> Tensor:  # fmt: skip
    """Match every layer and image at once.

    Args:
        logits: (L,B,Q,C). `boxes_cxcywh`: (L,B,Q,4).
        labels: (B,N), `target_boxes`: (B,N,4), padded to the largest number of objects; `counts`: per image.
        repeats: how often every object is there to be matched (H-DETR).

    Returns:
        (L,B,Q) long: the matched object or `NEGATIVE`.
    """
    gt_index = torch.full(logits.shape[:3], NEGATIVE)
    if max(counts, default=0):
        terms = matching_costs(logits.float(), boxes_cxcywh.float(), labels, target_boxes, whwh, **weights)
        # A NaN must reach the loss, where it is reported, and not stop the solver here.
        costs = torch.nan_to_num(_total(terms), nan=1e6, posinf=1e6, neginf=-1e6).cpu().numpy()
        for layer, of_layer in enumerate(costs):
            for image, (cost, count) in enumerate(zip(of_layer, counts, strict=True)):
                query, objects = linear_sum_assignment(np.tile(cost[:, :count], (1, repeats)))
                gt_index[layer, image, query] = torch.from_numpy(objects % max(1, count))
    return gt_index.to(logits.device)


def hungarian(
    candidates: Candidates, target: Target, *, image_size: Size, classification: float = 2.0, l1: float = 5.0,
    giou: float = 2.0,
) -> Assignment:  # fmt: skip
    """Give every object the one candidate that makes the total cost smallest (needs `candidates.scores`, logits (M,C)).

    The weights are the release's. The cost is the quality (less is better); an object's threshold is what its match
    cost.

    Raises:
        ValueError: the candidates have no class logits.
    """
    if candidates.scores is None or candidates.scores.ndim != 2:
        raise ValueError("hungarian needs candidates with class logits: scores of shape (M, C)")
    parameters = {"image_size": image_size, "classification": classification, "l1": l1, "giou": giou}
    whwh = candidates.boxes.new_tensor([image_size[1], image_size[0]] * 2)
    gt_index = match_batch(
        candidates.scores[None, None], box_ops.xyxy_to_cxcywh(candidates.boxes / whwh)[None, None],
        target["labels"][None], target["boxes"][None], [len(target["labels"])], whwh[None],
        classification=classification, l1=l1, giou=giou,
    )[0, 0]  # fmt: skip
    return hungarian_assignment(candidates, target, gt_index, parameters)


def hungarian_assignment(
    candidates: Candidates, target: Target, gt_index: Tensor, parameters: dict[str, Any]
) -> Assignment:
    """The record of a match that `match_batch` has made (`gt_index` (M,))."""
    count = len(target["labels"])
    threshold = torch.full((count,), float("nan"), device=gt_index.device)
    if count:
        matched = (gt_index >= 0).nonzero().flatten()
        objects = gt_index[matched]
        cost = _total(_costs(candidates, matched, target, parameters)).gather(1, objects[:, None])[:, 0]
        threshold.scatter_reduce_(0, objects, cost, "amax", include_self=False)
    return Assignment(
        candidates, target, gt_index, torch.ones_like(gt_index, dtype=torch.bool),
        Quality("matching cost", higher_is_better=False), threshold, "Hungarian matching", parameters, _explain,
    )  # fmt: skip


def pair_cost(assignment: Assignment, rows: Tensor) -> Tensor:
    """(R,N) total costs of giving the candidates at `rows` (R,) to each object."""
    return _total(_costs(assignment.candidates, rows, assignment.target, assignment.parameters))


def _total(terms: dict[str, Tensor]) -> Tensor:
    return terms["classification"] + terms["l1"] + terms["giou"]


def _costs(candidates: Candidates, rows: Tensor, target: Target, parameters: dict[str, Any]) -> dict[str, Tensor]:
    """The terms of giving the candidates at `rows` to each object."""
    if candidates.scores is None:
        raise ValueError("Hungarian costs need candidates with class logits")
    boxes, logits = candidates.boxes[rows], candidates.scores[rows]
    weights = {name: parameters[name] for name in ("classification", "l1", "giou")}
    height, width = parameters["image_size"]
    whwh = boxes.new_tensor([width, height] * 2)
    normalised = box_ops.xyxy_to_cxcywh(boxes / whwh)
    return matching_costs(logits, normalised, target["labels"], target["boxes"], whwh, **weights)


def _explain(assignment: Assignment, index: int) -> str:
    target = assignment.target
    if not len(target["labels"]):
        return f"Query {index} is negative: the image has no objects."
    row = torch.tensor([index], device=assignment.gt_index.device)
    terms = _costs(assignment.candidates, row, target, assignment.parameters)
    total = _total(terms)[0]
    matched = int(assignment.gt_index[index])
    if matched >= 0:
        parts = ", ".join(f"{name} {float(term[0, matched]):.2f}" for name, term in terms.items())
        rivals = int((assignment.gt_index == NEGATIVE).sum())
        return (
            f"Query {index} is positive: of all ways to give each object exactly one query, the cheapest gives it "
            f"object {matched} at cost {float(total[matched]):.2f} ({parts}). The other {rivals} unmatched queries are "
            "negative, however well they overlap."
        )
    nearest = int(total.argmin())
    winner = int((assignment.gt_index == nearest).nonzero()[0, 0]) if (assignment.gt_index == nearest).any() else None
    taken = f"query {winner} took it at {float(assignment.threshold[nearest]):.2f}" if winner is not None else "untaken"
    return (
        f"Query {index} is negative: its cheapest object is {nearest} at cost {float(total[nearest]):.2f}, but an "
        f"object takes one query only, and {taken}."
    )
