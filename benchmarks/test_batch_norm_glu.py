"""batch_norm_glu on the CPU, forward and backward: the compiled kernel against plain PyTorch."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from shapes import BATCH_NORM_GLU, MapShape

from mirrorgan_fast.ops import batch_norm_glu, use, why_not_compiled
from mirrorgan_fast.training.precision import keep_memory


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", BATCH_NORM_GLU, ids=lambda shape: f"{shape.channels}x{shape.size}"
)
def test_batch_norm_glu(
    benchmark: BenchmarkFixture,
    threads: int,
    shape: MapShape,
    dtype: torch.dtype,
    implementation: str,
) -> None:
    if implementation == "cpu" and why_not_compiled() is not None:
        pytest.skip(str(why_not_compiled()))
    keep_memory()  # as training does
    batch, channels, size = shape
    rng = torch.Generator().manual_seed(0)

    def channels_last(count: int) -> torch.Tensor:
        values = torch.randn(batch, count, size, size, generator=rng).to(dtype)
        return values.contiguous(memory_format=torch.channels_last)

    x, gradient = channels_last(channels).requires_grad_(), channels_last(channels // 2)
    weight = torch.ones(channels, requires_grad=True)
    bias = torch.zeros(channels, requires_grad=True)

    def forward_and_backward() -> None:
        with torch.enable_grad():
            out = batch_norm_glu(x, weight, bias)[0]
        torch.autograd.grad(out, (x, weight, bias), gradient)

    benchmark.group = f"{batch}x{channels}x{size}x{size} {dtype} {threads} threads"
    with use(implementation):
        benchmark(forward_and_backward)
