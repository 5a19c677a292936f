"""`codetr doctor`, `codetr bench` and `codetr build-ops`: what this machine has, and how fast it is."""

from __future__ import annotations

import importlib
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
    """Measure how fast things are on this machine. With OMP_NUM_THREADS=1 it is CPU time that is measured."""

    what: tyro.conf.Positional[Literal["model", "op", "op_cuda", "decoder"]]
    """`model`: whole detectors, with the compiled operator and with the formula.
    `op`: deformable attention, the compiled operator against the formula (12 GB of memory for all cases).
    `op_cuda`: the same on a GPU, against the design of its first CUDA implementation too.
    `decoder`: one pass over all groups of queries against a pass for each."""
    cases: tuple[str, ...] = ()
    """Names out of the table's first column; all of them if left out."""
    out: Path | None = None
    """Write the table as JSON."""

    def run(self) -> int:
        importlib.import_module(f"codetr_lab.bench.{self.what}").bench(self.cases, self.out)
        return 0


@dataclass(frozen=True)
class BuildOps:
    """Build the compiled operator (needs a C++ compiler; with nvcc also for GPUs); else the PyTorch formula is used."""

    force: bool = False
    """Build even what is up to date."""
    cuda: bool = True
    """Also for GPUs, where nvcc is. Which ones: TORCH_CUDA_ARCH_LIST, by default "8.0;9.0+PTX"."""

    def run(self) -> int:
        from codetr_lab import build_ops

        return build_ops.main([*(["--force"] if self.force else []), *([] if self.cuda else ["--no-cuda"])])
