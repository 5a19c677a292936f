"""All losses of a batch: Eq. 6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.queries import AssignedGroup
from codetr_lab.models.selection import ONE_TO_MANY, ORIGINAL
from codetr_lab.models.set_loss import PaddedTargets, given_assignments, group_assignments, set_losses
from codetr_lab.structures import Assignment, HeadOutput, ImageBatch, Proposals, QueryGroup, Target


def detector_losses(
    config: CoDETRConfig,
    proposals: Mapping[str, Proposals],
    groups: Mapping[str, QueryGroup],
    assigned: Mapping[str, AssignedGroup],
    outputs: Mapping[str, HeadOutput],
    targets: Sequence[Target],
    batch: ImageBatch,
    keep: bool = False,
) -> tuple[dict[str, Proposals], dict[str, QueryGroup], dict[str, Tensor]]:
    """The matched branches, denoising, lambda_1 times each customized branch, the encoder's and the heads' own losses.

    Group-DETR's groups count 1 / `decoder.groups` each, with the encoder losses of their proposals (its normaliser is
    the number of objects in all groups); H-DETR's one-to-many branch counts one, over its repeated objects.

    Args:
        proposals: by the name of the group that they became.
        assigned: the groups whose objects are given; all others are matched.
        keep: record assignments for people to look at.

    Returns:
        Proposals and groups with their assignments (if `keep`), and the losses.
    """
    truth = PaddedTargets.of(targets, batch)
    total: dict[str, Tensor] = {}
    done: dict[str, QueryGroup] = {}
    proposed: dict[str, Proposals] = {}
    share = 1 / config.decoder.groups

    for name, tokens in proposals.items():
        values, records = encoder_losses(config, tokens, truth, targets, batch, keep)
        prefix = "encoder" if name == ORIGINAL else f"encoder.{name}"
        total |= {f"{prefix}.{term}": share * value for term, value in values.items()}
        proposed[name] = replace(tokens, assignments=records)

    for name, group in groups.items():
        predictions = (group.logits, group.boxes_cxcywh)
        layers, assignments = len(group.logits), []
        if name in assigned:
            given = assigned[name]
            gt_index = given.gt_index.expand(layers, -1, -1)
            values = set_losses(
                *predictions, gt_index, truth, config, weight=given.weight, positives=float(given.count)
            )  # fmt: skip
            values = {term: given.factor * value for term, value in values.items()}
            if keep:
                assignments = given_assignments(given.boxes, given.gt_index, given.weight, targets, name, layers)
        else:
            repeats = config.decoder.repeats if name == ONE_TO_MANY else 1
            gt_index = truth.match(*predictions, config.match, repeats)
            values = set_losses(*predictions, gt_index, truth, config)
            if name != ONE_TO_MANY:
                values = {term: share * value for term, value in values.items()}
            if keep:
                assignments = group_assignments(*predictions, gt_index, targets, batch, config, repeats)
        done[name] = replace(group, assignments=assignments)
        for term, value in values.items():
            total |= {f"decoder.{name}.{layer}.{term}": v for layer, v in enumerate(value)}
    for name, output in outputs.items():
        total |= {f"aux.{name}.{term}": value for term, value in output.losses.items()}
    return proposed, done, total


def encoder_losses(
    config: CoDETRConfig,
    proposals: Proposals,
    truth: PaddedTargets,
    targets: Sequence[Target],
    batch: ImageBatch,
    keep: bool = False,
) -> tuple[dict[str, Tensor], list[Assignment]]:
    """Losses of the memory tokens' own predictions, matched like a decoder layer's (`decoder.encoder_loss`)."""
    if config.decoder.encoder_loss == "objects":
        logits, boxes = proposals.logits, proposals.boxes_cxcywh
        truth = truth.as_objects()
        targets = [target | {"labels": torch.zeros_like(target["labels"])} for target in targets]
    else:
        logits, boxes = proposals.selected()
    predictions = (logits[None], boxes[None])
    gt_index = truth.match(*predictions, config.match)
    values = {term: value[0] for term, value in set_losses(*predictions, gt_index, truth, config).items()}
    return values, group_assignments(*predictions, gt_index, targets, batch, config)[0] if keep else []
