"""bidirectional_lstm on the CPU, with precomputed gates of all words: STEM of `cub`."""

import pytest
import torch

from benchmarks.harness import Comparison, Work
from mirrorgan_fast.inference.fused_stem import FusedSTEM
from mirrorgan_fast.models.mirrorgan import MirrorGAN


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 8, 64])
def test_stem(comparison: Comparison, model: MirrorGAN, batch: int, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, len(model.vocabulary), (batch, 18), generator=rng)
    lengths = torch.full((batch,), 18)
    fused, stem = FusedSTEM(model.stem, dtype=dtype), model.stem
    recurrent = [stem.lstm.weight_hh_l0, stem.lstm.weight_hh_l0_reverse]
    read = [*recurrent, fused.gates[tokens], *fused(tokens, lengths)]
    parameters = sum(weight.numel() for weight in recurrent)
    comparison.run(
        lambda: fused(tokens, lengths),
        {"eager": lambda: stem(tokens, lengths)},
        Work(2 * tokens.numel() * parameters, sum(tensor.nbytes for tensor in read), dtype),
    )
