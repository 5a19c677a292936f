"""What one decoder pass over all groups saves against the release's pass for each: `codetr bench decoder`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from codetr_lab.bench.common import chosen, clock_name, take_turns, write_record
from codetr_lab.bench.op import FIVE_LEVELS, FOUR_LEVELS, LAB, Shapes
from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.decoder import Decoder, QueryInput
from codetr_lab.models.encoder import Memory
from codetr_lab.models.presets import preset
from codetr_lab.structures import DENOISING, PLAIN, POSITIVE, QueryGroup


@dataclass(frozen=True)
class Case:
    """A training step's groups.

    Attributes:
        customized: queries of every auxiliary head. `denoising`: their number, `subgroup`: how many see each other.
    """

    preset: str
    batch: int
    shapes: Shapes
    customized: tuple[int, ...]
    denoising: int = 0
    subgroup: int = 0


CASES = {
    "lab_co_k1": Case("lab_co_k1", 4, LAB, (80,)),
    "lab_co_k2": Case("lab_co_k2", 4, LAB, (80, 40)),
    "co_deformable_k1": Case("co_deformable_detr_r50", 1, FOUR_LEVELS, (100,)),
    "co_deformable_k2": Case("co_deformable_detr_r50", 1, FOUR_LEVELS, (100, 60)),
    "co_deformable_k6": Case("co_deformable_detr_r50", 1, FOUR_LEVELS, (100, 60, 100, 60, 100, 60)),
    "co_dino_k2": Case("co_dino_5scale_r50", 1, FIVE_LEVELS, (100, 60), denoising=196, subgroup=14),
}


@dataclass(frozen=True)
class Row:
    """What was measured in one case. Times are medians in milliseconds.

    Attributes:
        pass_: `forward`, or `forward+backward`.
        separate_ms: a pass for each group; denoising goes with the original queries.
        grouped_ms: one pass.
        speedup: their ratio.
        separate_calls, grouped_calls: PyTorch operators run.
        runs: how many turns the medians are of.
    """

    case: str
    pass_: str
    separate_ms: float
    grouped_ms: float
    speedup: float
    separate_calls: int
    grouped_calls: int
    runs: int


class CountCalls(TorchDispatchMode):
    """Counts the operators that run inside; on a GPU each is at least one kernel launch."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls += not func.is_view
        return func(*args, **(kwargs or {}))


def make_inputs(case: Case, config: CoDETRConfig, seed: int = 0) -> tuple[list[QueryInput], Memory]:
    """Groups and a memory of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    dim, dino = config.transformer.hidden_dim, config.decoder.scheme == "dino"

    def group(name: str, queries: int, kind: int, **more: Any) -> QueryInput:
        size = (case.batch, queries)
        content, position = (torch.randn(*size, dim, generator=generator) for _ in range(2))
        boxes = torch.rand(*size, 4, generator=generator) * 0.5 + 0.25
        return QueryInput(name, content, None if dino else position, boxes, torch.full(size, kind), **more)

    groups = [group("original", config.num_queries, PLAIN)]
    if case.denoising:
        groups.append(group("denoising", case.denoising, DENOISING, sees=("original",), subgroup=case.subgroup))
    groups += [group(f"head {i}", queries, POSITIVE) for i, queries in enumerate(case.customized)]
    tokens = torch.randn(case.batch, sum(h * w for h, w in case.shapes), dim, generator=generator)
    return groups, Memory(tokens, None, list(case.shapes), torch.ones(case.batch, len(case.shapes), 2))


def grouped(decoder: Decoder, groups: Sequence[QueryInput], memory: Memory) -> dict[str, QueryGroup]:
    """One pass."""
    return decoder(groups, memory)


def separate(decoder: Decoder, groups: Sequence[QueryInput], memory: Memory) -> dict[str, QueryGroup]:
    """K + 1 passes, the original and the denoising queries together in the first."""
    first = [group for group in groups if not group.name.startswith("head")]
    passes = [first, *([group] for group in groups[len(first) :])]
    return {name: found for some in passes for name, found in decoder(some, memory).items()}


def measure(name: str, seconds: float = 4.0) -> list[Row]:
    """Forward, and forward with backward, of `CASES[name]`; each takes turns until `seconds` have passed."""
    case = CASES[name]
    config = preset(case.preset)
    torch.manual_seed(0)
    decoder = Decoder(config, len(case.shapes))
    for parameter in decoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.xavier_uniform_(parameter)
    groups, memory = make_inputs(case, config)
    memory.tokens.requires_grad_()
    leaves = [memory.tokens, *decoder.parameters()]

    def forward(way: Callable[..., dict[str, QueryGroup]]) -> dict[str, QueryGroup]:
        with torch.no_grad():
            return way(decoder, groups, memory)

    def both(way: Callable[..., dict[str, QueryGroup]]) -> tuple[Tensor, ...]:
        found = way(decoder, groups, memory).values()
        total = sum(((g.logits.square().sum() + g.boxes_cxcywh.sum()) for g in found), torch.zeros(()))
        return torch.autograd.grad(total, leaves, allow_unused=True)

    rows = []
    for pass_, function in (("forward", forward), ("forward+backward", both)):
        ways = {way.__name__: partial(function, way) for way in (separate, grouped)}
        calls = {}
        for key, way in ways.items():
            with CountCalls() as count:
                way()
            calls[key] = count.calls
        times = take_turns(ways, seconds)
        slow, fast = (1000 * statistics.median(times[key]) for key in ("separate", "grouped"))
        rows.append(
            Row(name, pass_, slow, fast, slow / fast, calls["separate"], calls["grouped"], len(times["grouped"]))
        )
    return rows


def format_rows(rows: Sequence[Row]) -> str:
    """A table, one line per row."""
    head = f"{'case':<18}{'pass':<18}{'K+1 passes ms':>14}{'one pass ms':>13}{'ratio':>8}{'operators':>18}{'runs':>6}"
    lines = [
        f"{row.case:<18}{row.pass_:<18}{row.separate_ms:>14.1f}{row.grouped_ms:>13.1f}{row.speedup:>7.2f}x"
        f"{f'{row.separate_calls} : {row.grouped_calls}':>18}{row.runs:>6}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def bench(names: Sequence[str] = (), out: Path | None = None) -> None:
    """Measure the cases (default: all), print the table as it grows, and write it to `out` as JSON.

    Raises:
        BenchError: an unknown case.
    """
    names = chosen(names, CASES)
    print(f"{clock_name()}, float32; the decoder alone, memory of an 800 x 1333 image except for the lab's")
    print(format_rows([]), flush=True)
    rows: list[Row] = []
    for name in names:
        measured = measure(name)
        print(format_rows(measured).partition("\n")[2], flush=True)
        rows += measured
    write_record(out, rows=[asdict(row) for row in rows])
