"""The command `codetr`. Heavy imports wait inside the commands, so that `codetr --help` answers at once."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from codetr_lab.engine.options import TrainOptions
from codetr_lab.experiments.quick import QuickOptions
from codetr_lab.models.config import CoDETRConfig, ConfigError, override
from codetr_lab.usage import parse

if TYPE_CHECKING:
    from codetr_lab.data.dataset import DetectionDataset


def settings(config: CoDETRConfig, assignments: Sequence[str]) -> CoDETRConfig:
    """`config` with `name=value` settings: `transformer.heads=4`, `aux_heads=atss,faster_rcnn`, `backbone.weights=f`.

    Values are read as JSON where they are JSON, else as text; a field that holds several takes commas too.

    Raises:
        ConfigError: no `=`, no such field, or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: write it as name=value, for example transformer.heads=4")
        present: Any = config
        for part in name.split("."):
            present = getattr(present, part, None)  # `override` names an unknown field
        value = _value(text)
        if isinstance(present, tuple) and not isinstance(value, list):
            value = [_value(item) for item in text.split(",") if item]
        values[name] = text if isinstance(present, str) else value
    return override(config, **values)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _datasets(data: str, val_data: str | None, drop_invalid: bool) -> tuple[DetectionDataset, DetectionDataset]:
    from codetr_lab.data.catalog import open_dataset

    return (
        open_dataset(data, "train", drop_invalid=drop_invalid),
        open_dataset(val_data or data, "val", drop_invalid=drop_invalid),
    )


