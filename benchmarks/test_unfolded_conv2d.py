"""Wide convolutions of small maps, forward and backward: PyTorch's are oneDNN's."""

import pytest
import torch
from torch import nn

from benchmarks.harness import Comparison, Work
from benchmarks.shapes import WIDE_CONV2D, ConvolutionShape
from mirrorgan_fast.inference.packing import fastest_dtype
from mirrorgan_fast.ops import conv2d, use


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize(
    "shape", WIDE_CONV2D, ids=lambda shape: f"{shape.channels}to{shape.out_channels}x{shape.size}"
)
def test_unfolded_conv2d(
    comparison: Comparison, shape: ConvolutionShape, dtype: torch.dtype
) -> None:
    if dtype == torch.bfloat16 and fastest_dtype() != dtype:
        pytest.skip("this processor does not multiply bfloat16")
    batch, channels, size, out_channels, kernel, stride = shape
    rng = torch.Generator().manual_seed(0)

    def random(*sizes: int) -> torch.Tensor:
        made = torch.randn(*sizes, generator=rng).to(dtype)
        return made.to(memory_format=torch.channels_last)

    x = random(batch, channels, size, size).requires_grad_()
    weight = nn.Parameter(random(out_channels, channels, kernel, kernel))
    side = (size + 2 - kernel) // stride + 1
    cotangent = random(batch, out_channels, side, side)

    def step() -> object:
        with torch.enable_grad():
            out = conv2d(x, weight, None, stride, 1)
        return torch.autograd.grad(out, (x, weight), cotangent)

    def plain() -> object:
        with use("reference"):
            return step()

    for ours, theirs in zip(step(), plain(), strict=True):  # type: ignore[call-overload]
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2 * float(theirs.abs().max()))
    operations = 3 * 2 * cotangent.numel() * weight[0].numel()
    comparison.run(step, {"eager": plain}, Work(operations, 2 * weight.nbytes, dtype))
