"""From tokens to gray levels: the generator of `cub`, 256 px, on the CPU."""

import copy

import pytest
import torch

from benchmarks.alternatives import generator_work
from benchmarks.cub_model import inputs_of, plain_call
from benchmarks.harness import Comparison
from benchmarks.separate_process import SeparateProcess
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.ops import use

BF16, FP32 = torch.bfloat16, torch.float32


CASES = [
    (1, 18, BF16),
    (8, 18, BF16),
    (64, 18, BF16),
    (8, 128, BF16),
    (1, 18, FP32),
    (8, 18, FP32),
]


@pytest.mark.parametrize(
    ("batch", "words", "dtype"),
    [
        pytest.param(*case, id=f"batch {case[0]}, {case[1]} words, {str(case[2])[6:]}")
        for case in CASES
    ],
)
def test_generator(
    comparison: Comparison, model: MirrorGAN, batch: int, words: int, dtype: torch.dtype
) -> None:
    inputs = inputs_of(model, batch, words)
    tokens, lengths, noise, condition_noise = inputs
    fused = fuse(model, dtype)
    narrow = copy.copy(model)
    narrow._modules = dict(model._modules)  # STEM's LSTM takes little time and is not compiled
    narrow.glam = copy.deepcopy(model.glam).to(BF16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    narrow.stem = copy.deepcopy(model.stem).to(BF16)
    narrow.glam.compile()
    narrow_inputs = (tokens, lengths, noise.to(BF16), condition_noise.to(BF16))

    def eager() -> None:
        with use("reference"):
            model.render(*inputs)

    def compiled() -> None:
        with use("reference"):
            narrow.render(*narrow_inputs)

    with SeparateProcess(plain_call, batch, words) as separate:
        comparison.run(
            lambda: fused.render(*inputs),
            {"eager": eager, "compiled": compiled, "eager_as_it_comes": separate},
            generator_work(model, dtype, inputs),
            images=batch,
        )
