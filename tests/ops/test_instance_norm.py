"""Instance norm with leaky ReLU, sum and padding, against a loop over images and channels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops import instance_norm
from mirrorgan_fast.ops.instance_norm import backward_reference

from .conftest import compiled

Matches = Callable[[Tensor, Tensor], None]


def by_loop(
    x: np.ndarray, residual: np.ndarray | None, slope: float, padding: int, eps: float
) -> np.ndarray:
    """Do the same with NumPy, for each channel of each image alone."""
    count, channels, height, width = x.shape
    out = np.empty((count, channels, height + 2 * padding, width + 2 * padding))
    for n in range(count):
        for c in range(channels):
            plane = x[n, c]
            y = (plane - plane.mean()) / np.sqrt(plane.var() + eps)
            y = np.where(y > 0, y, slope * y)
            if residual is not None:
                y = y + residual[n, c]
            out[n, c] = np.pad(y, padding, mode="reflect")
    return out


CASES = [
    # shape, residual, slope, padding
    ((2, 3, 5, 7), False, 1.0, 0),
    ((1, 16, 8, 4), False, 0.0, 3),
    ((3, 5, 6, 6), True, 1.0, 1),
    ((2, 17, 9, 3), True, 0.2, 2),
    ((1, 1, 2, 2), False, 0.2, 1),
    ((1, 64, 20, 33), True, 0.0, 1),  # full vectors, several chunks of pixels
    ((2, 35, 5, 5), False, 0.0, 4),  # as much padding as there can be
    ((2, 4, 1, 6), True, 0.2, 0),
]
by_cases = pytest.mark.parametrize(("shape", "with_residual", "slope", "padding"), CASES)
Shape = tuple[int, int, int, int]


def make(shape: Shape, dtype: torch.dtype, *, seed: int = 0) -> Tensor:
    """Return a channels_last map whose channels have means and scales of their own."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=random, dtype=torch.float64)

    x = normal(*shape) * (normal(shape[1], 1, 1).abs() + 0.2) + 3 * normal(shape[1], 1, 1)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


