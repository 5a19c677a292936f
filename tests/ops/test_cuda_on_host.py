"""The GPU kernels themselves, compiled for the host and run thread by thread (emulator.h), against the formula."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from codetr_lab.build_ops import sources_folder

from .conftest import Inputs, make_inputs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("g++"), reason="needs g++ on Linux"),
]
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
Results = tuple[Tensor, Tensor, Tensor, Tensor]


class Emulated:
    """The kernels, on CPU tensors."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))

    def __call__(self, inputs: Inputs, fixed: bool = False, tiles: int = 1, seed: int = 0) -> Results:
        """Output and gradients; with `fixed`, value's gradient from sums that do not depend on any order."""
        value, locations, weights, grad = (
            t.contiguous() for t in (inputs.value, inputs.locations, inputs.weights, inputs.grad)
        )
        kind, sizes, shapes = TYPES[value.dtype], *_sizes(inputs)
        output = torch.full_like(grad, math.nan)
        self.library.forward(kind, sizes, shapes, *_pointers(value, locations, weights, output), tiles, seed)
        grad_value = torch.zeros(value.shape)
        grad_locations, grad_weights = torch.full_like(locations, math.nan), torch.full_like(weights, math.nan)
        sums = torch.zeros(value.shape, dtype=torch.int64) if fixed else None
        self.library.backward(
            kind, sizes, shapes,
            *_pointers(value, locations, weights, grad, grad_value, grad_locations, grad_weights, sums), tiles, seed,
        )  # fmt: skip
        return output, grad_value, grad_locations, grad_weights

    def baseline(self, inputs: Inputs, seed: int = 0) -> Results:
        """The benchmark's yardstick."""
        results = (torch.zeros_like(inputs.grad), *map(torch.zeros_like, _tensors(inputs)[:3]))
        tensors = _pointers(*_tensors(inputs), *results)
        self.library.baseline(*_sizes(inputs), *tensors, seed)
        return results


