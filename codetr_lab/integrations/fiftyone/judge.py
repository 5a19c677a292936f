"""Right, false and missed, by FiftyOne's own evaluation, and what the heads make of each other."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torchvision.ops import box_iou
from tqdm.auto import tqdm

from codetr_lab.integrations.records import field_prefixes

if TYPE_CHECKING:
    import fiftyone as fo

TRUTH = "ground_truth"
IOU = 0.5
SHOWN = 0.3
"""Score from which a detection counts as a claim when heads are compared."""


def detection_fields(dataset: fo.Dataset, models: list[str]) -> dict[str, list[str]]:
    """By model: the fields that hold its heads' detections, the decoder's first."""
    schema = dataset.get_field_schema()
    fields = {}
    for model, prefix in field_prefixes(models).items():
        maps = f"{prefix}encoder_map"
        if maps not in schema:
            continue
        heads = [name.removeprefix(f"{prefix}loss_aux_") for name in schema if name.startswith(f"{prefix}loss_aux_")]
        fields[model] = [prefix + head for head in ("detr", *heads) if prefix + head in schema]
    return fields


def judge(dataset: fo.Dataset, models: list[str], progress: bool = True) -> None:
    """Evaluate every head (COCO's protocol, IoU 0.5 for true and false, AP over 0.5:0.95) and compare the heads.

    Adds per sample `eval_<field>_tp`, `_fp`, `_fn`; `heads_disagree` (share of objects that some heads of the first
    model find and others miss); `lone_false_positives` (false detections of the first model that no other head shares);
    `gains` and `losses` (objects that the first model's decoder finds and the second's misses, and the reverse). AP per
    head goes to `dataset.info["AP"]`.
    """
    import fiftyone as fo

    fields = detection_fields(dataset, models)
    scores = {}
    for field in tqdm(
        [f for part in fields.values() for f in part], desc="evaluate", unit="head", disable=not progress
    ):
        results = dataset.evaluate_detections(
            field, gt_field=TRUTH, eval_key=f"eval_{field}", method="coco", iou=IOU, iscrowd="crowd",
            compute_mAP=True, dynamic=False, progress=False,
        )  # fmt: skip
        scores[field] = float(results.mAP())
    dataset.info["AP"] = scores
    own, *others = list(fields.values())
    rival = others[0][0] if others else None
    columns = {path: dataset.values(path) for path in _paths(own, rival)}
    rows = [{path: column[i] or [] for path, column in columns.items()} for i in range(len(dataset))]
    for name in ("heads_disagree", "lone_false_positives", *(("gains", "losses") if rival else ())):
        kind = fo.FloatField if name == "heads_disagree" else fo.IntField
        dataset.add_sample_field(name, kind)
        dataset.set_values(name, [_compare(row, own, rival)[name] for row in rows], progress=False)
    dataset.save()


def _paths(own: list[str], rival: str | None) -> list[str]:
    judged = [*own, *([rival] if rival else [])]
    return [
        f"{TRUTH}.detections.crowd",
        *(f"{TRUTH}.detections.eval_{field}" for field in judged),
        *(f"{field}.detections.{what}" for field in own for what in ("bounding_box", "confidence", f"eval_{field}")),
    ]


def _compare(row: Mapping[str, list[Any]], own: list[str], rival: str | None) -> dict[str, Any]:
    """The comparisons of one image; `row` holds its values by path."""
    crowd = row[f"{TRUTH}.detections.crowd"]
    found = {
        field: [v == "tp" for v, left_out in zip(row[f"{TRUTH}.detections.eval_{field}"], crowd, strict=True)
                if not left_out]
        for field in [*own, *([rival] if rival else [])]
    }  # fmt: skip
    by_object = list(zip(*(found[field] for field in own), strict=True))
    split = sum(len(set(one)) > 1 for one in by_object)
    result = {
        "heads_disagree": split / len(by_object) if by_object else 0.0,
        "lone_false_positives": _lone(row, own) if len(own) > 1 else 0,
    }
    if rival:
        pairs = list(zip(found[own[0]], found[rival], strict=True))
        result |= {"gains": sum(a and not b for a, b in pairs), "losses": sum(b and not a for a, b in pairs)}
    return result


def _lone(row: Mapping[str, list[Any]], fields: list[str]) -> int:
    """False detections above `SHOWN` that overlap no other head's detection of that score."""
    boxes, false = {}, {}
    for field in fields:
        shown = [i for i, score in enumerate(row[f"{field}.detections.confidence"]) if score >= SHOWN]
        xywh = torch.tensor([row[f"{field}.detections.bounding_box"][i] for i in shown]).reshape(-1, 4)
        boxes[field] = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        verdicts = row[f"{field}.detections.eval_{field}"]
        false[field] = torch.tensor([verdicts[i] == "fp" for i in shown], dtype=torch.bool)
    shared = {field: torch.zeros(len(boxes[field]), dtype=torch.bool) for field in fields}
    for a, b in combinations(fields, 2):
        if len(boxes[a]) and len(boxes[b]):
            overlap = box_iou(boxes[a], boxes[b]) >= IOU
            shared[a] |= overlap.any(1)
            shared[b] |= overlap.any(0)
    return sum(int((false[field] & ~shared[field]).sum()) for field in fields)
