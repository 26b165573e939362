"""The gradient of a convolution's weight, in float32: PyTorch's is oneDNN's."""

import pytest
import torch
from torch import nn

from benchmarks.harness import Comparison, Work
from benchmarks.shapes import CONV2D, ConvolutionShape
from mirrorgan_fast.ops import conv2d, use


@pytest.mark.parametrize(
    "shape", CONV2D, ids=lambda shape: f"{shape.channels}to{shape.out_channels}x{shape.size}"
)
def test_conv2d(comparison: Comparison, shape: ConvolutionShape) -> None:
    batch, channels, size, out_channels, kernel, stride = shape
    rng = torch.Generator().manual_seed(0)
    last = torch.channels_last
    x = torch.randn(batch, channels, size, size, generator=rng).to(memory_format=last)
    weight = nn.Parameter(torch.randn(out_channels, channels, kernel, kernel, generator=rng))
    with torch.enable_grad():
        ours = conv2d(x, weight, None, stride, 1)
        with use("reference"):
            plain = conv2d(x, weight, None, stride, 1)
    cotangent = torch.randn(ours.shape, generator=rng).to(memory_format=last)

    def gradient(out: torch.Tensor) -> object:
        return torch.autograd.grad(out, weight, cotangent, retain_graph=True)

    comparison.run(
        lambda: gradient(ours),
        {"eager": lambda: gradient(plain)},
        Work(
            2 * ours.numel() * channels * kernel * kernel,
            x.nbytes + cotangent.nbytes + weight.nbytes,
            torch.float32,
        ),
    )
