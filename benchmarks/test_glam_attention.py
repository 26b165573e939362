"""glam_attention on the CPU: the compiled kernel against plain PyTorch."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from shapes import GLAM_ATTENTION, AttentionShape

from mirrorgan_fast.ops import glam_attention, use, why_not_compiled


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", GLAM_ATTENTION, ids=lambda shape: f"{shape.batch}x{shape.size}")
def test_glam_attention(
    benchmark: BenchmarkFixture,
    threads: int,
    shape: AttentionShape,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    implementation: str,
) -> None:
    if implementation == "cpu" and why_not_compiled() is not None:
        pytest.skip(str(why_not_compiled()))
    batch, size, channels, words = shape
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(batch, channels, size, size, generator=rng).to(dtype)
    features = features.contiguous(memory_format=memory_format)
    keys = torch.randn(batch, words, channels, generator=rng).to(dtype)
    lengths = torch.randint(words // 3, words + 1, (batch, 1), generator=rng)
    mask = torch.arange(words) < lengths
    sentence = torch.randn(batch, channels, generator=rng).to(dtype)
    weight = torch.randn(channels, channels, generator=rng).to(dtype)

    form = "channels_last" if memory_format is torch.channels_last else "contiguous"
    benchmark.group = f"{batch}x{channels}x{size}x{size} {dtype} {form} {threads} threads"
    with use(implementation):
        benchmark(glam_attention, features, keys, mask, sentence, weight)
