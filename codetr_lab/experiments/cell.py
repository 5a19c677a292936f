"""One cell of an experiment: train, measure, write the record down."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from codetr_lab.analysis import MeanCurve, PositivesCounter
from codetr_lab.data.shapes import Shapes
from codetr_lab.data.transforms import batches
from codetr_lab.engine.checkpoint import STATE_FILE, WEIGHTS_FILE, write_atomically
from codetr_lab.engine.evaluate import evaluate
from codetr_lab.engine.options import TrainOptions
from codetr_lab.engine.records import read_run
from codetr_lab.engine.train import train
from codetr_lab.experiments.quick import PRESETS, Cell, Record
from codetr_lab.models.presets import preset
from codetr_lab.ops.compiled import unavailable

if TYPE_CHECKING:
    from codetr_lab.data.dataset import DetectionDataset
    from codetr_lab.models.codetr import CoDETR


def fingerprint(cell: Cell) -> str:
    """Twelve hexadecimal digits of everything in the settings that decides a cell's numbers."""
    options = cell.options
    content = {
        "config": dataclasses.asdict(preset(PRESETS[cell.k])),
        "steps": options.steps,
        "seed": cell.seed,
        "data": ["shapes", options.train_images, options.val_images],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def run_cell(cell: Cell) -> Record:
    """Train (or go on with) a cell on this process's CPU thread, measure it, and write `record.json` last.

    Raises:
        Stopped: Ctrl-C or SIGTERM during training; a checkpoint was written.
        TrainingError, CheckpointError: as in `train`.
    """
    options, folder = cell.options, cell.folder
    val_data = Shapes("val", images=options.val_images)
    result = train(
        preset(PRESETS[cell.k]),
        Shapes("train", images=options.train_images),
        None,
        folder,
        TrainOptions(
            steps=options.steps, seed=cell.seed, threads=1, device="cpu", progress=False,
            resume=read_run(folder) is not None,
        ),
    )  # fmt: skip
    record = {
        "k": cell.k,
        "seed": cell.seed,
        "steps": options.steps,
        "seconds": round(result.seconds, 1),
        **measure(result.model, val_data),
        "preset": PRESETS[cell.k],
        "train_images": options.train_images,
        "val_images": options.val_images,
        "operator": "reference" if unavailable() else "compiled",
        "commit": (read_run(folder) or {}).get("commit"),  # when the run began, not what is checked out by now
    }
    write_atomically(folder / "record.json", (json.dumps(record, indent=2) + "\n").encode())
    (folder / STATE_FILE).unlink(missing_ok=True)
    if not options.keep_models:
        (folder / WEIGHTS_FILE).unlink(missing_ok=True)
    return record


def measure(model: CoDETR, dataset: DetectionDataset, batch_size: int = 8) -> dict[str, Any]:
    """The numbers of a trained model on a data set that it has not seen.

    Returns:
        `ap` and `ap50` of the main head; `ap_by_head`; `positives_per_object`, the sum over the decoder's original
        queries and all heads, and `positives_by_head`; `iof_iob_area` under the mean curve of the encoder's memory
        against boxes, and `iof_iob_area_per_image`, the mean of the images' own areas; `aux_heads`; `eval_seconds`.
    """
    start = time.monotonic()
    metrics = evaluate(model, dataset, heads=model.detectors, batch_size=batch_size, progress=False)
    curve, positives = MeanCurve(), PositivesCounter()
    stream = batches(
        dataset, model.config.image, model.config.recipe, batch_size=batch_size, seed=0, epoch=0, train=False
    )
    for batch, targets in stream:
        trace = model.trace(batch, targets)
        curve.add_trace(trace)
        positives.add(trace)
    by_head = positives.result()
    return {
        "aux_heads": list(model.heads),
        "ap": metrics[model.detectors[0]].ap,
        "ap50": metrics[model.detectors[0]].ap50,
        "ap_by_head": {head: m.ap for head, m in metrics.items()},
        "positives_per_object": sum(by_head.values()),
        "positives_by_head": by_head,
        "iof_iob_area": curve.curve().area(),
        "iof_iob_area_per_image": curve.mean_area(),
        "eval_seconds": round(time.monotonic() - start, 1),
    }


def stop_with_parent() -> None:
    """In a worker process: should the parent die, stop as if asked to, with a checkpoint."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
