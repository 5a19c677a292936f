"""`codetr experiment quick`: does Co-DETR train a better detector than its baseline? K = 0, 1, 2 in minutes."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from statistics import mean
from typing import Any

from tqdm.auto import tqdm

from codetr_lab.models.config import ConfigError

PRESETS = ("lab_baseline", "lab_co_k1", "lab_co_k2")
"""By K."""
TARGET_AP = 0.5
"""What K = 2 is expected to reach."""

Record = dict[str, Any]
"""One cell: `k`, `seed`, `steps`, `seconds`, `ap`, `iof_iob_area`, `positives_per_object`; more in `cell.measure`."""


class ExperimentError(ValueError):
    """An experiment cannot go on; the message names the run and the mend."""


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


@dataclass(frozen=True)
class Cell:
    """One run of the experiment: a preset and a seed."""

    k: int
    seed: int
    options: QuickOptions

    @property
    def title(self) -> str:
        """For people."""
        return f"K={self.k} seed={self.seed}"

    @property
    def folder(self) -> Path:
        """Named after everything that decides the numbers, so that another setting never meets this folder."""
        from codetr_lab.experiments.cell import fingerprint

        return self.options.out / "cells" / f"k{self.k}_seed{self.seed}_{fingerprint(self)}"

    def record(self) -> Record | None:
        """What the finished cell measured; None while it is not finished, or its wanted model was thrown away."""
        if self.options.keep_models and not (self.folder / "model.safetensors").exists():
            return None
        try:
            return json.loads((self.folder / "record.json").read_text())
        except FileNotFoundError:
            return None


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
    cells = [Cell(k, seed, options) for seed in options.seeds for k in range(len(PRESETS))]
    # Longest first, so that no long run starts last.
    todo = sorted((cell for cell in cells if cell.record() is None), key=lambda cell: -cell.k)
    for cell in cells:
        if cell not in todo:
            print(f"{cell.title}: finished before, used again from {cell.folder}", file=sys.stderr)
    try:
        _Pool(options.workers, progress).run(todo)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the same command goes on from the checkpoints in {options.out}") from None
    records = [record for cell in cells if (record := cell.record()) is not None]
    write_atomically(options.out / "quick.json", (json.dumps(records, indent=2) + "\n").encode())
    print(f"{table(records)}\n\n{verdict(records)}\n\n{options.out / 'quick.json'}")
    return records


class _Pool:
    """Runs cells in single-thread processes, at most `workers` at a time, one progress bar each."""

    def __init__(self, workers: int, progress: bool) -> None:
        self.workers, self.progress = workers, progress
        self.running: list[_Worker] = []
        # A server that has imported everything and used nothing forks the runs; Windows has to start each from nothing.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.context = multiprocessing.get_context(method)
        self.context.set_forkserver_preload(["codetr_lab.experiments.cell"])

    def run(self, cells: list[Cell]) -> None:
        waiting = list(cells)
        try:
            while waiting or self.running:
                while waiting and len(self.running) < self.workers:
                    self.running.append(_Worker(waiting.pop(0), self.context, self.progress))
                wait([worker.process.sentinel for worker in self.running], timeout=0.5)
                for worker in list(self.running):
                    worker.refresh()
                    if not worker.process.is_alive():
                        self.running.remove(worker)
                        worker.finish()
        except BaseException:  # Ctrl-C, or one run failed: let the others save, then go on with the exception
            self._stop()
            raise

    def _stop(self) -> None:
        if self.running:
            print("stopping; the runs save their checkpoints ...", file=sys.stderr)
        for worker in self.running:
            worker.process.terminate()
        for worker in self.running:
            worker.process.join()
            worker.bar.close()


class _Worker:
    """One cell in its own process, and its progress bar, fed from the run's metrics.jsonl."""

    def __init__(self, cell: Cell, context: BaseContext, progress: bool) -> None:
        self.cell = cell
        self.messages, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=work, args=(cell, sender), name=cell.title)  # type: ignore[attr-defined]
        self.process.start()
        sender.close()
        self.bar = tqdm(
            total=cell.options.steps, desc=cell.title, unit="step", initial=_last(cell.folder).get("step", 0),
            smoothing=0.1, disable=not progress,
        )  # fmt: skip

    def refresh(self) -> None:
        """Move the bar to the last step that the run has logged."""
        last = _last(self.cell.folder)
        if last.get("step", 0) > self.bar.n:
            self.bar.set_postfix_str(f"loss {last['loss']:.1f}" if "loss" in last else "", refresh=False)
            self.bar.update(last["step"] - self.bar.n)

    def finish(self) -> None:
        """Close the bar with the AP.

        Raises:
            ExperimentError: the run failed.
        """
        self.process.join()
        record = self.cell.record()
        self.bar.set_postfix_str("failed" if record is None else f"AP {record['ap']:.3f}")
        self.bar.close()
        if record is None:
            try:
                raise ExperimentError(f"{self.cell.title}: {self.messages.recv()}")
            except EOFError:
                raise RuntimeError(
                    f"{self.cell.title} ended with exit code {self.process.exitcode}; its traceback is above"
                ) from None


def _last(folder: Path) -> dict[str, Any]:
    """The last complete line of a run's metrics.jsonl; empty while there is none."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return {}
    return json.loads(lines[-2]) if len(lines) > 1 else {}


def work(cell: Cell, sender: Connection) -> None:
    """A worker process: its own process group, ends when its parent does."""
    if hasattr(os, "setpgrp"):  # Ctrl-C in the terminal then reaches the parent alone, which stops every worker once
        os.setpgrp()
    from codetr_lab.engine.train import Stopped
    from codetr_lab.experiments.cell import run_cell, stop_with_parent

    stop_with_parent()
    try:
        run_cell(cell)
    except Stopped as stop:
        sender.send(str(stop))
        sys.exit(130)
    except (ValueError, OSError) as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith("codetr_lab"):
            raise  # a crash of ours keeps its traceback
        sender.send(str(error))
        sys.exit(2)


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
    by_k = {k: {r["seed"]: r for r in records if r["k"] == k} for k in range(len(PRESETS))}
    seeds = list(by_k[0])
    sentences = []
    for k in range(1, len(PRESETS)):
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
