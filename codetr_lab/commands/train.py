"""`codetr train` and `codetr eval`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from codetr_lab.commands.common import open_data, open_datasets, place, settings, split_names
from codetr_lab.engine.options import TrainOptions
from codetr_lab.models.config import ConfigError


@dataclass(frozen=True)
class Train:
    """Train a model: `codetr train --preset lab_co_k2 --data shapes --out runs/k2`."""

    out: Path
    """The run's folder."""
    preset: str | None = None
    """Which model; `codetr models` lists them. Left out: lab_co_k2, or what --init holds."""
    data: str = "shapes"
    """`shapes`, `shapes:easy`, `shapes:hard`, a COCO-format folder or file, or `fiftyone:NAME`."""
    val_data: str | None = None
    """Data to evaluate on, where `--data` has no validation split of its own."""
    drop_invalid: bool = False
    """Leave invalid annotations out instead of refusing the data."""
    set: tuple[str, ...] = ()
    """Change the model: `transformer.heads=4 aux_heads=atss backbone.weights=FILE`."""
    options: TrainOptions = field(default_factory=TrainOptions)

    def run(self) -> int:
        from codetr_lab.engine.checkpoint import locate, read_config
        from codetr_lab.engine.train import train
        from codetr_lab.models.presets import preset

        if self.preset is None and self.options.init is not None:
            config = read_config(locate(self.options.init))
        else:
            config = preset(self.preset or "lab_co_k2")
        config = settings(config, self.set)
        result = train(config, *open_datasets(self.data, self.val_data, self.drop_invalid), self.out, self.options)
        scores = "".join(f", {head} AP {m.stats['AP']:.3f}" for head, m in result.metrics.items())
        print(f"trained {result.model.config.recipe.steps} steps in {result.seconds:.0f} s{scores}: {self.out}")
        print(f"  codetr eval {self.out} --data {self.data}    codetr predict IMAGE --model {self.out}", end="")
        print(f" --heads {','.join(result.model.detectors)}")
        return 0


@dataclass(frozen=True)
class Eval:
    """COCO numbers of a trained model, per head and per class."""

    model: tyro.conf.Positional[str]
    """A run's folder, the name of a shipped model, or of released weights; `codetr models` lists both."""
    weights: Path | None = None
    """A released .pth file that you fetched yourself; the model then names its preset."""
    data: str = "shapes"
    """`shapes`, `shapes:easy`, `shapes:hard`, a COCO-format folder or file, or `fiftyone:NAME`."""
    split: str = "val"
    """`train` or `val`; a folder may have others."""
    drop_invalid: bool = False
    """Leave invalid annotations out instead of refusing the data."""
    heads: str | None = None
    """Comma-separated: `detr,atss,faster_rcnn`. Left out: all that the model has."""
    limit: int | None = None
    """Evaluate on the first images only."""
    batch_size: int = 8
    """At most so many images share a forward pass; only those of one size do."""
    tta: bool = False
    """Look at each image at three sizes and mirrored, and merge by soft-NMS: six times the work."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` takes a GPU where there is one."""
    out: Path | None = None
    """Write the numbers to this JSON file."""

    def run(self) -> int:
        from codetr_lab.engine.checkpoint import load, write_atomically
        from codetr_lab.engine.evaluate import evaluate, format_metrics
        from codetr_lab.engine.records import plain
        from codetr_lab.engine.tta import TTA

        model = load(self.model, self.weights)
        dataset = open_data(self.data, self.split, self.drop_invalid)
        if model.config.classes and dataset.classes != model.config.classes:
            raise ConfigError(
                f"{self.model} knows the classes {', '.join(model.config.classes)}, but {self.data} has "
                f"{', '.join(dataset.classes)}"
            )
        heads = split_names(self.heads) if self.heads else model.detectors
        metrics = evaluate(
            model, dataset, heads=heads, batch_size=self.batch_size, limit=self.limit, device=place(self.device),
            tta=TTA() if self.tta else None,
        )  # fmt: skip
        print(format_metrics(metrics))
        if self.out is not None:
            content = {head: {"metrics": m.stats, "per_class": m.per_class} for head, m in metrics.items()}
            write_atomically(self.out, (json.dumps(plain(content), indent=2) + "\n").encode())
        return 0
