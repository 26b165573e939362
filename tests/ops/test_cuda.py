"""The CUDA kernels on a GPU, against float64. See test_cuda_without_gpu.py for other tests."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mirrorgan_fast.ops import choice, use

from . import calls
from .calls import WGMMA_CALLS, Shapes

pytestmark = pytest.mark.gpu

BF16 = torch.bfloat16
CONVOLUTIONS = [
    Shapes(layout="rows", upsample=upsample)._replace(**sizes)
    for upsample in (False, True)
    for sizes in (
        {},
        {"channels": 64, "height": 9, "width": 17, "out_channels": 32},
        {"channels": 32, "height": 17, "width": 5, "out_channels": 64},
        {"channels": 70, "height": 8, "width": 16, "out_channels": 40},
        {"batch": 0},
    )
]
ATTENTIONS = [
    Shapes(batch, 32, height, width, columns, words=words, form=form)
    for form in ("authors", "paper", "words")
    for batch, height, width, columns, words in ((2, 4, 6, 3, 3), (3, 23, 29, 64, 18))
]


PER_SAMPLE = {"conv_add": {0, 3}, "conv_glu": {0}, "glam_attention_mix": {0, 1, 2, 3}}
"""The indices of the arguments that have a row for each sample."""


@pytest.fixture(autouse=True)
def in_cuda() -> Iterator[None]:
    with use("cuda"):
        chosen = choice.choose("conv_glu", "cuda", BF16, needs_grad=False)
        if chosen.implementation != "cuda":
            pytest.skip(chosen.reason)
        yield


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        *(("conv_glu", shapes) for shapes in CONVOLUTIONS),
        *(("glam_attention_mix", shapes) for shapes in ATTENTIONS),
        *WGMMA_CALLS,
    ],
)
def test_matches_float64(assert_matches, op, shapes):
    called = calls.call(op, shapes, BF16).to("cuda")
    out = torch.full_like(called.run(), torch.nan)
    assert_matches(called.run(out=out), called.expected)


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        ("conv_glu", Shapes(16, 32, 128, 128, 32, upsample=True, layout="rows")),
        ("conv_glu", Shapes(16, 64, 128, 128, 32, upsample=True, layout="rows")),
        ("conv_glu", Shapes(16, 64, 128, 128, 64, layout="rows")),
        ("conv_add", Shapes(16, 64, 128, 128, 64, layout="rows")),
        ("glam_attention_mix", Shapes(16, 32, 128, 128, 64, words=18)),
    ],
)
def test_no_race(assert_matches, op, shapes):
    called = calls.call(op, shapes._replace(batch=1), BF16).to("cuda")
    many = [
        t.expand(16, *t.shape[1:]).contiguous()
        if isinstance(t, Tensor) and i in PER_SAMPLE[op]
        else t
        for i, t in enumerate(called.arguments)
    ]
    first = called.op(*many)
    assert_matches(first[:1], called.expected)
    assert all(torch.equal(sample, first[0]) for sample in first)
    for _ in range(100):
        assert torch.equal(called.op(*many), first)


@pytest.mark.parametrize(
    ("op", "shapes"), [("conv_glu", CONVOLUTIONS[1]), WGMMA_CALLS[0], WGMMA_CALLS[-3]]
)
def test_in_a_cuda_graph(op, shapes):
    called = calls.call(op, shapes, BF16).to("cuda")
    expected = called.run()
    out = torch.zeros_like(expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        called.run(out=out)
    graph.replay()
    assert torch.equal(out, expected)
