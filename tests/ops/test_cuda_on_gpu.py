"""The operator on a GPU. `python -m pytest tests/ops/test_cuda_on_gpu.py -s` runs everything and prints the timings;
`compute-sanitizer python -m pytest tests/ops/test_cuda_on_gpu.py -k "not fast"` looks for wild reads and races.
"""

from __future__ import annotations

import math

import pytest
import torch

from codetr_lab.bench import op, op_cuda
from codetr_lab.ops import compiled, ms_deform_attn

from .conftest import Inputs, make_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(bool(compiled.CUDA_NOT_LOADED), reason=compiled.CUDA_NOT_LOADED or "-"),
]
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def on_gpu(inputs: Inputs) -> Inputs:
    value, locations, weights, grad = (t.cuda() for t in (inputs.value, inputs.locations, inputs.weights, inputs.grad))
    return Inputs(value, inputs.shapes, locations, weights, grad)


def assert_near_truth(exact: Inputs, dtype: torch.dtype) -> None:
    """At most twice the formula's own float32 error from float64; one rounding more where results have 16 bits."""
    inputs = on_gpu(exact).to(dtype)
    truth = inputs.to(torch.float64).run("reference")
    formula = inputs.to(torch.float32).run("reference")
    for true, got, other in zip(truth, inputs.run("compiled"), formula, strict=True):
        rounding = torch.finfo(got.dtype).eps / 2 if got.dtype.itemsize == 2 else 0
        least = torch.finfo(torch.float32).eps * true.abs().max()
        limit = 2 * (other - true).abs().max() + least + 1.01 * rounding * true.abs()
        assert ((got - true).abs() <= limit).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("depth", [4, 12, 16, 20, 32, 48, 64, 128, 256])
