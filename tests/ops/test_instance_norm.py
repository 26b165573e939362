"""Instance norm with leaky ReLU, sum and padding, against a loop over images and channels."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mirrorgan_fast.ops.instance_norm import instance_norm


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
]


@pytest.mark.parametrize(("shape", "with_residual", "slope", "padding"), CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_it_is_the_formula(
    shape: tuple[int, ...], with_residual: bool, slope: float, padding: int, channels_last: bool
) -> None:
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = (3 + 2 * torch.randn(shape, dtype=torch.float64)).to(memory_format=layout)
    residual = torch.randn(shape, dtype=torch.float64) if with_residual else None
    wanted = by_loop(
        x.numpy(), None if residual is None else residual.numpy(), slope, padding, 1e-3
    )
    found = instance_norm(x, residual, slope, padding, eps=1e-3)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12, atol=1e-12)
    # narrow types are computed in float32 and rounded once
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        narrow = x.to(dtype)
        rounded = None if residual is None else residual.to(dtype)
        wanted = by_loop(
            narrow.double().numpy(),
            None if rounded is None else rounded.double().numpy(),
            slope,
            padding,
            1e-3,
        )
        found = instance_norm(narrow, rounded, slope, padding, eps=1e-3)
        assert found.dtype == dtype
        np.testing.assert_allclose(found.double().numpy(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("shape", "with_residual", "slope", "padding"), CASES[:4])
def test_its_gradients_are_those_of_finite_differences(
    shape: tuple[int, ...], with_residual: bool, slope: float, padding: int
) -> None:
    torch.manual_seed(1)
    small = (shape[0], min(shape[1], 3), *shape[2:])
    x = torch.randn(small, dtype=torch.float64, requires_grad=True)
    residual = torch.randn(small, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, residual: Tensor) -> Tensor:
        return instance_norm(x, residual if with_residual else None, slope, padding)

    assert torch.autograd.gradcheck(call, (x, residual))
    assert torch.autograd.gradgradcheck(call, (x, residual))


def test_a_constant_channel_becomes_zero() -> None:
    assert torch.equal(instance_norm(torch.full((1, 2, 4, 4), 7.0)), torch.zeros(1, 2, 4, 4))


def test_it_is_compiled_whole() -> None:
    torch.manual_seed(2)
    x = torch.randn(2, 4, 6, 6)
    compiled = torch.compile(instance_norm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, x, 0.0, 1), instance_norm(x, x, 0.0, 1))


def test_compiled_gradients_in_bfloat16_are_right() -> None:
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