def _tensors(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return inputs.value, inputs.locations, inputs.weights, inputs.grad


def _sizes(inputs: Inputs) -> tuple[ctypes.Array[ctypes.c_int64], ctypes.Array[ctypes.c_int64]]:
    _, _, _, levels, points, _ = inputs.locations.shape
    batch, tokens, heads, depth = inputs.value.shape
    sizes = (batch, tokens, inputs.locations.shape[1], heads, depth, levels, points)
    shapes = [side for shape in inputs.shapes for side in shape]
    return (ctypes.c_int64 * 7)(*sizes), (ctypes.c_int64 * len(shapes))(*shapes)


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    library = tmp_path_factory.mktemp("emulated") / "emulated.so"
    source = Path(__file__).parent / "emulated.cpp"
    subprocess.run(
        ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", f"-I{sources_folder() / 'cuda'}", source, "-o", library],
        check=True,
    )
    return Emulated(library)


def assert_near_formula(got: Results, inputs: Inputs) -> None:
    """At most twice the formula's float32 error from float64; one rounding more where the output has 16 bits."""
    truth = inputs.to(torch.float64).run("reference")
    formula = inputs.to(torch.float32).run("reference")
    for true, ours, other in zip(truth, got, formula, strict=True):
        rounding = torch.finfo(ours.dtype).eps / 2 if ours.dtype.itemsize == 2 else 0
        least = torch.finfo(torch.float32).eps * true.abs().max()
        limit = 2 * (other - true).abs().max() + least + 1.01 * rounding * true.abs()
        assert ((ours - true).abs() <= limit).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("depth", [4, 16, 20, 32, 36, 64])
def test_equals_formula(emulated: Emulated, depth: int, dtype: torch.dtype) -> None:
    """Depths with kernels of their own and without; 36 and 20 leave threads idle."""
    inputs = make_inputs(2, 3, depth, queries=7, away_from_centres=True).to(dtype)
    assert_near_formula(emulated(inputs), inputs)


@pytest.mark.parametrize(
    ("queries", "levels", "points", "tiles"), [(150, 2, 4, 1), (70, 3, 9, 2), (33, 1, 1, 4), (5, 5, 7, 1)]
)
def test_many_queries_and_points(emulated: Emulated, queries: int, levels: int, points: int, tiles: int) -> None:
    """More queries than a tile has, more points than fit into shared memory at once, several tiles to a block."""
    shapes = ((5, 7), (3, 4), (2, 2), (1, 3), (1, 1))[:levels]
    for dtype in TYPES:
        inputs = make_inputs(1, 2, 32, shapes, points, queries, away_from_centres=True).to(dtype)
        assert_near_formula(emulated(inputs, tiles=tiles, seed=queries), inputs)


@pytest.mark.parametrize("place", [math.nan, math.inf, -1e30, 3e9, 0.0, 1.0, -0.0625, 1.0625, 0.5, 0.4375])
def test_special_places(emulated: Emulated, place: float) -> None:
    """Nowhere, on borders, on cell centres; coordinates are multiples of 1/64, exact in both."""
    inputs = make_inputs(1, 2, 16, ((4, 8), (1, 2)), 3, 5, torch.float32)
    inputs.locations[:] = (inputs.locations * 64).round() / 64
    inputs.locations[0, 2, 1, 0, 1, 0] = place
    inputs.locations[0, 3, :, :, 1, 1] = place
    for got, expected in zip(emulated(inputs), inputs.run("reference"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", TYPES)
def test_values_that_are_not_finite(emulated: Emulated, dtype: torch.dtype) -> None:
    """They spoil what the formula spoils; also the sums that are the same every time."""
    inputs = make_inputs(1, 2, 32, ((4, 8),), 3, 40, away_from_centres=True).to(dtype)
    inputs.value[0, 0, 1, 3] = math.inf
    inputs.weights[0, 3, 0, 0, 1] = math.nan
    inputs.grad[0, 7, 3] = -math.inf
    inputs.grad[0, 9, 40] = math.nan
    expected = inputs.to(torch.float32).run("reference")
    for fixed in (False, True):
        results = emulated(inputs, fixed=fixed)
        for got, other in zip(results, expected, strict=True):
            assert torch.equal(got.isfinite(), other.isfinite())
        for got, other in zip(results[:2], expected[:2], strict=True):
            assert torch.equal(got.isnan(), other.isnan())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e30])
def test_sums_that_are_the_same_every_time(emulated: Emulated, dtype: torch.dtype, size: float) -> None:
    """The order of threads changes no bit, whatever the size of the numbers, and the sums are exact to float32."""
    inputs = make_inputs(1, 2, 16, ((2, 3), (1, 1)), 4, 300, away_from_centres=True)
    inputs.grad[:] *= size if dtype != torch.float16 else min(max(size, 1e-3), 1e3)
    inputs = inputs.to(dtype)
    first = emulated(inputs, fixed=True, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, emulated(inputs, fixed=True, seed=2), strict=True))
    truth = inputs.to(torch.float64).run("reference")[1]
    formula = inputs.to(torch.float32).run("reference")[1]
    assert (first[1] - truth).abs().max() <= 2 * (formula - truth).abs().max()
    assert not torch.equal(emulated(inputs, seed=1)[1], emulated(inputs, seed=2)[1])  # the other kind does differ


@pytest.mark.parametrize("depth", [8, 32])
def test_baseline(emulated: Emulated, depth: int) -> None:
    inputs = make_inputs(2, 3, depth, away_from_centres=True).to(torch.float32)
    assert_near_formula(emulated.baseline(inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conversion_of_sixteen_bit_numbers(emulated: Emulated, dtype: torch.dtype) -> None:
    """Reading every number, and rounding what lies between two, as torch does it."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    wide, back = torch.zeros(2**16), torch.zeros_like(numbers)
    emulated.library.convert(TYPES[dtype], *_pointers(numbers, wide, back), 2**16)
    assert torch.equal(wide.nan_to_num(7), numbers.float().nan_to_num(7))
    expected = (wide * torch.tensor(1.0009)).to(dtype)
    assert torch.equal(back.nan_to_num(7), expected.nan_to_num(7))
