"""glam_attention on the CPU, at the sizes of `birds`, as in training and for attention maps."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.alternatives import alternatives, as_map, work
from benchmarks.harness import Comparison
from benchmarks.shapes import GLAM_ATTENTION, AttentionShape
from mirrorgan_fast.ops import glam_attention


class Attends(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return glam_attention(*inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", GLAM_ATTENTION, ids=lambda shape: f"{shape.batch}x{shape.size}")
def test_glam_attention(comparison: Comparison, shape: AttentionShape, dtype: torch.dtype) -> None:
    batch, size, channels, words = shape
    rng = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(batch, channels, size, size, generator=rng),
        torch.randn(batch, words, channels, generator=rng),
        torch.arange(words) < torch.randint(words // 3, words + 1, (batch, 1), generator=rng),
        torch.randn(batch, channels, generator=rng),
        torch.randn(channels, channels, generator=rng),
    )
    ours = [as_map(tensor, dtype) for tensor in inputs]
    module = Attends()
    comparison.run(
        lambda: glam_attention(*ours),
        alternatives(module, *inputs),
        work(module, dtype, [*ours, glam_attention(*ours)], *inputs),
    )
