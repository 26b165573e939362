"""batch_norm_glu on the CPU, forward and backward, each in two passes over memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.gpu_cases import backward
from benchmarks.harness import Comparison, Work
from benchmarks.shapes import BATCH_NORM_GLU, MapShape
from mirrorgan_fast.ops import batch_norm_glu


class Plain(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.glu(self.norm(x), dim=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "shape", BATCH_NORM_GLU, ids=lambda shape: f"{shape.channels}x{shape.size}"
)
def test_batch_norm_glu(comparison: Comparison, shape: MapShape, dtype: torch.dtype) -> None:
    batch, channels, size = shape
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, size, size, generator=rng)
    weight = torch.ones(channels, requires_grad=True)
    bias = torch.zeros(channels, requires_grad=True)

    def trains(
        forward: Callable[[Tensor], Tensor],
        parameters: tuple[Tensor, ...],
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> Callable[[], object]:
        return backward(forward, [x.to(dtype, memory_format=memory_format)], parameters)

    plain, compiled = Plain(channels), torch.compile(Plain(channels))
    wide, last = torch.contiguous_format, torch.channels_last
    element = torch.finfo(dtype).bits // 8
    comparison.run(
        trains(lambda x: batch_norm_glu(x, weight, bias)[0], (weight, bias), dtype, last),
        {
            "eager": trains(plain, tuple(plain.parameters()), torch.float32, wide),
            "compiled": trains(compiled, tuple(compiled.parameters()), torch.bfloat16, last),
        },
        # Statistics need all of x before anything is normalized, forward and backward
        Work(0, (5 * x.numel() + 3 * x.numel() // 2) * element, dtype),
    )
