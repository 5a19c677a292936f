"""`codetr doctor`, `codetr bench` and `codetr build-ops`: what this machine has, and how fast it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


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
