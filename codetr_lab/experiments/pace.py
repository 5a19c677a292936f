"""What a training step of each variant costs: time and memory, measured side by side in one process."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from codetr_lab.bench.common import kept_for_backward
from codetr_lab.experiments.cell import Cell

Pace = dict[str, float]
"""`ms_per_step`: CPU milliseconds on one thread; `saved_mb`: megabytes that the forward pass keeps for the backward."""


def measure_pace(cells: Sequence[Cell], rounds: int = 3, progress: bool = True) -> dict[str, Pace]:
    """By variant, what one step costs, in the variants' order.

    The variants take turns, so that a busy machine slows all of them alike; CPU time, not the clock, is counted.
    """
    torch.set_num_threads(1)
    steps = {}
    data = cells[0].setting.dataset("train") if cells else None
    for cell in cells:
        if cell.variant.name not in steps and data is not None:
            steps[cell.variant.name] = _Step(cell, data)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in tqdm(range(rounds), desc="time a step of each", unit="round", disable=not progress):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    return {
        name: {"ms_per_step": round(1000 * median(times[name]), 1), "saved_mb": round(step.saved_mb, 1)}
        for name, step in steps.items()
    }


class _Step:
    """A model in training and one batch; calling it makes one step."""

    def __init__(self, cell: Cell, data: Any) -> None:
        from codetr_lab.data.transforms import batches
        from codetr_lab.engine.optim import adamw
        from codetr_lab.engine.options import TrainOptions
        from codetr_lab.engine.train import resolve
        from codetr_lab.models.codetr import CoDETR

        torch.manual_seed(0)
        config = resolve(cell.config(), data, None, TrainOptions())
        self.model = CoDETR(config).train()
        self.optimizer = adamw(self.model, config.recipe)
        stream = batches(
            data, config.image, config.recipe, batch_size=config.recipe.batch_size, seed=0, epoch=0, train=True,
            masks=config.needs_masks,
        )  # fmt: skip
        self.batch = next(stream)
        self.saved_mb = kept_for_backward(self._total, self.model.parameters()) / 1e6
        self()

    def __call__(self) -> None:
        total = self._total()
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()

    def _total(self) -> Tensor:
        return torch.stack(list(self.model(*self.batch).values())).sum()


def known_pace(path: Path) -> dict[str, Pace]:
    """What was measured before; empty if nothing was."""
    return json.loads(path.read_text()) if path.exists() else {}
