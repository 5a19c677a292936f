"""One cell of an experiment: a variant and a seed. Train, measure, write the record down; go on where it stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codetr_lab.experiments.variants import Variant
from codetr_lab.models.config import CoDETRConfig, override

if TYPE_CHECKING:
    from codetr_lab.data.dataset import DetectionDataset

Record = dict[str, Any]
"""What one finished cell measured; `results/README.md` describes the fields."""
LOOKS, PROBE = 10, 64
"""Looks at the matching during a run, and the images that they look at."""
CURVE_POINTS, CURVE_IMAGES = 5, 100
"""Evaluations during a run, the last one included, and the images of those before it."""


class ExperimentError(ValueError):
    """An experiment cannot go on; the message names the run and the mend."""


@dataclass(frozen=True)
class Setting:
    """What all cells of an experiment share.

    Attributes:
        out: folder of the cells.
        steps: of a variant of length 1.
        data, val_data: as `codetr train` takes them; None: the validation split of `data`.
        train_images, val_images: the first of each; None: all.
        changes: settings of every variant, by dotted name.
        keep_models: keep the trained weights.
    """

    out: Path
    steps: int
    data: str = "shapes"
    val_data: str | None = None
    train_images: int | None = None
    val_images: int | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    keep_models: bool = True

    def dataset(self, split: str) -> DetectionDataset:
        """The images of `train` or `val`."""
        from codetr_lab.data.catalog import open_dataset
        from codetr_lab.data.shapes import Shapes
        from codetr_lab.engine.evaluate import FirstImages

        count = self.train_images if split == "train" else self.val_images
        if self.data == "shapes" and self.val_data is None:
            return Shapes(split, images=count)
        data = open_dataset(self.val_data or self.data if split == "val" else self.data, split)
        return data if count is None else FirstImages(data, count)


@dataclass(frozen=True)
class Cell:
    """One run: a variant and a seed in a setting."""

    variant: Variant
    seed: int
    setting: Setting

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.variant.title}, seed {self.seed}"

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, round(self.setting.steps * self.variant.length))

    def config(self) -> CoDETRConfig:
        """The model that is trained, before it learns the data's classes."""
        return override(self.variant.config(), **dict(self.setting.changes))

    @property
    def folder(self) -> Path:
        """Named after everything that decides the numbers, so that another setting never meets this folder."""
        return self.setting.out / f"{self.variant.name}_{self.steps}_s{self.seed}_{self.fingerprint()}"

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of everything in the settings that decides the cell's numbers.

        Settings at the default of `CoDETRConfig` are left out, so that a new one leaves old cells as they are. The
        code itself has no part in it: delete the cells after a change that alters numbers.
        """
        config = dataclasses.asdict(self.config())
        config.pop("preset")
        content = {
            "config": _differences(config, dataclasses.asdict(CoDETRConfig())),
            "steps": self.steps,
            "seed": self.seed,
            "data": [self.setting.data, self.setting.val_data, self.setting.train_images, self.setting.val_images],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def record(self) -> Record | None:
        """What the finished cell measured; None while it is not finished, or its wanted model was thrown away."""
        if self.setting.keep_models and not (self.folder / "model.safetensors").exists():
            return None
        try:
            return json.loads((self.folder / "record.json").read_text())
        except FileNotFoundError:
            return None


def _differences(config: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and isinstance(default.get(name), dict) and name != "options":
            if inner := _differences(value, default[name]):
                found[name] = inner
        elif value != default.get(name):
            found[name] = value
    return found


def run_cell(cell: Cell) -> Record:
    """Train (or go on with) a cell on this process's CPU thread, measure it, and write `record.json` last.

    Raises:
        Stopped: Ctrl-C or SIGTERM during training; a checkpoint was written.
        TrainingError, CheckpointError: as in `train`.
    """
    from codetr_lab.analysis import InstabilityRecorder
    from codetr_lab.data.transforms import batches
    from codetr_lab.engine.checkpoint import STATE_FILE, WEIGHTS_FILE, write_atomically
    from codetr_lab.engine.evaluate import FirstImages
    from codetr_lab.engine.options import TrainOptions
    from codetr_lab.engine.records import plain, read_metrics, read_run
    from codetr_lab.engine.train import train
    from codetr_lab.experiments.measure import measure
    from codetr_lab.ops.compiled import unavailable

    setting, folder, config = cell.setting, cell.folder, cell.config()
    val_data = setting.dataset("val")
    observers = []
    if config.transformer.decoder_layers:
        probe = batches(
            FirstImages(val_data, PROBE),
            config.image,
            config.recipe,
            batch_size=8,
            seed=0,
            epoch=0,
            train=False,
            masks=config.needs_masks,
        )
        observers = [InstabilityRecorder(probe, folder / "looks.jsonl", max(1, cell.steps // LOOKS))]
    few = FirstImages(val_data, CURVE_IMAGES)
    result = train(
        config, setting.dataset("train"), few, folder,
        TrainOptions(
            steps=cell.steps, seed=cell.seed, threads=1, device="cpu", progress=False,
            eval_every=max(1, cell.steps // CURVE_POINTS), resume=read_run(folder) is not None,
        ),
        observers=observers,
    )  # fmt: skip
    record = {
        "variant": cell.variant.name,
        "title": cell.variant.title,
        "seed": cell.seed,
        "steps": cell.steps,
        "seconds": round(result.seconds, 1),
        **measure(result.model, val_data),
        "convergence": [
            {"step": line["step"], "ap": next(iter(line["metrics"].values()))["AP"]}
            for line in read_metrics(folder)
            if "metrics" in line
        ],
        "instability": _instability(observers[0]) if observers else None,
        "preset": cell.variant.preset,
        "changes": dict(cell.variant.changes) | dict(setting.changes),
        "data": setting.data,
        "train_images": len(setting.dataset("train")),
        "val_images": len(val_data),
        "operator": "reference" if unavailable() else "compiled",
        "commit": (read_run(folder) or {}).get("commit"),  # when the run began, not what is checked out by now
    }
    write_atomically(folder / "record.json", (json.dumps(plain(record), indent=2) + "\n").encode())
    (folder / STATE_FILE).unlink(missing_ok=True)
    if not setting.keep_models:
        (folder / WEIGHTS_FILE).unlink(missing_ok=True)
    return json.loads((folder / "record.json").read_text())


def _instability(recorder: Any) -> dict[str, Any]:
    """IS at every look, also as a share of the most possible, and the positives per object that each look counted."""
    steps, values = recorder.curve()
    most = recorder.most_possible()
    return {
        "keyed_by": recorder.keyed_by,
        "images": len(recorder.looks[-1].matches),
        "steps": steps,
        "values": values,
        "most_possible": most,
        "mean_share": sum(values) / len(values) / most if values and most else None,
        "last_share": values[-1] / most if values and most else None,
        "positives": [{"step": look.step, **look.positives} for look in recorder.looks],
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
