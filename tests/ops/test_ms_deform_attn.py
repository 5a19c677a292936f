"""The compiled operator against the formula, and the formula against a loop that spells it out."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codetr_lab.ops import compiled, ms_deform_attn
from codetr_lab.ops.ms_deform_attn import _announce, reference

from .conftest import Inputs, Shapes, make_inputs

TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
needs_operator = pytest.mark.usefixtures("needs_operator")


def assert_same(inputs: Inputs, tolerance: float = 1e-12) -> None:
    """Output and gradients of both backends, NaN where the formula has NaN."""
    names = ("output", "grad_value", "grad_locations", "grad_weights")
    for name, got, expected in zip(names, inputs.run("compiled"), inputs.run("reference"), strict=True):
        torch.testing.assert_close(
            got, expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_near_truth(exact: Inputs, dtype: torch.dtype) -> None:
    """Output and gradients in `dtype` against the formula in float64, on the same rounded inputs.

    At most twice the formula's own float32 error, and where a result is stored in 16 bits, one rounding to nearest.
    """
    inputs = exact.to(dtype)
    truth = inputs.to(torch.float64).run("reference")
    formula = inputs.to(torch.float32).run("reference")
    for true, got, other in zip(truth, inputs.run("compiled"), formula, strict=True):
        rounding = torch.finfo(got.dtype).eps / 2 if got.dtype.itemsize == 2 else 0
        least = torch.finfo(torch.float32).eps * true.abs().max()  # the formula may be exact where we round once
        limit = 2 * (other - true).abs().max() + least + 1.01 * rounding * true.abs()
        assert ((got - true).abs() <= limit).all()


def test_formula_spelled_out() -> None:
    """Equation 3 of Deformable DETR, one sample and one cell at a time."""
    inputs = make_inputs(batch=1, heads=2, depth=3, shapes=((3, 4), (2, 1)), points=2, queries=3)
    expected = torch.zeros(1, 3, 6, dtype=torch.float64)
    for query, head, level, point in product(range(3), range(2), range(2), range(2)):
        start = 0 if level == 0 else 12
        height, width = inputs.shapes[level]
        x, y = (inputs.locations[0, query, head, level, point] * torch.tensor([width, height]) - 0.5).tolist()
        for row, column in product(range(height), range(width)):
            share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
            cell = inputs.value[0, start + row * width + column, head]
            expected[0, query, 3 * head : 3 * head + 3] += inputs.weights[0, query, head, level, point] * share * cell
    torch.testing.assert_close(inputs.run("reference")[0], expected, rtol=1e-12, atol=1e-12)


@needs_operator
@pytest.mark.parametrize("depth", [1, 2, 4, 5, 8, 12, 16, 24, 32, 48, 64, 128])
def test_equals_formula(depth: int) -> None:
    assert_same(make_inputs(depth=depth))


@needs_operator
@pytest.mark.parametrize("dtype", TYPES[1:])
@pytest.mark.parametrize("depth", [4, 8, 12, 16, 20, 32, 48, 64, 128])
def test_as_accurate_as_formula(depth: int, dtype: torch.dtype) -> None:
    assert_near_truth(make_inputs(depth=depth, queries=64, points=8, away_from_centres=True), dtype)


@needs_operator
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 5),
    depth=st.integers(1, 16).map(lambda quarter: 4 * quarter) | st.integers(1, 40),
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    points=st.integers(1, 7),
    queries=st.integers(1, 9),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(TYPES),
)
def test_any_shape(
    batch: int, heads: int, depth: int, shapes: Shapes, points: int, queries: int, seed: int, dtype: torch.dtype
) -> None:
    inputs = make_inputs(batch, heads, depth, shapes, points, queries, seed=seed, away_from_centres=True)
    if dtype == torch.float64:
        assert_same(inputs)
    else:
        assert_near_truth(inputs, dtype)


@needs_operator
@given(
    x=st.integers(-20, 52),
    y=st.integers(-20, 52),
    shapes=st.sampled_from([((8, 16),), ((1, 1),), ((1, 4), (2, 1)), ((32, 2), (16, 16), (1, 1))]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_centres_and_borders(x: int, y: int, shapes: tuple[tuple[int, int], ...], dtype: torch.dtype) -> None:
    """On cell centres and edges, where the formula's coordinates are exact: gradients of locations jump alike."""
    inputs = make_inputs(1, 2, 16, shapes, 4, 5, dtype)
    inputs.locations[:, ::2] = torch.tensor([x / 32, y / 32], dtype=dtype)
    inputs.locations[:, 1, :, :, 0, 0] = x / 32
    inputs.locations[:, 1:].clamp_(-4, 4)
    if dtype == torch.float32:  # the other points' coordinates: multiples of 1/64, exact in both
        inputs.locations[:] = (inputs.locations * 64).round() / 64
    assert_same(inputs, 1e-5 if dtype == torch.float32 else 1e-12)


