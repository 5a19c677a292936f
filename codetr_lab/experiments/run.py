"""`codetr experiment NAME`: say the plan and its time, run what is not finished, write tables and figures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from codetr_lab.experiments.cell import Cell, ExperimentError, Record, Setting
from codetr_lab.experiments.variants import VARIANTS
from codetr_lab.models.config import ConfigError, unknown

NAMES = (
    "fig1", "fig2", "fig3", "fig5", "fig6", "fig7", "table7", "table8", "table9", "table10", "table11", "supp_table1",
    "supp_table2", "supp_fig1", "supp_fig2", "tune",
)  # fmt: skip
"""What can be run, beside `quick` and `report`."""
BUDGETS: dict[str, tuple[int, tuple[int, ...]]] = {
    "minutes": (1000, (0, 1)), "hour": (3000, (0, 1, 2)), "night": (12000, (0, 1, 2, 3, 4)),
}  # fmt: skip
"""Steps and seeds. The names are what `fig1` takes on two cores, more or less; the plan says it exactly."""


@dataclass(frozen=True)
class ExperimentOptions:
    """How long, how often, on which data. What is compared is the experiment's own."""

    budget: Literal["minutes", "hour", "night"] = "minutes"
    """1,000 steps and 2 seeds, 3,000 and 3, or 12,000 and 5; the plan with its time is printed first."""
    steps: int | None = None
    """Optimizer steps instead of the budget's (`quick`: 2000)."""
    seeds: tuple[int, ...] | None = None
    """One run of each variant per seed, instead of the budget's (`quick`: 0)."""
    workers: int = max(1, os.cpu_count() or 1)
    """Runs at a time, each on one thread."""
    out: Path = Path("runs/experiments")
    """Folder for tables, figures and the runs; finished runs found there are used again."""
    data: str = "shapes"
    """`shapes`, `shapes:easy`, `shapes:hard`, or a COCO-format folder or file."""
    val_data: str | None = None
    """Data to evaluate on, where `--data` has no validation split of its own."""
    train_images: int | None = None
    """Train on the first images only (`quick`: 4000)."""
    val_images: int | None = None
    """Evaluate on the first images only (`quick`: 400)."""
    plan: bool = False
    """Print the plan and stop."""
    finished: bool = False
    """Train nothing: write tables and figures of the runs that are finished."""
    keep_models: bool = False
    """`quick` keeps the trained weights; the other experiments do so always."""

    def __post_init__(self) -> None:
        for name in ("steps", "workers", "train_images", "val_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        seeds = self.seeds
        if seeds is not None and (not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds)):
            raise ConfigError(f"seeds must be different whole numbers from 0, got {seeds}")

    def setting(self, changes: Mapping[str, Any]) -> Setting:
        """What all cells share; `changes` are settings of every variant, by dotted name."""
        return Setting(
            self.out / "cells", self.steps or BUDGETS[self.budget][0], self.data, self.val_data, self.train_images,
            self.val_images, tuple(changes.items()),
        )  # fmt: skip


def plan_cells(
    name: str, options: ExperimentOptions, changes: Mapping[str, Any] = MappingProxyType({})
) -> tuple[list[Cell], dict[str, str]]:
    """The cells of an experiment, seed by seed, and by variant why it cannot be built.

    Raises:
        ConfigError: no such experiment.
    """
    from codetr_lab.experiments.catalog import EXPERIMENTS, TUNING_SEEDS

    if name not in EXPERIMENTS:
        raise unknown("experiment", name, ["quick", *EXPERIMENTS, "report"])
    setting, experiment = options.setting(changes), EXPERIMENTS[name]
    missing = {v: why for v in experiment.variants if (why := VARIANTS[v].missing()) is not None}
    seeds = options.seeds or (TUNING_SEEDS if name == "tune" else BUDGETS[options.budget][1])
    names = [v for v in experiment.variants if v not in missing]
    return [Cell(VARIANTS[v], seed, setting) for seed in seeds for v in names], missing


