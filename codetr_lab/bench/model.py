"""How fast whole detectors are, with the compiled operator and with the formula: `codetr bench model`."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from codetr_lab.bench.common import (
    chosen,
    clock_name,
    device,
    matrix_speed,
    peak_memory,
    take_turns,
    write_record,
)
from codetr_lab.engine.checkpoint import load
from codetr_lab.engine.optim import adamw
from codetr_lab.models.codetr import CoDETR
from codetr_lab.models.presets import create_model
from codetr_lab.structures import Detections, ImageBatch, Target

Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        preset: a model with random weights, or, where `weights` is set, the trained one of that name.
        size: height and width of the images, of random noise with ten random objects each.
        kind: what takes turns. `inference` and `training`: the compiled operator and the formula. `bfloat16`: inference
            in float32 and under autocast. `heads`: a training step with K = 0, 1 (ATSS) and 2 auxiliary heads.
    """

    preset: str
    size: tuple[int, int]
    batch: int
    kind: str
    weights: bool = False


_FULL, _STEP = (800, 1333), (480, 640)
CASES = {
    "lab inference": Case("lab_co_k2", (128, 128), 1, "inference"),
    "lab inference, batch 8": Case("lab_co_k2", (128, 128), 8, "inference"),
    "lab training": Case("lab_co_k2", (128, 128), 4, "training"),
    "lab heads": Case("lab_co_k2", (128, 128), 4, "heads"),
    "lab bfloat16": Case("lab_co_k2", (128, 128), 1, "bfloat16", weights=True),
    "Co-Deformable inference": Case("co_deformable_detr_r50", _FULL, 1, "inference"),
    "Co-Deformable training": Case("co_deformable_detr_r50", _STEP, 1, "training"),
    "Co-Deformable training, batch 2": Case("co_deformable_detr_r50", _STEP, 2, "training"),
    "Co-Deformable heads": Case("co_deformable_detr_r50", _STEP, 1, "heads"),
    "Co-Deformable bfloat16": Case("co_deformable_detr_r50", _FULL, 1, "bfloat16"),
    "Co-DINO inference": Case("co_dino_5scale_r50", _FULL, 1, "inference"),
    "Co-DINO training": Case("co_dino_5scale_r50", _STEP, 1, "training"),
    "Co-DINO heads": Case("co_dino_5scale_r50", _STEP, 1, "heads"),
    "Co-DINO bfloat16": Case("co_dino_5scale_r50", _FULL, 1, "bfloat16"),
}
HEADS = {"K = 0": (), "K = 1": ("atss",), "K = 2": ("faster_rcnn", "atss")}


@dataclass(frozen=True)
class Row:
    """What was measured of one variant.

    Attributes:
        milliseconds: median of a forward pass with detections, or of a training step (losses, gradients, AdamW).
        ratio: its time over that of the case's first variant.
        images_per_second: at that time.
        peak_mib: the process's peak resident memory in a turn (on a GPU: allocated by torch); None where unknown.
        floor_ms: the matrix products and convolutions alone, at the speed of a large float32 product here.
        change: for `bfloat16`, what it does to the detections; see `change_of`.
        runs: turns.
    """

    case: str
    variant: str
    milliseconds: float
    ratio: float
    images_per_second: float
    peak_mib: float | None
    floor_ms: float
    change: str
    runs: int


@contextmanager
def formula(wanted: bool) -> Iterator[None]:
    """Deformable attention by the plain PyTorch formula inside, if `wanted`."""
    before = os.environ.pop("CODETR_OPS", None)
    if wanted:
        os.environ["CODETR_OPS"] = "reference"
    try:
        yield
    finally:
        os.environ.pop("CODETR_OPS", None)
        if before is not None:
            os.environ["CODETR_OPS"] = before


def make_batch(case: Case, seed: int = 0) -> tuple[ImageBatch, list[Target]]:
    """Images of noise, all of one size, and ten objects in each, of a tenth to a half of its sides."""
    draw = torch.Generator().manual_seed(seed)
    (height, width), classes = case.size, 6
    images, targets = [], []
    for _ in range(case.batch):
        images.append(torch.randn(3, height, width, generator=draw))
        sides = torch.tensor([width, height]) * (0.1 + 0.4 * torch.rand(10, 2, generator=draw))
        corner = (torch.tensor([width, height]) - sides) * torch.rand(10, 2, generator=draw)
        labels = torch.randint(classes, (10,), generator=draw)
        targets.append({"boxes": torch.cat([corner, corner + sides], 1).to(device()), "labels": labels.to(device())})
    return ImageBatch.from_images(images).to(device()), targets


