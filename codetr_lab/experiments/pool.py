"""Cells in parallel: single-thread processes with a progress bar each, that stop together and lose nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from codetr_lab.experiments.cell import Cell, ExperimentError


def run_cells(cells: Sequence[Cell], workers: int, progress: bool = True) -> None:
    """Run the cells that are not finished, in order, at most `workers` at a time.

    Raises:
        KeyboardInterrupt: Ctrl-C; every run has stopped after its current step with a checkpoint.
        ExperimentError: a run failed; the others were stopped with a checkpoint.
    """
    todo = []
    for cell in cells:
        if cell.record() is None:
            todo.append(cell)
        else:
            print(f"{cell.title}: finished before, used again from {cell.folder}", file=sys.stderr)
    if not todo:
        return
    try:
        _Pool(workers, progress).run(todo)
    except KeyboardInterrupt:
        out = todo[0].setting.out
        raise KeyboardInterrupt(f"stopped; the same command goes on from the checkpoints in {out}") from None


class _Pool:
    def __init__(self, workers: int, progress: bool) -> None:
        self.workers, self.progress = workers, progress
        self.running: list[_Worker] = []
        # A server that has imported everything and used nothing forks the runs; Windows has to start each from nothing.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.context = multiprocessing.get_context(method)
        self.context.set_forkserver_preload(["codetr_lab.experiments.measure", "codetr_lab.engine.train"])

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
            total=cell.steps, desc=cell.title, unit="step", initial=_last(cell.folder).get("step", 0), smoothing=0.1,
            disable=not progress,
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
