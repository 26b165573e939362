"""batch_norm_leaky_relu against its formula in float64. test_triton.py has the Triton kernels."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.layers import BatchNormLeakyReLU
from mirrorgan_fast.ops import batch_norm_leaky_relu

ONES = torch.ones


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=rng) * 2 + 3 * torch.randn(shape[1], 1, 1, generator=rng)
    scales = torch.float64 if dtype == torch.float64 else torch.float32
    return [x.to(dtype), *(torch.randn(2, shape[1], generator=rng).to(scales))]


def float64_result(x: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    x, weight, bias = x.double(), weight.double(), bias.double()
    centered = x - x.mean(dim=(0, 2, 3), keepdim=True)
    variance = (centered**2).mean(dim=(0, 2, 3), keepdim=True)
    y = centered / (variance + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]
    return torch.where(y > 0, y, slope * y)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 6, 5, 7), (2, 33, 1, 1), (1, 1, 2, 1), (4, 20, 9, 8)])
def test_matches_the_formula(assert_matches, shape, dtype, memory_format):
    x, weight, bias = make_inputs(shape, dtype)
    x = x.contiguous(memory_format=memory_format)
    out, mean, variance = batch_norm_leaky_relu(x, weight, bias, slope=0.3)
    assert out.dtype == dtype
    assert_matches(out, float64_result(x, weight, bias, 0.3))
    wide = x.double()
    assert_matches(mean, wide.mean(dim=(0, 2, 3)))
    assert_matches(variance, wide.var(dim=(0, 2, 3), unbiased=False))


def test_gradients_of_any_order():
    inputs = [tensor.requires_grad_() for tensor in make_inputs((2, 3, 2, 3), torch.float64)]
    assert torch.autograd.gradcheck(lambda *g: batch_norm_leaky_relu(*g)[0], inputs)
    assert torch.autograd.gradgradcheck(lambda *g: batch_norm_leaky_relu(*g)[0], inputs)


def test_the_module_updates_running_averages_like_batch_norm(assert_matches):
    torch.manual_seed(0)
    ours, norm = BatchNormLeakyReLU(6), nn.BatchNorm2d(6).double()
    assert ours.state_dict().keys() == norm.state_dict().keys()
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(4, 6, 5, 3) * 3 + 1
        assert_matches(ours(x).detach(), functional.leaky_relu(norm(x.double()), 0.2).detach())
    assert_matches(ours.running_mean, norm.running_mean)
    assert_matches(ours.running_var, norm.running_var)
    assert ours.num_batches_tracked == norm.num_batches_tracked
    ours.eval(), norm.eval()
    assert_matches(ours(x).detach(), functional.leaky_relu(norm(x.double()), 0.2).detach())


@pytest.mark.parametrize(
    ("x", "weight", "argument", "wanted"),
    [
        (ONES(3, 6, 5), ONES(6), "x", r"\(N, C, H, W\)"),
        (ONES(3, 6, 5, 5).long(), ONES(6), "x", "floating point"),
        (ONES(1, 6, 1, 1), ONES(6), "x", "more than one value per channel"),
        (ONES(0, 6, 2, 2), ONES(6), "x", "more than one value per channel"),
        (ONES(3, 6, 5, 5), ONES(5), "weight", r"\(6,\)"),
        (ONES(3, 6, 5, 5), ONES(6).double(), "weight", "float32"),
        (ONES(3, 6, 5, 5), ONES(6, device="meta"), "weight", "device cpu"),
    ],
)
def test_refuses(x, weight, argument, wanted):
    with pytest.raises(InputError, match=rf"batch_norm_leaky_relu: {argument}: found .*{wanted}"):
        batch_norm_leaky_relu(x, weight, weight)
