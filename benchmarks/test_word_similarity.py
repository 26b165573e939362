"""word_similarity in plain PyTorch, forward and backward, as in DAMSM's training."""

import pytest
import torch
from torch import Tensor

from benchmarks.gpu_cases import GAMMA1, GAMMA2, backward, similarity_by_loop
from benchmarks.harness import Comparison, Work
from benchmarks.shapes import WORD_SIMILARITY
from mirrorgan_fast.ops import word_similarity


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_word_similarity(comparison: Comparison, dtype: torch.dtype) -> None:
    pairs, words, regions, depth = WORD_SIMILARITY
    rng = torch.Generator().manual_seed(0)
    w, v = (
        torch.randn(pairs, count, depth, generator=rng) / depth**0.25 for count in (words, regions)
    )
    mask = torch.ones(pairs, words, dtype=torch.bool)

    def at_once(words: Tensor, regions: Tensor) -> Tensor:
        return word_similarity(words, mask, regions, gamma1=GAMMA1, gamma2=GAMMA2)

    def by_loop(words: Tensor, regions: Tensor) -> Tensor:
        return similarity_by_loop(words, mask, regions)

    comparison.run(
        backward(at_once, (w.to(dtype), v.to(dtype))),
        {"eager": backward(by_loop, (w, v))},
        # Two products, for scores and context vectors, and twice as many for their gradients
        Work(6 * 2 * pairs**2 * words * regions * depth, w.nbytes + v.nbytes, dtype),
    )