@needs_operator
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_sixteen_bit_number(dtype: torch.dtype) -> None:
    """Read as torch reads it, subnormal numbers, infinities and NaN included."""
    value = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, -1, 1, 16)
    centres = (torch.arange(4096, dtype=torch.float32) + 0.5) / 4096
    locations = torch.stack([centres, torch.full_like(centres, 0.5)], -1).view(1, -1, 1, 1, 1, 2)
    weights = torch.ones(1, 4096, 1, 1, 1)
    arguments = (value, ((1, 4096),), locations, weights)
    got, expected = (ms_deform_attn(*arguments, backend=backend) for backend in ("compiled", "reference"))
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@needs_operator
@pytest.mark.parametrize("place", [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9, -3e9, 2.0**31])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_places_that_are_nowhere(place: float, axis: int, dtype: torch.dtype) -> None:
    """Far outside is zero; a coordinate that is no number spoils the outputs that the formula spoils, no others."""
    inputs = make_inputs(1, 2, 16, ((4, 8), (1, 2)), 3, 5, dtype)
    inputs.locations[:] = (inputs.locations * 64).round() / 64
    inputs.locations[:, 1, 0, 0, 1, axis] = place
    inputs.locations[:, 2, 1, 1, 0, axis] = place
    assert_same(inputs, 1e-5 if dtype == torch.float32 else 1e-12)
    spoiled = inputs.run("compiled")[0].isnan().any(-1)[0]
    assert spoiled.tolist() == [False, *[not math.isfinite(place)] * 2, False, False]


@needs_operator
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_no_numbers(bad: float) -> None:
    """A cell's NaN reaches the samples that touch the cell, and no sample outside the level."""
    inputs = make_inputs(1, 2, 16, ((4, 8),), 3, 40)
    inputs.value[0, 0, 1, 3] = bad
    inputs.weights[0, 3, 0, 0, 1] = math.nan
    assert_same(inputs)


@needs_operator
@pytest.mark.parametrize("empty", ["batch", "queries", "points", "heads", "depth"])
def test_nothing_to_do(empty: str) -> None:
    if empty == "depth":  # the formula has no samples of no channels
        inputs = make_inputs(depth=0)
        output, *grads = inputs.run("compiled")
        assert output.shape == (2, 11, 0)
        assert all(not grad.any() for grad in grads)
        return
    inputs = make_inputs(**{empty: 0})
    output, *grads = inputs.run("compiled")
    assert output.shape == inputs.grad.shape
    assert not output.any()
    for grad, leaf in zip(grads, (inputs.value, inputs.locations, inputs.weights), strict=True):
        assert grad.shape == leaf.shape
        assert not grad.any()


@needs_operator
def test_strided_inputs() -> None:
    inputs = make_inputs()
    strided = Inputs(
        inputs.value.transpose(1, 3).contiguous().transpose(1, 3),
        inputs.shapes,
        inputs.locations.flip(-1).contiguous().flip(-1).transpose(0, 1).contiguous().transpose(0, 1),
        inputs.weights.expand(2, *inputs.weights.shape)[1],
        inputs.grad[:, :, :1].expand_as(inputs.grad),
    )
    assert not strided.value.is_contiguous()
    assert_same(strided)


@needs_operator
@pytest.mark.parametrize(("batch", "heads"), [(1, 8), (1, 1), (2, 3), (3, 1), (4, 2)])
def test_threads_change_nothing(batch: int, heads: int) -> None:
    inputs = make_inputs(batch, heads, 16, ((20, 20), (5, 5)), 4, 500, torch.float32)
    one = inputs.run("compiled")
    torch.set_num_threads(3)
    try:
        three = inputs.run("compiled")
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


@needs_operator
@pytest.mark.parametrize("dtype", TYPES[1:])
@pytest.mark.parametrize(("batch", "depth"), [(1, 16), (2, 20)])
def test_large_image(batch: int, depth: int, dtype: torch.dtype) -> None:
    """Large enough for the way through a copy of each head's channels; one image has fewer heads than threads."""
    inputs = make_inputs(batch, 2, depth, ((64, 80), (8, 9)), 2, 1400, away_from_centres=True)
    inputs = inputs.to(dtype)
    assert inputs.value[0].numel() * 4 > 512 * 1024
    assert_near_truth(inputs, dtype)
    one = inputs.run("compiled")
    torch.set_num_threads(3)
    try:
        three = inputs.run("compiled")
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