def _heads(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@dataclass(frozen=True)
class Train:
    """Train a model: `codetr train --preset lab_co_k2 --data shapes --out runs/k2`."""

    out: Path
    """The run's folder."""
    preset: str | None = None
    """Which model; `codetr models` lists them. Left out: lab_co_k2, or what --init holds."""
    data: str = "shapes"
    """`shapes`, `shapes:easy`, `shapes:hard`, or a COCO-format folder or file."""
    val_data: str | None = None
    """Data to evaluate on, where `--data` has no validation split of its own."""
    drop_invalid: bool = False
    """Leave invalid annotations out instead of refusing the data."""
    set: tuple[str, ...] = ()
    """Change the model: `transformer.heads=4 aux_heads=atss backbone.weights=FILE`."""
    options: TrainOptions = field(default_factory=TrainOptions)

    def run(self) -> int:
        from codetr_lab.engine.checkpoint import locate, read_config
        from codetr_lab.engine.train import main_head, train
        from codetr_lab.models.presets import preset

        if self.preset is None and self.options.init is not None:
            config = read_config(locate(self.options.init))
        else:
            config = preset(self.preset or "lab_co_k2")
        config = settings(config, self.set)
        result = train(config, *_datasets(self.data, self.val_data, self.drop_invalid), self.out, self.options)
        scores = "".join(f", {head} AP {m.stats['AP']:.3f}" for head, m in result.metrics.items())
        print(f"trained {result.model.config.recipe.steps} steps in {result.seconds:.0f} s{scores}: {self.out}")
        print(f"  codetr eval {self.out} --data {self.data}    codetr predict IMAGE --model {self.out}", end="")
        print(f" --heads {','.join(dict.fromkeys((main_head(config), *config.aux_heads)))}")
        return 0


@dataclass(frozen=True)
class Eval:
    """COCO numbers of a trained model, per head and per class."""

    model: tyro.conf.Positional[str]
    """A run's folder or the name of a shipped model."""
    data: str = "shapes"
    """`shapes`, `shapes:easy`, `shapes:hard`, or a COCO-format folder or file."""
    split: str = "val"
    """`train` or `val`; a folder may have others."""
    drop_invalid: bool = False
    """Leave invalid annotations out instead of refusing the data."""
    heads: str | None = None
    """Comma-separated: `detr,atss,faster_rcnn`. Left out: all that the model has."""
    limit: int | None = None
    """Evaluate on the first images only."""
    batch_size: int = 8
    out: Path | None = None
    """Write the numbers to this JSON file."""

    def run(self) -> int:
        from codetr_lab.data.catalog import open_dataset
        from codetr_lab.engine.checkpoint import load, write_atomically
        from codetr_lab.engine.evaluate import evaluate, format_metrics
        from codetr_lab.engine.records import plain

        model = load(self.model)
        dataset = open_dataset(self.data, self.split, drop_invalid=self.drop_invalid)
        if dataset.classes != model.config.classes:
            raise ConfigError(
                f"{self.model} knows the classes {', '.join(model.config.classes)}, but {self.data} has "
                f"{', '.join(dataset.classes)}"
            )
        heads = _heads(self.heads) if self.heads else ("detr", *model.heads)
        metrics = evaluate(model, dataset, heads=heads, batch_size=self.batch_size, limit=self.limit)
        print(format_metrics(metrics))
        if self.out is not None:
            content = {head: {"metrics": m.stats, "per_class": m.per_class} for head, m in metrics.items()}
            write_atomically(self.out, (json.dumps(plain(content), indent=2) + "\n").encode())
        return 0


@dataclass(frozen=True)
class Predict:
    """Detect objects in images: `codetr predict a.jpg b.png --model lab_co_k2 --heads detr,atss`."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files."""
    model: str = "lab_co_k2"
    """A run's folder or the name of a shipped model."""
    heads: str = "detr"
    """Comma-separated: `detr,atss,faster_rcnn`."""
    threshold: float = 0.3
    """Leave out detections with a lower score."""
    out: Path | None = None
    """Write the detections to this JSON file."""
    save_images: Path | None = None
    """Write annotated images into this folder."""

    def run(self) -> int:
        from codetr_lab.engine.checkpoint import load
        from codetr_lab.engine.predict import record, summary, write_results
        from codetr_lab.images import load_image
        from codetr_lab.viz.annotate import annotate

        if not self.images:
            raise ConfigError("no image given; write codetr predict IMAGE --model NAME")
        model, heads = load(self.model), _heads(self.heads)
        classes, records, taken = model.config.classes, list[dict[str, Any]](), set[str]()
        for path in self.images:
            image = load_image(path)
            found = model.predict([image], heads=heads)[0]
            records.append(record(path, found, classes, self.threshold))
            print(summary(records[-1]))
            if self.save_images is not None:
                name = path.stem if path.stem not in taken else f"{path.stem}_{len(taken)}"
                taken.add(name)
                self.save_images.mkdir(parents=True, exist_ok=True)
                annotate(image, found, classes, self.threshold).save(self.save_images / f"{name}.png")
        if self.out is not None:
            write_results(self.out, records)
        return 0


@dataclass(frozen=True)
class Demo:
    """Start the workbench in the browser."""

    port: int | None = None
    """Port on 127.0.0.1; left out, the first free one from 7860."""
    smoke: bool = False
    """Start, check that the page answers and that its figure holds data, and stop."""

    def run(self) -> int:
        import codetr_lab

        path = Path(codetr_lab.__file__).parents[1] / "apps" / "workbench.py"
        if not path.is_file():
            raise ConfigError(f"the workbench is not at {path}: it comes with the source tree; clone the repository")
        sys.path.insert(0, str(path.parents[1]))
        try:
            workbench = importlib.import_module("apps.workbench")
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise ConfigError('the workbench needs gradio; install it with pip install -e ".[app]"') from error
        return int(workbench.main(port=self.port, smoke=self.smoke))


@dataclass(frozen=True)
class Models:
    """List the presets and the trained models that come with the package."""

    def run(self) -> int:
        from codetr_lab.engine.checkpoint import read_config, shipped_models
        from codetr_lab.models.presets import create_model, list_models

        shipped = shipped_models()
        print(f"{'preset':<28}{'parameters':>12}{'in use':>12}  auxiliary heads")
        for name in list_models():
            model = create_model(name)
            sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
            training_only = ("heads.", "customizers.", "pyramid.")
            used = sum(size for key, size in sizes.items() if not key.startswith(training_only))
            heads = ", ".join(model.config.aux_heads) or "none"
            print(f"{name:<28}{sum(sizes.values()) / 1e6:>10.2f} M{used / 1e6:>10.2f} M  {heads}")
        print("\ntrained models in this package:", "" if shipped else "none")
        for name, folder in shipped.items():
            config = read_config(folder)
            print(f"  {name:<26}{', '.join(config.classes)}")
        return 0


@dataclass(frozen=True)
class DataCheck:
    """Check a COCO-format folder or file and say what is in it."""

    path: tyro.conf.Positional[Path]
    """The folder, or the annotation file."""
    split: str = "train"
    """Which annotation file of a folder."""

    def run(self) -> int:
        from codetr_lab.data.coco import check

        report = check(self.path, split=self.split)
        print(report)
        return 0 if report.ok else 2


@dataclass(frozen=True)
class DataExport:
    """Write a data set as a COCO-format folder."""

    out: Path
    data: str = "shapes"
    split: str = "val"

    def run(self) -> int:
        from codetr_lab.data.catalog import open_dataset
        from codetr_lab.data.dataset import export

        print(export(open_dataset(self.data, self.split), self.out))
        return 0


@dataclass(frozen=True)
class Doctor:
    """Say what this machine has and what it lacks."""

    def run(self) -> int:
        from codetr_lab import doctor

        return doctor.main([])


@dataclass(frozen=True)
class Bench:
    """Measure how fast things are on this machine."""

    what: tyro.conf.Positional[Literal["op"]]
    """`op`: deformable attention, the compiled operator against the formula."""
    cases: tuple[str, ...] = ()
    """Names out of the table's first column; all of them if left out (12 GB of memory)."""
    out: Path | None = None
    """Write the table as JSON."""

    def run(self) -> int:
        from codetr_lab import bench

        return bench.main([*self.cases, *(["--out", str(self.out)] if self.out else [])])


@dataclass(frozen=True)
class BuildOps:
    """Build the compiled operator (needs a C++ compiler); without it the plain PyTorch formula is used."""

    force: bool = False
    """Build even if the library is up to date."""

    def run(self) -> int:
        from codetr_lab import build_ops

        return build_ops.main(["--force"] if self.force else [])


@dataclass(frozen=True)
class Data:
    """Check or export data sets."""

    command: Annotated[DataCheck, tyro.conf.subcommand("check")] | Annotated[DataExport, tyro.conf.subcommand("export")]

    def run(self) -> int:
        return self.command.run()


@dataclass(frozen=True)
class Experiment:
    """Repeat one of the paper's comparisons at lab scale."""

    name: tyro.conf.Positional[Literal["quick"]]
    """`quick`: the same detector with no, one and two auxiliary heads."""
    options: QuickOptions = field(default_factory=QuickOptions)

    def run(self) -> int:
        from codetr_lab.experiments.quick import run_quick

        run_quick(self.options)
        return 0


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Experiment, tyro.conf.subcommand("experiment")]
    | Annotated[Models, tyro.conf.subcommand("models")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[BuildOps, tyro.conf.subcommand("build-ops")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def is_users(error: BaseException) -> bool:
    """Whether an error tells a person what to change: our own ValueErrors, and whatever the system refuses."""
    ours = type(error).__module__.split(".")[0] in ("codetr_lab", "apps")
    return isinstance(error, OSError) or (isinstance(error, ValueError) and ours)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 2 after a user's mistake, said in one line on stderr; 130 when stopped. A crash of ours keeps its traceback.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    description = "See how label assignment trains a DETR."
    command = parse(Command, prog="codetr", description=description, arguments=arguments)
    try:
        return command.run()
    except KeyboardInterrupt as stop:
        print(f"\ncodetr: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, `head` for one, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        if not is_users(error):
            raise
        print(f"codetr: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
