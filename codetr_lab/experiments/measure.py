"""Everything that the tables and figures need of one trained model, in one pass over a data set."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from codetr_lab.analysis import (
    IofIobCurve,
    MeanCurve,
    PositivesCounter,
    QueryDistances,
    RelationMatrix,
    average_distances,
    class_activation_maps,
    cross_attention,
    near_both_ends,
)
from codetr_lab.data.transforms import batches
from codetr_lab.engine.evaluate import evaluate

if TYPE_CHECKING:
    from codetr_lab.data.dataset import DetectionDataset
    from codetr_lab.models.codetr import CoDETR

ANALYSED, CONFLICTS = 200, 64
"""The images (the first of the data set) that the analyses, and Grad-CAM, look at; AP is of all."""
IOB = torch.linspace(0, 1, 51, dtype=torch.float64)
"""Where curves are read off for a record."""


def measure(
    model: CoDETR, dataset: DetectionDataset, batch_size: int = 8, *, analysed: int = ANALYSED, progress: bool = False
) -> dict[str, Any]:
    """The numbers of a trained model on a data set that it has not seen; `results/README.md` lists them.

    Traces are looked at one batch at a time, so that any number of images fits into memory.
    """
    start = time.monotonic()
    heads = model.detectors
    metrics = evaluate(model, dataset, heads=heads, batch_size=batch_size, progress=progress)
    stream = batches(
        dataset,
        model.config.image,
        model.config.recipe,
        batch_size=batch_size,
        seed=0,
        epoch=0,
        train=False,
        masks=model.config.needs_masks,
    )
    layers = model.config.transformer.decoder_layers
    customized = layers > 0 and model.config.customized_queries and len(model.heads) > 0
    graded = model.config.aux_losses and (layers > 0 or len(model.heads) > 1)
    curve, positives, distances, relation = MeanCurve(), PositivesCounter(), QueryDistances(), RelationMatrix()
    attention = [MeanCurve(near_both_ends()) for _ in range(layers)]
    chosen = islice(stream, -(-analysed // batch_size))
    for number, (batch, targets) in enumerate(tqdm(chosen, desc="analyse", unit="batch", disable=not progress)):
        trace = model.trace(batch, targets)
        curve.add_trace(trace)
        positives.add(trace)
        for layer, mean in enumerate(attention):
            mean.add_trace(trace, cross_attention(trace, layer=layer))
        if customized:
            distances.add(trace)
        if graded and len(model.heads) and number * batch_size < CONFLICTS:
            relation.add(class_activation_maps(model.trace(batch, targets, grad=True)))
    by_head = positives.result()
    matrix = relation.matrix()
    return {
        "k": len(model.heads),
        "aux_heads": list(model.heads),
        "ap": metrics[heads[0]].ap,
        "ap50": metrics[heads[0]].ap50,
        "stats": metrics[heads[0]].to_json()["stats"],
        "ap_by_head": {head: m.ap for head, m in metrics.items()},
        "positives_per_object": sum(by_head.values()),
        "positives_by_head": by_head,
        "positives_by_size": positives.by_size(),
        "iof_iob_area": curve.curve().area(),
        "iof_iob_area_per_image": curve.mean_area(),
        "iof_iob_curve": read_off(curve.curve()),
        "attention": [
            {"area": c.curve().area(), "area_per_image": c.mean_area(), "curve": read_off(c.curve())} for c in attention
        ],
        "distances": distances.result(),
        "relation": matrix,
        "head_distances": average_distances(matrix) if len(matrix) > 1 else {},
        "parameters": sum(p.numel() for p in model.parameters()),
        "eval_seconds": round(time.monotonic() - start, 1),
    }


def read_off(curve: IofIobCurve) -> list[float]:
    """IoF at the 51 IoB of `IOB`."""
    return [round(value, 5) for value in curve.at(IOB).tolist()]
