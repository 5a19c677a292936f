"""What the benchmarks share: turns in one process, the machine's own speeds, a JSON record."""

from __future__ import annotations

import ctypes
import difflib
import gc
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class BenchError(ValueError):
    """A benchmark cannot be run as asked; the message says why."""


def chosen(names: Sequence[str], cases: Iterable[str]) -> list[str]:
    """The cases to measure, all of them where none is named.

    Raises:
        BenchError: no such case.
    """
    known = list(cases)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BenchError(f"unknown case {name!r}; choose from {', '.join(known)}{hint}")
    return list(names) or known


def device() -> str:
    """Where whole models are measured: `cuda` if it is there, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def clock() -> float:
    """Seconds: with one thread on the CPU this process's own, which others do not lengthen; else the wall's."""
    alone = torch.get_num_threads() == 1 and device() == "cpu"
    return time.process_time() if alone else time.perf_counter()


def clock_name() -> str:
    """What `clock` measures, for people."""
    if device() == "cuda":
        return f"wall time, {torch.cuda.get_device_name()}"
    return "CPU time, 1 thread" if torch.get_num_threads() == 1 else f"wall time, {torch.get_num_threads()} threads"


def seconds_of(function: Callable[[], object]) -> float:
    """One call."""
    start = clock()
    function()
    return clock() - start


def take_turns(
    functions: Mapping[str, Callable[[], object]], seconds: float, least: int = 3, most: int = 30
) -> dict[str, list[float]]:
    """Call all functions in turn until `seconds` have passed, so that whatever else the machine does hits them alike.

    Args:
        least: turns at the least; `most`: at the most. One turn before that is not counted.

    Returns:
        Seconds of every call, by the function's name.
    """
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    end, turns = time.perf_counter() + seconds, 0
    while turns < least or (turns < most and time.perf_counter() < end):
        for name, function in functions.items():
            times[name].append(seconds_of(function))
        turns += 1
    return times


def copy_speed() -> float:
    """Bytes a second that a large copy reads and writes, with torch's threads; the best of five."""
    source = torch.ones(1 << 25)
    target = torch.empty_like(source)
    times = [seconds_of(lambda: target.copy_(source)) for _ in range(5)]
    return 2 * source.numel() * source.element_size() / min(times)


def matrix_speed() -> float:
    """Floating-point operations a second of a large float32 matrix product; the best of five."""
    side = 4096 if device() == "cuda" else 1024
    a, b = torch.ones(2, side, side, device=device())

    def product() -> None:
        torch.mm(a, b)
        if device() == "cuda":
            torch.cuda.synchronize()

    product()
    return 2 * side**3 / min(seconds_of(product) for _ in range(5))


def peak_memory(function: Callable[[], object]) -> float | None:
    """Peak memory in MiB while `function` runs.

    On a GPU what torch has allocated there; else what the whole process holds (Linux; elsewhere None).
    """
    if device() == "cuda":
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() / 2**20
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        function()
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier work has freed
    reset.write_text("5")
    function()
    return float(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024  # type: ignore[index]


def kept_for_backward(function: Callable[[], Tensor], besides: Iterable[Tensor] = ()) -> int:
    """Bytes of what autograd keeps of `function()` for the backward pass, every storage once.

    Args:
        besides: tensors that are there anyhow (inputs, parameters) and do not count.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in besides}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = function()  # kept until here, so that no storage is freed and counted again at its old place
    del result
    return sum(sizes.values())


def write_record(out: Path | None, **values: Any) -> None:
    """Write a JSON record, with torch's version and threads, to `out` if there is one."""
    if out is None:
        return
    record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "clock": clock_name()} | values
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
