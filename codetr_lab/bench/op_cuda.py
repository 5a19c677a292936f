"""Deformable attention on a GPU, against its first CUDA design and the formula: `codetr bench op_cuda`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codetr_lab.bench import op
from codetr_lab.bench.common import BenchError, chosen, write_record
from codetr_lab.ops import compiled, ms_deform_attn

CASES = {name: case for name, case in op.CASES.items() if not name.startswith("lab")}
VARIANTS = ("float32", "bfloat16", "float16", "float32, deterministic", "first design", "formula")
"""What is measured. All but the 16-bit ones take float32 values; the sums are float32 everywhere."""


@dataclass(frozen=True)
class Row:
    """Medians in milliseconds of one case and variant; the backward pass is timed alone."""

    case: str
    variant: str
    forward_ms: float
    backward_ms: float


def require_gpu() -> None:
    """Make sure that there is something to measure.

    Raises:
        BenchError: there is no GPU, or no operator for it.
    """
    if not torch.cuda.is_available():
        raise BenchError("op_cuda needs a CUDA device; there is none")
    if compiled.CUDA_NOT_LOADED:
        raise BenchError(f"the compiled operator cannot be measured: {compiled.CUDA_NOT_LOADED}")


def first_design(value: Tensor, shapes: op.Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The yardstick of csrc/cuda/baseline.cuh; float32 only."""
    return _FirstDesign.apply(value, [side for shape in shapes for side in shape], locations, weights)


class _FirstDesign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
        ctx.sizes = sizes
        ctx.save_for_backward(value, locations, weights)
        return torch.ops.codetr_lab.ms_deform_attn_baseline(value, sizes, locations, weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        backward = torch.ops.codetr_lab.ms_deform_attn_baseline_backward
        grad_value, grad_locations, grad_weights = backward(grads[0], value, ctx.sizes, locations, weights)
        return grad_value, None, grad_locations, grad_weights


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Torch's own switch, which the operator's backward pass obeys."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def milliseconds(function: Callable[[], object], turns: int = 20) -> float:
    """Median time on the GPU of one call; the L2 cache is overwritten before each."""
    flush = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    function()
    times = []
    for _ in range(turns):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def measure(name: str) -> list[Row]:
    """Forward and backward of `CASES[name]`, one variant after the other."""
    case = CASES[name]
    value, locations, weights, grad = (t.cuda() for t in op.make_inputs(case))

    def row(variant: str) -> Row:
        dtype = getattr(torch, variant, torch.float32)
        leaves = [t.clone().requires_grad_() for t in (value.to(dtype), locations, weights)]
        above = grad.to(dtype)

        def run() -> Tensor:
            if variant == "first design":
                return first_design(leaves[0], case.shapes, leaves[1], leaves[2])
            backend = "reference" if variant == "formula" else "compiled"
            return ms_deform_attn(leaves[0], case.shapes, leaves[1], leaves[2], backend=backend)

        with torch.no_grad():
            forward = milliseconds(run)
        with deterministic("deterministic" in variant):
            output = run()
            backward = milliseconds(lambda: torch.autograd.grad(output, leaves, above, retain_graph=True))
        return Row(name, variant, forward, backward)

    return [row(variant) for variant in VARIANTS]


def format_rows(rows: Sequence[Row]) -> str:
    """A table, one line per row."""
    lines = [f"{'case':<20}{'variant':<24}{'forward ms':>12}{'backward ms':>13}"]
    lines += [f"{row.case:<20}{row.variant:<24}{row.forward_ms:>12.3f}{row.backward_ms:>13.3f}" for row in rows]
    return "\n".join(lines)


def bench(names: Sequence[str] = (), out: Path | None = None) -> None:
    """Measure the cases (default: all), print the table as it grows, and write it to `out` as JSON.

    Raises:
        BenchError: no GPU, no operator for it, or an unknown case.
    """
    names = chosen(names, CASES)
    require_gpu()
    device = torch.cuda.get_device_name()
    print(f"{device}; batch 1; the L2 cache is overwritten before each call")
    print(format_rows([]), flush=True)
    rows: list[Row] = []
    for name in names:
        measured = measure(name)
        print(format_rows(measured).partition("\n")[2], flush=True)
        rows += measured
    write_record(out, device=device, rows=[asdict(row) for row in rows])
