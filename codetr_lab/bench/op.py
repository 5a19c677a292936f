"""How fast deformable attention is here, the compiled operator against the formula: `codetr bench op`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from codetr_lab.bench.common import BenchError, chosen, clock_name, copy_speed, take_turns, write_record
from codetr_lab.ops import compiled, ms_deform_attn

Shapes = tuple[tuple[int, int], ...]

LAB: Shapes = ((16, 16), (8, 8), (4, 4))
FOUR_LEVELS: Shapes = ((100, 167), (50, 84), (25, 42), (13, 21))
FIVE_LEVELS: Shapes = ((200, 334), *FOUR_LEVELS)
"""The levels of an image of 800 x 1333 pixels at strides 4 to 64; without the first, 8 to 64."""


@dataclass(frozen=True)
class Case:
    """One size.

    Attributes:
        queries: 0 for an encoder, whose queries are the cells themselves.
    """

    batch: int
    heads: int
    depth: int
    shapes: Shapes
    queries: int = 0
    points: int = 4


CASES = {
    "lab encoder": Case(4, 4, 16, LAB),
    "lab decoder": Case(4, 4, 16, LAB, queries=250),
    "decoder, 4 levels": Case(1, 8, 32, FOUR_LEVELS, queries=900),
    "decoder, 5 levels": Case(1, 8, 32, FIVE_LEVELS, queries=900),
    "encoder, 4 levels": Case(1, 8, 32, FOUR_LEVELS),
    "encoder, 5 levels": Case(1, 8, 32, FIVE_LEVELS),
}


@dataclass(frozen=True)
class Row:
    """What was measured in one case. Times are medians in milliseconds.

    Attributes:
        pass_: `forward`, or `forward+backward` including what autograd adds.
        reference_ms: the formula in plain PyTorch.
        compiled_ms: the compiled operator.
        speedup: their ratio.
        floor_ms: the time to read every input and write every result once, at the speed of copying memory here.
        runs: how many turns the medians are of.
    """

    case: str
    pass_: str
    reference_ms: float
    compiled_ms: float
    speedup: float
    floor_ms: float
    runs: int


def make_inputs(case: Case, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, locations, weights and a gradient of the output; float32.

    An encoder's queries look around their own cell, some three cells away on every level; a decoder's around points
    anywhere, a tenth of the image away.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, levels = sum(h * w for h, w in case.shapes), len(case.shapes)
    queries = case.queries or tokens
    sizes = torch.tensor([(w, h) for h, w in case.shapes])[:, None]
    offsets = torch.randn(case.batch, queries, case.heads, levels, case.points, 2, generator=generator)
    if case.queries:
        centres = torch.rand(case.batch, queries, 1, 1, 1, 2, generator=generator)
        locations = centres + 0.1 * offsets
    else:
        cells = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1)
            for h, w in case.shapes
        ]
        locations = torch.cat(cells)[:, None, None, None] + 3 * offsets / sizes
    value = torch.randn(case.batch, tokens, case.heads, case.depth, generator=generator)
    weights = torch.rand(case.batch, queries, case.heads, levels, case.points, generator=generator)
    grad = torch.randn(case.batch, queries, case.heads * case.depth, generator=generator)
    return value, locations.contiguous(), weights / weights.sum((-1, -2), keepdim=True), grad


def measure(name: str, bytes_per_second: float, seconds: float = 2.0) -> list[Row]:
    """Forward, and forward with backward, of `CASES[name]`; each takes turns until `seconds` have passed.

    Raises:
        BenchError: no compiled operator.
    """
    if obstacle := compiled.unavailable():
        raise BenchError(f"the compiled operator cannot be measured: {obstacle}")
    case = CASES[name]
    value, locations, weights, grad = make_inputs(case)
    leaves = [t.clone().requires_grad_() for t in (value, locations, weights)]
    inputs = value.nbytes + locations.nbytes + weights.nbytes

    def forward(backend: str) -> Tensor:
        with torch.no_grad():
            return ms_deform_attn(value, case.shapes, locations, weights, backend=backend)

    def both(backend: str) -> tuple[Tensor, ...]:
        output = ms_deform_attn(leaves[0], case.shapes, leaves[1], leaves[2], backend=backend)
        return torch.autograd.grad(output, leaves, grad)

    rows = []
    for pass_, function, bytes_moved in (
        ("forward", forward, inputs + grad.nbytes),
        ("forward+backward", both, 3 * inputs + 2 * grad.nbytes),
    ):
        times = take_turns({b: partial(function, b) for b in ("reference", "compiled")}, seconds)
        reference, ours = (1000 * statistics.median(times[b]) for b in ("reference", "compiled"))
        floor = 1000 * bytes_moved / bytes_per_second
        rows.append(Row(name, pass_, reference, ours, reference / ours, floor, len(times["compiled"])))
    return rows


def format_rows(rows: Sequence[Row]) -> str:
    """A table, one line per row."""
    lines = [f"{'case':<20}{'pass':<18}{'formula ms':>11}{'compiled ms':>13}{'ratio':>8}{'floor ms':>10}{'runs':>6}"]
    lines += [
        f"{row.case:<20}{row.pass_:<18}{row.reference_ms:>11.2f}{row.compiled_ms:>13.2f}{row.speedup:>7.1f}x"
        f"{row.floor_ms:>10.2f}{row.runs:>6}"
        for row in rows
    ]
    return "\n".join(lines)


def bench(names: Sequence[str] = (), out: Path | None = None) -> None:
    """Measure the cases (default: all), print the table as it grows, and write it to `out` as JSON.

    Raises:
        BenchError: as `measure`, or an unknown case.
    """
    names, speed = chosen(names, CASES), copy_speed()
    print(f"{clock_name()}, float32; memory copied at {speed / 1e9:.1f} GB/s (the floor's speed)")
    print(format_rows([]), flush=True)
    rows: list[Row] = []
    for name in names:
        measured = measure(name, speed)
        print(format_rows(measured).partition("\n")[2], flush=True)
        rows += measured
    write_record(out, copy_bytes_per_second=speed, rows=[asdict(row) for row in rows])
