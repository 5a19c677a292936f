"""Turn a run of the quick experiment into a model that comes with the package.

`python -m codetr_lab.experiments.ship runs/quick/cells/k2_seed0_... lab_co_k2`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import codetr_lab
from codetr_lab.data.shapes import Shapes
from codetr_lab.engine.checkpoint import load_model, save_model, write_atomically
from codetr_lab.engine.evaluate import evaluate, format_metrics
from codetr_lab.experiments.cell import ExperimentError, Record
from codetr_lab.experiments.quick import QuickOptions

SHIPPED = Path(codetr_lab.__file__).parent / "weights"
"""Where the package keeps its models."""


def ship(run: str | Path, name: str, folder: Path = SHIPPED) -> dict[str, Any]:
    """Write the model of a finished cell to `folder/name`, in half precision and with its auxiliary heads.

    Beside the weights lie `config.json` and `metrics.json`: the command that trained the model, the cell's record, and
    the COCO numbers that the stored model, read back, reaches on the cell's validation images.

    Returns:
        The content of `metrics.json`.

    Raises:
        ExperimentError: `run` is no finished cell.
        CheckpointError: the cell kept no model (`--keep-models` does), or `folder` cannot be written.
    """
    try:
        record: Record = json.loads((Path(run) / "record.json").read_text())
    except FileNotFoundError:
        raise ExperimentError(
            f"{run}: holds no record.json; ship a finished run of codetr experiment quick --keep-models"
        ) from None
    target = folder / name
    save_model(load_model(run), target, half=True)
    model = load_model(target)
    metrics = evaluate(model, Shapes("val", images=record["val_images"]), heads=model.detectors)
    print(format_metrics(metrics))
    content = {
        "command": command(record),
        "record": record,
        "stored_as": "float16 matrices and convolutions, float32 vectors",
        "metrics": {head: numbers.to_json() for head, numbers in metrics.items()},
    }
    write_atomically(target / "metrics.json", (json.dumps(content, indent=2) + "\n").encode())
    return content


def command(record: Record) -> str:
    """The command line that makes this cell's run, among others."""
    words = ["codetr experiment quick --keep-models", f"--steps {record['steps']}", f"--seeds {record['seed']}"]
    for name in ("train_images", "val_images"):
        if record[name] != getattr(QuickOptions(), name):
            words.append(f"--{name.replace('_', '-')} {record[name]}")
    return " ".join(words)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    ship(sys.argv[1], sys.argv[2])