def test_as_accurate_as_formula(depth: int, dtype: torch.dtype) -> None:
    assert_near_truth(make_inputs(depth=depth, queries=300, points=8, away_from_centres=True), dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("seed", range(20))
def test_any_shape(seed: int, dtype: torch.dtype) -> None:
    pick = torch.Generator().manual_seed(seed)

    def number(most: int) -> int:
        return 1 + int(torch.randint(most, (), generator=pick))

    shapes = [(number(9), number(9)) for _ in range(number(5))]
    inputs = make_inputs(
        number(3), number(5), 4 * number(16), shapes, number(9), number(200), seed=seed, away_from_centres=True
    )
    assert_near_truth(inputs, dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_an_encoder_at_full_size(dtype: torch.dtype) -> None:
    """Several tiles to a block; against the CPU's operator, whose float64 path the other tests hold to the formula."""
    case = op.CASES["encoder, 4 levels"]
    value, locations, weights, grad = op.make_inputs(case)
    inputs = Inputs(value, case.shapes, locations, weights, grad).to(dtype)
    expected = inputs.to(torch.float64).run("compiled")
    for got, true in zip(on_gpu(inputs).run("compiled"), expected, strict=True):
        tolerance = 1e-2 if got.dtype.itemsize == 2 else 1e-3  # location gradients jump at cell centres
        off = (got.cpu() - true).abs() > tolerance * (1 + true.abs())
        assert off.float().mean() < 1e-5


@pytest.mark.parametrize("place", [math.nan, math.inf, -1e30, 3e9, 0.0, 1.0, -0.0625, 1.0625, 0.5, 0.4375])
def test_special_places(place: float) -> None:
    """As the CPU's operator treats them, which other tests hold to the formula."""
    inputs = make_inputs(1, 2, 16, ((4, 8), (1, 2)), 3, 5, torch.float32)
    inputs.locations[:] = (inputs.locations * 64).round() / 64
    inputs.locations[0, 2, 1, 0, 1, 0] = place
    inputs.locations[0, 3, :, :, 1, 1] = place
    for got, expected in zip(on_gpu(inputs).run("compiled"), inputs.run("compiled"), strict=True):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("empty", ["batch", "queries", "points", "heads"])
def test_nothing_to_do(empty: str) -> None:
    inputs = on_gpu(make_inputs(**{empty: 0}, dtype=torch.float32))
    output, *grads = inputs.run("compiled")
    assert output.shape == inputs.grad.shape and not output.any()
    assert all(not grad.any() for grad in grads)


def test_views_and_odd_addresses() -> None:
    """Transposed tensors, and contiguous ones that do not begin at a multiple of 16 bytes."""
    inputs = make_inputs(dtype=torch.float32, away_from_centres=True)
    expected = inputs.run("compiled")
    gpu = on_gpu(inputs)
    odd = torch.cat([gpu.value.new_zeros(1), gpu.value.flatten()])[1:].view_as(gpu.value)
    assert odd.data_ptr() % 16
    strided = gpu.weights.transpose(1, 2).contiguous().transpose(1, 2)
    views = Inputs(odd, gpu.shapes, gpu.locations.flip(-1).flip(-1), strided, gpu.grad[:, :, :1].expand_as(gpu.grad))
    ours = Inputs(odd, gpu.shapes, gpu.locations, strided, gpu.grad).run("compiled")
    for got, true in zip(ours, expected, strict=True):
        torch.testing.assert_close(got.cpu(), true, rtol=1e-5, atol=1e-4)
    assert views.run("compiled")[1].isfinite().all()


@pytest.mark.parametrize("dtype", TYPES)
def test_deterministic_when_asked(dtype: torch.dtype) -> None:
    """Many queries pull at few cells; torch's switch makes every run the same, to the bit."""
    inputs = on_gpu(make_inputs(1, 8, 32, ((3, 4), (1, 1)), 4, 5000, away_from_centres=True)).to(dtype)
    with op_cuda.deterministic(True):
        first = inputs.run("compiled")
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(first, inputs.run("compiled"), strict=True))
    truth = inputs.to(torch.float64).run("reference")[1]
    formula = inputs.to(torch.float32).run("reference")[1]
    rounding = torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0
    assert ((first[1] - truth).abs() <= 2 * (formula - truth).abs().max() + 1.01 * rounding * truth.abs()).all()


def test_other_streams_and_devices() -> None:
    """The operator works on the current stream of the tensors' device."""
    inputs = make_inputs(dtype=torch.float32)
    expected = inputs.run("compiled")[0]
    device = f"cuda:{torch.cuda.device_count() - 1}"
    with torch.cuda.stream(torch.cuda.Stream(device)):
        tensors = (inputs.value.to(device), inputs.shapes, inputs.locations.to(device), inputs.weights.to(device))
        output = ms_deform_attn(*tensors, backend="compiled")
    torch.cuda.synchronize(device)
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
def test_is_a_proper_torch_operator(dtype: torch.dtype) -> None:
    inputs = on_gpu(make_inputs()).to(dtype)
    sizes = [side for shape in inputs.shapes for side in shape]
    tensors = (inputs.value, sizes, inputs.locations, inputs.weights)
    for tensor in (inputs.value, inputs.locations, inputs.weights):
        tensor.requires_grad_()
    torch.library.opcheck(torch.ops.codetr_lab.ms_deform_attn, tensors)


def test_autocast_lowers_values_alone() -> None:
    inputs = on_gpu(make_inputs(dtype=torch.float32))
    sizes = [side for shape in inputs.shapes for side in shape]
    with torch.autocast("cuda", torch.bfloat16):
        output = torch.ops.codetr_lab.ms_deform_attn(inputs.value, sizes, inputs.locations, inputs.weights)
    assert output.dtype == torch.bfloat16


def test_what_is_refused() -> None:
    inputs = on_gpu(make_inputs(depth=6))
    assert "multiple of 4" in compiled.unfit(inputs.value.float())
    assert "float64" in compiled.unfit(on_gpu(make_inputs()).value)
    operator = torch.ops.codetr_lab.ms_deform_attn
    sizes = [side for shape in inputs.shapes for side in shape]
    for value, locations in (
        (inputs.value, inputs.locations),
        (inputs.value.float(), inputs.locations.float()),
        (on_gpu(make_inputs()).value.float(), inputs.locations.float().cpu()),
    ):
        with pytest.raises(RuntimeError, match="ms_deform_attn"):
            operator(value, sizes, locations, inputs.weights.to(locations))


def test_the_yardstick_is_right() -> None:
    inputs = on_gpu(make_inputs(dtype=torch.float32, away_from_centres=True))
    leaves = [t.clone().requires_grad_() for t in (inputs.value, inputs.locations, inputs.weights)]
    output = op_cuda.first_design(leaves[0], inputs.shapes, leaves[1], leaves[2])
    grads = torch.autograd.grad(output, leaves, inputs.grad)
    for got, expected in zip((output.detach(), *grads), inputs.run("compiled"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", op_cuda.CASES)
def test_how_fast(case: str) -> None:
    """Prints the table; the encoder holds the bars of the first design, and of 16 against 32 bits."""
    rows = {row.variant: row for row in op_cuda.measure(case)}
    print("\n" + op_cuda.format_rows(list(rows.values())))
    if case == "encoder, 5 levels":
        ours, first, low = rows["float32"], rows["first design"], rows["bfloat16"]
        assert first.forward_ms >= 2 * ours.forward_ms
        assert first.backward_ms >= 1.5 * ours.backward_ms
        assert ours.forward_ms >= 1.7 * low.forward_ms
        if "H100" in torch.cuda.get_device_name():
            assert ours.forward_ms <= 2 * 0.25  # what the L1 caches together could serve