@needs_operator
def test_gradcheck() -> None:
    inputs = make_inputs(1, 2, 4, ((3, 4), (1, 2)), 2, 3, away_from_centres=True)
    leaves = [t.requires_grad_() for t in (inputs.value, inputs.locations, inputs.weights)]
    assert torch.autograd.gradcheck(
        lambda v, x, w: ms_deform_attn(v, inputs.shapes, x, w, backend="compiled"), leaves, fast_mode=False
    )


@needs_operator
def test_no_second_derivative() -> None:
    inputs = make_inputs()
    value = inputs.value.requires_grad_()
    output = ms_deform_attn(value, inputs.shapes, inputs.locations.requires_grad_(), inputs.weights, "compiled")
    (grad,) = torch.autograd.grad(output.square().sum(), inputs.locations, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


@needs_operator
@pytest.mark.parametrize("dtype", TYPES)
def test_is_a_proper_torch_operator(dtype: torch.dtype) -> None:
    inputs = make_inputs().to(dtype)
    sizes = [side for shape in inputs.shapes for side in shape]
    tensors = (inputs.value, sizes, inputs.locations, inputs.weights)
    torch.library.opcheck(torch.ops.codetr_lab.ms_deform_attn_backward, (inputs.grad, *tensors))
    for tensor in (inputs.value, inputs.locations, inputs.weights):
        tensor.requires_grad_()
    torch.library.opcheck(torch.ops.codetr_lab.ms_deform_attn, tensors)


@needs_operator
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_lowers_values_alone(low: torch.dtype) -> None:
    """The operator itself casts: values to the low type, locations and weights to float32, gradients back."""
    inputs = make_inputs().to(torch.float32)
    sizes = [side for shape in inputs.shapes for side in shape]
    leaves = [t.clone().requires_grad_() for t in (inputs.value, inputs.locations, inputs.weights)]
    with torch.autocast("cpu", low):
        output = torch.ops.codetr_lab.ms_deform_attn(leaves[0], sizes, leaves[1], leaves[2].to(low))
    assert output.dtype == low
    expected = ms_deform_attn(
        inputs.value.to(low), inputs.shapes, inputs.locations, inputs.weights.to(low), backend="compiled"
    )
    assert torch.equal(output, expected)
    grads = torch.autograd.grad(output.sum(), leaves)
    assert all(grad.dtype == torch.float32 and grad.abs().sum() > 0 for grad in grads)
    with torch.autocast("cpu", low):
        assert ms_deform_attn(*_front(make_inputs()), backend="compiled").dtype == torch.float64


def _front(inputs: Inputs) -> tuple[torch.Tensor, Shapes, torch.Tensor, torch.Tensor]:
    return inputs.value, inputs.shapes, inputs.locations, inputs.weights


@needs_operator
@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_types_at_the_front_door(backend: str) -> None:
    """Locations and weights of any type; the result has the value's."""
    inputs = make_inputs()
    for dtype in TYPES:
        low = Inputs(
            inputs.value.to(dtype), inputs.shapes, inputs.locations.float(), inputs.weights.bfloat16(), inputs.grad
        )
        output = ms_deform_attn(*_front(low), backend=backend)
        assert output.dtype == dtype
        truth = ms_deform_attn(*_front(low.to(torch.float64)), backend="reference")
        torch.testing.assert_close(output.double(), truth, rtol=1e-2, atol=1e-2)


@needs_operator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_without_graph_break(dtype: torch.dtype) -> None:
    inputs = make_inputs().to(dtype)

    def function(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return 2 * ms_deform_attn(value + 1, inputs.shapes, locations, weights)

    arguments = [t.requires_grad_() for t in (inputs.value, inputs.locations, inputs.weights)]
    outputs = []
    for run in (torch.compile(function, backend="aot_eager", fullgraph=True), function):
        output = run(*arguments)
        outputs.append((output.detach(), *torch.autograd.grad(output, arguments, inputs.grad)))
    assert all(torch.equal(got, expected) for got, expected in zip(*outputs, strict=True))


@needs_operator
@pytest.mark.parametrize("instructions", ["generic", "avx2"])
def test_older_processors(instructions: str, repository: Path) -> None:
    """The kernels for processors without this one's widest vectors, in a process of their own."""
    script = (
        "import torch\n"
        "from tests.ops.conftest import make_inputs\n"
        "from tests.ops.test_ms_deform_attn import assert_near_truth, assert_same\n"
        "for depth in (4, 5, 8, 16, 32, 64):\n"
        "    inputs = make_inputs(depth=depth, away_from_centres=True)\n"
        "    assert_same(inputs)\n"
        "    for dtype in (torch.float32, torch.bfloat16, torch.float16):\n"
        "        assert_near_truth(inputs, dtype)\n"
    )
    environment = os.environ | {"CODETR_OPS_ISA": instructions, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120, cwd=repository)


# ---- dispatch ------------------------------------------------------------------------------------------------------


@needs_operator
def test_auto_takes_what_fits(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    inputs = make_inputs()
    monkeypatch.delenv("CODETR_OPS", raising=False)
    _announce.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            ms_deform_attn(inputs.value, inputs.shapes, inputs.locations, inputs.weights)
        assert [record.message for record in caplog.records] == ["deformable attention: compiled operator"]
        meta = (inputs.value.to("meta"), inputs.shapes, inputs.locations.to("meta"), inputs.weights.to("meta"))
        assert ms_deform_attn(*meta).shape == (2, 11, 48)
    assert "plain PyTorch formula" in caplog.records[-1].message
    assert "no kernel for meta" in caplog.records[-1].message


def test_fallback_forced(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    inputs = make_inputs()
    monkeypatch.setenv("CODETR_OPS", "reference")
    _announce.cache_clear()
    with caplog.at_level(logging.INFO):
        output = ms_deform_attn(inputs.value, inputs.shapes, inputs.locations, inputs.weights)
    assert "CODETR_OPS=reference is set" in caplog.text
    assert torch.equal(output, reference(inputs.value, inputs.shapes, inputs.locations, inputs.weights))
    with pytest.raises(ValueError, match="cannot be used: CODETR_OPS=reference"):
        ms_deform_attn(inputs.value, inputs.shapes, inputs.locations, inputs.weights, backend="compiled")


def test_fallback_when_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs()
    monkeypatch.delenv("CODETR_OPS", raising=False)
    monkeypatch.setattr(compiled, "NOT_LOADED", "it is not built; run this and that")
    output = ms_deform_attn(inputs.value, inputs.shapes, inputs.locations, inputs.weights)
    assert torch.equal(output, reference(inputs.value, inputs.shapes, inputs.locations, inputs.weights))


def test_values_that_do_not_fit() -> None:
    value = make_inputs().value
    assert all(not compiled.unfit(value.to(dtype)) for dtype in TYPES)
    assert "float16, got torch.int32" in compiled.unfit(value.int())
    assert "no kernel for meta" in compiled.unfit(value.to("meta"))
    assert "2^31" in compiled.unfit(torch.empty(1).expand(1, 2**26, 4, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": ((7, 9), (3, 4))}, "76 tokens"),
        ({"shapes": ((7, 9), (13, 1))}, "do not fit 2 levels"),
        ({"locations": torch.zeros(2, 11, 3, 3, 4, 3)}, r"locations \(B,Q,heads,levels,points,2\)"),
        ({"locations": torch.zeros(1, 11, 3, 3, 4, 2), "weights": torch.zeros(1, 11, 3, 3, 4)}, "must be the same"),
        ({"weights": torch.zeros(2, 11, 3, 3, 5)}, "do not fit 3 levels"),
        ({"backend": "fast"}, "unknown backend 'fast'"),
    ],
)
def test_wrong_arguments(change: dict[str, object], message: str) -> None:
    inputs = make_inputs()
    arguments = {"shapes": inputs.shapes, "locations": inputs.locations, "weights": inputs.weights, "backend": "auto"}
    arguments |= change
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(inputs.value, *arguments.values())  # type: ignore[arg-type]


@needs_operator
def test_operator_checks_its_arguments() -> None:
    """Called past the front door, it still refuses to read where nothing is."""
    inputs = make_inputs()
    operator = torch.ops.codetr_lab.ms_deform_attn
    sizes = [7, 9, 3, 4, 1, 1]
    for arguments in (
        (inputs.value, [7, 9, 3, 4, 1, 2], inputs.locations, inputs.weights),
        (inputs.value, [-7, -9, 3, 4, 1, 1], inputs.locations, inputs.weights),
        (inputs.value, sizes[:4], inputs.locations, inputs.weights),
        (inputs.value, sizes, inputs.locations[:1], inputs.weights),
        (inputs.value, sizes, inputs.locations, inputs.weights[:, :4]),
        (inputs.value, sizes, inputs.locations[..., :1], inputs.weights),
        (inputs.value, sizes, inputs.locations.float(), inputs.weights),
        (inputs.value[0], sizes, inputs.locations, inputs.weights),
        (inputs.value.half(), sizes, inputs.locations.half(), inputs.weights.half()),
        (inputs.value.int(), sizes, inputs.locations.float(), inputs.weights.float()),
        (
            torch.empty(1).expand(1, 2**26, 4, 8),
            [2**13, 2**13],
            torch.zeros(1, 1, 4, 1, 1, 2),
            torch.ones(1, 1, 4, 1, 1),
        ),
    ):
        with pytest.raises(RuntimeError):
            operator(*arguments)
    with pytest.raises(RuntimeError, match="gradient"):
        torch.ops.codetr_lab.ms_deform_attn_backward(
            inputs.grad[:, :5], inputs.value, sizes, inputs.locations, inputs.weights
        )
