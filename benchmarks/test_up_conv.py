"""The up-blocks' convolution in training: the sub-pixel form, without an upsampled feature map."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.gpu_cases import backward
from benchmarks.harness import Comparison, Work
from benchmarks.shapes import UP_CONV, MapShape
from mirrorgan_fast.models.layers import UpConv2d


class Plain(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", UP_CONV, ids=lambda shape: f"{shape.channels}x{shape.size}")
def test_up_conv(comparison: Comparison, shape: MapShape, dtype: torch.dtype) -> None:
    batch, channels, size = shape
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, size, size, generator=rng)

    def trains(
        layer: nn.Conv2d, dtype: torch.dtype, memory_format: torch.memory_format, compiled: bool
    ) -> Callable[[], object]:
        own = copy.deepcopy(layer).to(dtype, memory_format=memory_format)
        own_x = x.to(dtype, memory_format=memory_format)
        forward = torch.compile(own) if compiled else own
        return backward(forward, [own_x], list(own.parameters()))

    ours = UpConv2d(channels, channels, 3, padding=1, bias=False)
    plain = Plain(channels, channels, 3, padding=1, bias=False)
    last = torch.channels_last
    comparison.run(
        trains(ours, dtype, last, compiled=False),
        {
            "eager": trains(plain, torch.float32, torch.contiguous_format, compiled=False),
            "compiled": trains(plain, torch.bfloat16, last, compiled=True),
        },
        # Four products per channel for each result, and twice as many for the gradients
        Work(
            3 * 2 * 4 * channels * 4 * x.numel(),
            3 * (x.numel() + 4 * x.numel()) * dtype.itemsize,
            dtype,
        ),
    )
