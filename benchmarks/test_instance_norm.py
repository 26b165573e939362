"""instance_norm on the CPU: the forward alone, as in translation, and with the backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.gpu_cases import backward
from benchmarks.harness import Comparison, Work
from benchmarks.shapes import INSTANCE_NORM, NormShape
from mirrorgan_fast.ops import instance_norm
from mirrorgan_fast.ops.instance_norm import reference


class Plain(nn.Module):
    """What CycleGAN's generators do between two convolutions, in PyTorch's own layers."""

    def __init__(self, shape: NormShape) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(shape.channels)
        self.slope, self.padding = shape.slope, shape.padding

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.norm(x.float()).to(x.dtype), self.slope)
        return functional.pad(y, (self.padding,) * 4, mode="reflect")


@pytest.mark.parametrize("trained", [False, True], ids=["forward", "trained"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", INSTANCE_NORM, ids=str)
def test_instance_norm(
    comparison: Comparison, shape: NormShape, dtype: torch.dtype, trained: bool
) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(shape.batch, shape.channels, shape.size, shape.size, generator=rng)
    last = torch.channels_last

    def call(run: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Callable[[], object]:
        given = x.to(dtype, memory_format=last)
        if trained:
            return backward(run, [given])
        return torch.no_grad()(lambda: run(given))

    # the layers' own gradient is NaN when it is compiled in bfloat16 (PyTorch 2.13)
    as_one = torch.compile(lambda x: reference(x, None, shape.slope, shape.padding, 1e-5))
    alternatives = {"eager": call(Plain(shape), dtype), "compiled": call(as_one, dtype)}
    passes = 3 + 5 * trained  # read for the statistics and the result, written; backward likewise
    comparison.run(
        call(lambda x: instance_norm(x, None, shape.slope, shape.padding), dtype),
        alternatives,
        Work(0, passes * x.numel() * dtype.itemsize, dtype),
    )
