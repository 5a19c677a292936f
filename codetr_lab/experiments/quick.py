"""`codetr experiment quick`: does Co-DETR train a better detector than its baseline? K = 0, 1, 2 in minutes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from codetr_lab.experiments.cell import Cell, Record, Setting
from codetr_lab.experiments.pool import run_cells
from codetr_lab.experiments.variants import VARIANTS
from codetr_lab.models.config import ConfigError

QUICK = ("quick_k0", "quick_k1", "quick_k2")
"""Variants by K."""
TARGET_AP = 0.5
"""What K = 2 is expected to reach."""


@dataclass(frozen=True)
class QuickOptions:
    """Train K = 0, 1 (ATSS) and 2 (ATSS + Faster R-CNN) on generated shapes and compare them."""

    out: Path = Path("runs/quick")
    """Folder for quick.json and the runs; finished runs found there are used again."""
    steps: int = 2000
    """Optimizer steps of every run."""
    seeds: tuple[int, ...] = (0,)
    """One run of each K per seed."""
    workers: int = 2
    """Runs at a time, each on one thread."""
    keep_models: bool = False
    """Keep the trained weights."""
    train_images: int = 4000
    """Generated images to train on."""
    val_images: int = 400
    """Generated images to evaluate on, none of them trained on."""

    def __post_init__(self) -> None:
        for name in ("steps", "workers", "train_images", "val_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds must be different whole numbers from 0, got {self.seeds}")


def quick_cells(options: QuickOptions) -> list[Cell]:
    """The cells by seed and K."""
    setting = Setting(
        options.out / "cells", options.steps, train_images=options.train_images, val_images=options.val_images,
        keep_models=options.keep_models,
    )  # fmt: skip
    return [Cell(VARIANTS[name], seed, setting) for seed in options.seeds for name in QUICK]


def run_quick(options: QuickOptions | None = None, *, progress: bool = True) -> list[Record]:
    """Run what is not finished yet, write `quick.json`, print the table and the verdict.

    Ctrl-C stops every run after its current step with a checkpoint; the same command goes on from there.

    Returns:
        The records by seed and K.

    Raises:
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
        ExperimentError: a run failed; the others were stopped with a checkpoint.
        CheckpointError: `out` cannot be written.
    """
    from codetr_lab.engine.checkpoint import write_atomically

    options = options or QuickOptions()
    cells = quick_cells(options)
    # Longest first, so that no long run starts last.
    run_cells(sorted(cells, key=lambda cell: -len(cell.config().aux_heads)), options.workers, progress)
    records = [record for cell in cells if (record := cell.record()) is not None]
    write_atomically(options.out / "quick.json", (json.dumps(records, indent=2) + "\n").encode())
    print(f"{table(records)}\n\n{verdict(records)}\n\n{options.out / 'quick.json'}")
    return records


def table(records: list[Record]) -> str:
    """One line per record."""
    lines = [f"{'K':<3}{'auxiliary heads':<20}{'seed':>4}{'steps':>7}{'seconds':>9}{'AP':>8}{'AP50':>8}"
             f"{'positives/object':>18}{'IoF-IoB area':>14}"]  # fmt: skip
    for r in records:
        lines.append(
            f"{r['k']:<3}{' + '.join(r['aux_heads']) or 'none':<20}{r['seed']:>4}{r['steps']:>7}{r['seconds']:>9.0f}"
            f"{r['ap']:>8.3f}{r['ap50']:>8.3f}{r['positives_per_object']:>18.1f}{r['iof_iob_area']:>14.3f}"
        )
    return "\n".join(lines)


def verdict(records: list[Record]) -> str:
    """What the records say about the paper's claim, and what they do not."""
    by_k = {k: {r["seed"]: r for r in records if r["k"] == k} for k in range(len(QUICK))}
    seeds = list(by_k[0])
    sentences = []
    for k in range(1, len(QUICK)):
        gains = [by_k[k][seed]["ap"] - by_k[0][seed]["ap"] for seed in seeds]
        wins = sum(gain > 0 for gain in gains)
        side = "above" if mean(gains) > 0 else "not above"
        counted = f" on average, above in {wins} of {len(seeds)} seeds" if len(seeds) > 1 else ""
        time = mean(by_k[k][seed]["seconds"] for seed in seeds) / mean(by_k[0][seed]["seconds"] for seed in seeds)
        sentences.append(
            f"After the same number of steps K = {k} is {side} K = 0 ({mean(gains):+.3f} AP{counted}); the steps took "
            f"{time:.1f} times as long."
        )
    best = mean(r["ap"] for r in by_k[2].values())
    reached = "reaches" if best >= TARGET_AP else "does not reach"
    sentences.append(f"K = 2 {reached} the AP of {TARGET_AP:.2f} that is expected of it ({best:.3f}).")
    areas = [mean(r["iof_iob_area"] for r in by_k[k].values()) for k in by_k]
    sentences.append(
        f"The encoder's IoF-IoB area is {areas[0]:.3f}, {areas[1]:.3f} and {areas[2]:.3f} for K = 0, 1 and 2; "
        "look at several seeds before you trust that order."
    )
    if len(seeds) == 1:
        sentences.append("This is one seed: differences of a few points can be chance. Try --seeds 0 1 2.")
    return " ".join(sentences)
