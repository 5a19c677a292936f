"""`codetr experiment`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import tyro

from codetr_lab.experiments.quick import QuickOptions


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