@by_cases
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_formula(
    implementation: str,
    assert_matches: Matches,
    shape: Shape,
    with_residual: bool,
    slope: float,
    padding: int,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> None:
    x = make(shape, dtype).contiguous(memory_format=layout)
    residual = make(shape, dtype, seed=1) if with_residual else None
    wanted = by_loop(
        x.double().numpy(),
        None if residual is None else residual.double().numpy(),
        slope,
        padding,
        1e-3,
    )
    found = instance_norm(x, residual, slope, padding, eps=1e-3)
    assert found.dtype == dtype
    assert_matches(found, torch.from_numpy(wanted))


@by_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_in_float64(
    implementation: str,
    assert_matches: Matches,
    shape: Shape,
    with_residual: bool,
    slope: float,
    padding: int,
    dtype: torch.dtype,
) -> None:
    if shape[2] * shape[3] < 6:
        return  # a few values are nearly fixed by their statistics: only rounding errors are left
    x, residual = make(shape, dtype), make(shape, dtype, seed=1)
    size = (shape[0], shape[1], shape[2] + 2 * padding, shape[3] + 2 * padding)
    cotangent = torch.randn(size, generator=torch.Generator().manual_seed(2)).to(dtype)
    found = []
    for kind in (torch.float64, dtype):
        leaves = [tensor.detach().to(kind).requires_grad_() for tensor in (x, residual)]
        out = instance_norm(leaves[0], leaves[1] if with_residual else None, slope, padding)
        used = leaves[: 1 + with_residual]
        found.append(torch.autograd.grad(out, used, cotangent.to(kind)))
    for exact, gradient in zip(*found, strict=True):
        assert_matches(gradient, exact)


@pytest.mark.parametrize(("shape", "with_residual", "slope", "padding"), CASES[:4])
def test_the_references_gradients_are_those_of_finite_differences(
    shape: Shape, with_residual: bool, slope: float, padding: int
) -> None:
    torch.manual_seed(1)
    small = (shape[0], min(shape[1], 3), *shape[2:])
    x = torch.randn(small, dtype=torch.float64, requires_grad=True)
    residual = torch.randn(small, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, residual: Tensor) -> Tensor:
        return instance_norm(x, residual if with_residual else None, slope, padding)

    assert torch.autograd.gradcheck(call, (x, residual))
    assert torch.autograd.gradgradcheck(call, (x, residual))


@by_cases
def test_the_backward_reference_is_the_gradient(
    shape: Shape, with_residual: bool, slope: float, padding: int
) -> None:
    x = make(shape, torch.float64).requires_grad_()
    residual = make(shape, torch.float64, seed=1).requires_grad_()
    out = instance_norm(x, residual, slope, padding)
    cotangent = torch.randn(out.shape, dtype=torch.float64)
    wanted = torch.autograd.grad(out, (x, residual), cotangent)
    variance, mean = torch.var_mean(x.detach(), dim=(2, 3), correction=0)
    found = backward_reference(cotangent, x.detach(), mean, variance, slope, padding, 1e-5)
    for gradient, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def test_the_residual_may_be_the_inside_of_a_padded_map(
    implementation: str, assert_matches: Matches
) -> None:
    x, padded = make((2, 18, 6, 5), torch.float32), make((2, 18, 8, 7), torch.float32, seed=1)
    inside = padded[:, :, 1:-1, 1:-1]
    wanted = by_loop(x.double().numpy(), inside.double().numpy(), 1.0, 1, 1e-5)
    assert_matches(instance_norm(x, inside, padding=1), torch.from_numpy(wanted))
    for other in (inside.contiguous(), inside.half(), inside.transpose(2, 3).clone().mT):
        wanted = by_loop(x.double().numpy(), other.double().numpy(), 1.0, 1, 1e-5)
        assert_matches(instance_norm(x, other, padding=1), torch.from_numpy(wanted))


def test_an_image_does_not_depend_on_the_others(implementation: str) -> None:
    x, residual = make((5, 40, 18, 17), torch.float32), make((5, 40, 18, 17), torch.float32)
    together = instance_norm(x, residual, 0.0, 1)
    for n in range(5):
        alone = instance_norm(x[n : n + 1], residual[n : n + 1], 0.0, 1)
        assert torch.equal(together[n : n + 1], alone)


@compiled
def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    x = make((2, 40, 50, 41), torch.bfloat16).requires_grad_()
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            out = instance_norm(x, None, 0.0, 3)
            found.append((out, *torch.autograd.grad(out.float().square().sum(), x)))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_narrower_instruction_sets(
    run_narrower: Callable[..., Any], assert_matches: Matches, capability: str
) -> None:
    x, residual = make((2, 21, 18, 17), torch.float32), make((2, 21, 18, 17), torch.float32, seed=1)
    script = """
    x, residual = (tensor.requires_grad_() for tensor in given)
    out = ops.instance_norm(x, residual, 0.2, 2)
    results = [out.detach(), *torch.autograd.grad(out.square().sum(), (x, residual))]
    """
    narrow = run_narrower(capability, [x, residual], script)
    leaves = [tensor.double().requires_grad_() for tensor in (x, residual)]
    out = instance_norm(*leaves, 0.2, 2)
    exact = [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]
    for tensor, wanted in zip(narrow, exact, strict=True):
        assert_matches(tensor, wanted)


def test_means_far_from_zero(implementation: str, assert_matches: Matches) -> None:
    x = make((2, 8, 16, 16), torch.float32) + 300
    wanted = by_loop(x.double().numpy(), None, 0.0, 1, 1e-5)
    found = instance_norm(x, slope=0.0, padding=1)
    torch.testing.assert_close(found.double(), torch.from_numpy(wanted), rtol=1e-3, atol=1e-3)


def test_a_constant_channel_becomes_zero(implementation: str) -> None:
    assert torch.equal(instance_norm(torch.full((1, 2, 4, 4), 7.0)), torch.zeros(1, 2, 4, 4))


def test_nan_stays_in_its_channel(implementation: str) -> None:
    x = make((2, 20, 5, 5), torch.float32)
    x[1, 18, 2, 2] = torch.nan
    bad = instance_norm(x, slope=0.0, padding=1).isnan()
    assert bad[1, 18].all()
    assert bad.sum() == bad[1, 18].numel()


@compiled
def test_a_second_order_raises() -> None:
    x = make((1, 4, 5, 5), torch.float32).requires_grad_()
    (first,) = torch.autograd.grad(instance_norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()


@pytest.mark.parametrize(("shape", "with_residual", "slope", "padding"), CASES[:4])
def test_opcheck(shape: Shape, with_residual: bool, slope: float, padding: int) -> None:
    x = make(shape, torch.float32).requires_grad_()
    residual = make(shape, torch.float32).requires_grad_() if with_residual else None
    torch.library.opcheck(torch.ops.mirrorgan.instance_norm, (x, residual, slope, padding, 1e-5))


@pytest.mark.parametrize(
    ("x", "options", "expected"),
    [
        (torch.ones(3, 4, 4), {}, r"x: found .* \(3, 4, 4\) .*, wanted floating point"),
        (torch.ones(1, 3, 4, 4).int(), {}, "wanted floating point"),
        (torch.ones(0, 3, 4, 4), {}, "with at least one pixel"),
        (torch.ones(1, 3, 4, 5), {"padding": 4}, r"padding: found 4 .* less than H and W"),
        (torch.ones(1, 3, 4, 5), {"padding": -1}, "padding: found -1"),
        (
            torch.ones(1, 3, 4, 5),
            {"residual": torch.ones(1, 3, 5, 4)},
            r"residual: .* \(1, 3, 4, 5\)",
        ),
        (torch.ones(1, 3, 4, 5), {"residual": torch.ones(1, 3, 4, 5).int()}, "residual: found"),
    ],
)
def test_bad_input_is_refused(x: Tensor, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=f"^instance_norm: .*{expected}"):
        instance_norm(x, **options)


def test_it_is_compiled_whole(implementation: str) -> None:
    x = make((2, 4, 6, 6), torch.float32)
    compiled_op = torch.compile(instance_norm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled_op(x, x, 0.0, 1), instance_norm(x, x, 0.0, 1))


def test_compiled_gradients_in_bfloat16_are_right(implementation: str) -> None:
    """They were NaN for a map that was padded in bfloat16."""
    torch.manual_seed(3)
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    convolution = torch.nn.Conv2d(8, 8, 3)

    def loss(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return convolution(instance_norm(convolution(x), None, 0.0, 1)).float().square().mean()

    found = []
    for function in (loss, torch.compile(loss)):
        leaf = x.clone().requires_grad_()
        function(leaf).backward()
        assert leaf.grad is not None
        found.append(leaf.grad)
    torch.testing.assert_close(*found, rtol=0.05, atol=0.05 * float(found[0].abs().max()))