def run_experiment(
    name: str,
    options: ExperimentOptions | None = None,
    changes: Mapping[str, Any] = MappingProxyType({}),
    *,
    progress: bool = True,
) -> list[Record]:
    """Print the plan, run the cells that are not finished, write the results to `options.out`, print the table.

    Ctrl-C stops every run after its current step with a checkpoint; the same command goes on from there.

    Returns:
        The finished records, seed by seed.

    Raises:
        ConfigError: no such experiment or setting.
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
        ExperimentError: a run failed (the others were stopped with a checkpoint), or there is nothing to show.
    """
    from codetr_lab.experiments.catalog import EXPERIMENTS
    from codetr_lab.experiments.pool import run_cells
    from codetr_lab.experiments.results import write_results

    options = options or ExperimentOptions()
    cells, missing = plan_cells(name, options, changes)
    experiment = EXPERIMENTS[name]
    print(f"{experiment.source}: {experiment.title}")
    for variant, why in missing.items():
        print(f"  left out: {VARIANTS[variant].title}: {why}")
    todo = [cell for cell in cells if cell.record() is None]
    if options.finished:
        cells = [cell for cell in cells if cell not in todo]
    else:
        print(the_plan(cells, todo, options, progress=progress))
        if options.plan:
            return []
        # The longest of each seed first, so that no long run starts last.
        run_cells(cells, options.workers, progress)
    records = with_pace([r for cell in cells if (r := cell.record()) is not None], options.out)
    if not records:
        raise ExperimentError(f"{name}: no run is finished in {options.out}; leave --finished out to train")
    print("\n" + write_results(experiment, records, cells, options.out, missing))
    print(f"{options.out / name}.json, .csv, .md, .html")
    return records


def the_plan(cells: Sequence[Cell], todo: Sequence[Cell], options: ExperimentOptions, *, progress: bool) -> str:
    """How many runs, how many are finished, and how long the others take, by timing a step of each variant here."""
    from codetr_lab.engine.checkpoint import write_atomically
    from codetr_lab.experiments.pace import known_pace, measure_pace

    path = options.out / "pace.json"
    pace = known_pace(path)
    untimed = [c for c in cells if c.seed == cells[0].seed and c.variant.name not in pace]
    if untimed:
        pace |= measure_pace(untimed, progress=progress)
        write_atomically(path, (json.dumps(pace, indent=1) + "\n").encode())
    seconds = sum(cell.steps * pace[cell.variant.name]["ms_per_step"] / 1000 for cell in todo)
    minutes = 1.25 * seconds / 60 / min(options.workers, max(1, len(todo)))  # a fifth goes into measuring
    took = f"about {minutes:.0f} minutes on {_counted(options.workers, 'free core')}" if todo else "nothing to train"
    steps = sorted({cell.steps for cell in cells})
    return (
        f"  {_counted(len(cells), 'run')} of {' / '.join(f'{s:,}' for s in steps)} steps, {len(todo)} to train: {took}"
    )


def with_pace(records: Sequence[Record], out: Path) -> list[Record]:
    """The records with what a step of their variant costs, where that was measured."""
    from codetr_lab.experiments.pace import known_pace

    pace = known_pace(out / "pace.json")
    return [r | {"pace": pace[r["variant"]]} if r["variant"] in pace else r for r in records]


def start(name: str, options: ExperimentOptions, changes: Mapping[str, Any] = MappingProxyType({})) -> None:
    """What the command line calls."""
    if name == "quick":
        from codetr_lab.experiments.quick import QuickOptions, run_quick

        usual = QuickOptions()
        if (options.data, options.val_data) != ("shapes", None) or changes:
            raise ConfigError("quick trains on shapes as they are; take fig1 for other data or settings")
        run_quick(
            replace(
                usual, steps=options.steps or usual.steps, seeds=options.seeds or usual.seeds, workers=options.workers,
                keep_models=options.keep_models, train_images=options.train_images or usual.train_images,
                val_images=options.val_images or usual.val_images,
                out=usual.out if options.out == ExperimentOptions().out else options.out,
            )
        )  # fmt: skip
    elif name == "report":
        from codetr_lab.experiments.report import write_report

        print(write_report(options.out))
    else:
        run_experiment(name, options, changes)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
