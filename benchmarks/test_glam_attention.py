"""glam_attention on the CPU, at the sizes of `birds`: forward, and forward and backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.alternatives import alternatives, as_map, work
from benchmarks.gpu_cases import backward
from benchmarks.harness import Comparison, Work
from benchmarks.shapes import GLAM_ATTENTION, GLAM_ATTENTION_TRAINED, AttentionShape
from mirrorgan_fast.ops import glam_attention
from mirrorgan_fast.ops.glam_attention import reference


class Attends(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return glam_attention(*inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", GLAM_ATTENTION, ids=lambda shape: f"{shape.batch}x{shape.size}")
def test_glam_attention(comparison: Comparison, shape: AttentionShape, dtype: torch.dtype) -> None:
    inputs = random_inputs(shape)
    ours = [as_map(tensor, dtype) for tensor in inputs]
    module = Attends()
    comparison.run(
        lambda: glam_attention(*ours),
        alternatives(module, *inputs),
        work(module, dtype, [*ours, glam_attention(*ours)], *inputs),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "shape", GLAM_ATTENTION_TRAINED, ids=lambda shape: f"{shape.batch}x{shape.size}"
)
def test_glam_attention_trained(
    comparison: Comparison, shape: AttentionShape, dtype: torch.dtype
) -> None:
    features, words, mask, sentence, _ = random_inputs(shape)  # the form of birds-painted

    def trains(function: Callable[..., Tensor], dtype: torch.dtype) -> Callable[[], object]:
        inputs = [as_map(tensor, dtype) for tensor in (features, words, sentence)]
        return backward(lambda f, k, s: function(f, k, mask, s), inputs)

    parts = features.numel() * dtype.itemsize
    comparison.run(
        trains(glam_attention, dtype),
        {
            "eager": trains(reference, torch.float32),
            "compiled": trains(torch.compile(reference), torch.bfloat16),
        },
        # Forward: f, and three parts; backward: f, three gradients, and one
        Work(0, 9 * parts, dtype),
    )


def random_inputs(shape: AttentionShape) -> tuple[Tensor, ...]:
    """Return the inputs in float32, with the weight of the authors' form."""
    batch, size, channels, words = shape
    rng = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, channels, size, size, generator=rng),
        torch.randn(batch, words, channels, generator=rng),
        torch.arange(words) < torch.randint(words // 3, words + 1, (batch, 1), generator=rng),
        torch.randn(batch, channels, generator=rng),
        torch.randn(channels, channels, generator=rng),
    )