def prepare(case: Case) -> dict[str, Work]:
    """By variant, one turn. Every turn does the same: draws are seeded, and the rate of learning is zero."""
    batch, targets = make_batch(case)

    def make(heads: Sequence[str] | None = None) -> CoDETR:
        torch.manual_seed(0)
        overrides = {} if heads is None else {"aux_heads": tuple(heads)}
        model = load(case.preset) if case.weights else create_model(case.preset, **overrides)
        return model.to(device())

    def inference(model: CoDETR, reference: bool = False, low: bool = False) -> Work:
        model.eval()

        def turn() -> list[Detections]:
            with torch.no_grad(), formula(reference), torch.autocast(device(), torch.bfloat16, enabled=low):
                return _done(model(batch))

        return turn

    def training(model: CoDETR, reference: bool = False) -> Work:
        optimizer = adamw(model.train(), model.config.recipe)
        for group in optimizer.param_groups:
            group["lr"] = 0.0

        def turn() -> None:
            torch.manual_seed(0)
            with formula(reference):
                torch.stack(list(model(batch, targets).values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            _done(None)

        return turn

    if case.kind == "heads":
        return {name: training(make(heads)) for name, heads in HEADS.items()}
    model = make()
    if case.kind == "bfloat16":
        return {"float32": inference(model), "bfloat16": inference(model, low=True)}
    kind = training if case.kind == "training" else inference
    return {"compiled": kind(model), "formula": kind(model, reference=True)}


def _done(value: Any) -> Any:
    """The value, once a GPU has really computed it."""
    if device() == "cuda":
        torch.cuda.synchronize()
    return value


def change_of(expected: Sequence[Detections], got: Sequence[Detections]) -> str:
    """How the ten best scores of every image move, in words."""
    moved = [(a.scores[:10] - b.scores[:10].to(a.scores)).abs().max() for a, b in zip(expected, got, strict=True)]
    return f"best ten scores move by at most {float(torch.stack(moved).max()):.4f}"


def measure(name: str, products_per_second: float, seconds: float = 20.0) -> list[Row]:
    """The variants of `CASES[name]`, in turns until `seconds` have passed, but at least twice after one uncounted."""
    case = CASES[name]
    work = prepare(case)
    peaks, floors = {}, {}
    for variant, turn in work.items():
        with FlopCounterMode(display=False) as products:
            turn()
        floors[variant] = 1000 * products.get_total_flops() / products_per_second
        peaks[variant] = peak_memory(turn)
    times = take_turns(work, seconds, least=2)
    first = statistics.median(next(iter(times.values())))
    rows = []
    for variant, turn in work.items():
        median = statistics.median(times[variant])
        change = ""
        if variant == "bfloat16":
            change = change_of(work["float32"](), turn())  # type: ignore[arg-type]
        rows.append(
            Row(
                name, variant, 1000 * median, median / first, case.batch / median, peaks[variant], floors[variant],
                change, len(times[variant]),
            )
        )  # fmt: skip
    return rows


def format_rows(rows: Sequence[Row]) -> str:
    """A table, one line per row."""
    lines = [
        f"{'case':<32}{'variant':<10}{'ms':>10}{'ratio':>8}{'images/s':>10}{'peak MiB':>10}{'floor ms':>10}{'runs':>6}"
    ]
    for row in rows:
        peak = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        lines.append(
            f"{row.case:<32}{row.variant:<10}{row.milliseconds:>10.1f}{row.ratio:>7.2f}x{row.images_per_second:>10.2f}"
            f"{peak:>10}{row.floor_ms:>10.1f}{row.runs:>6}  {row.change}".rstrip()
        )
    return "\n".join(lines)


def bench(names: Sequence[str] = (), out: Path | None = None) -> None:
    """Measure the cases (default: all), print the table as it grows, and write it to `out` as JSON.

    Raises:
        BenchError: an unknown case.
    """
    names, speed = chosen(names, CASES), matrix_speed()
    print(f"{clock_name()}; float32 matrix products at {speed / 1e9:.0f} GFLOP/s (the floor's speed); random weights")
    print(format_rows([]), flush=True)
    rows: list[Row] = []
    for name in names:
        measured = measure(name, speed)
        print(format_rows(measured).partition("\n")[2], flush=True)
        rows += measured
    write_record(out, products_per_second=speed, rows=[asdict(row) for row in rows])
