"""The Triton kernels against float64 on small odd shapes, on a GPU or in Triton's interpreter.

Triton decides when it is imported whether to interpret. Without a GPU `test_triton_without_gpu.py`
runs this file in another process, with the interpreter.
"""

from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mirrorgan_fast.inference.fused_glam import FusedGLAM
from mirrorgan_fast.inference.fused_stem import FusedSTEM
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.glam import GLAM
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.models.stem import STEM, word_mask
from mirrorgan_fast.ops import (
    batch_norm_glu,
    batch_norm_leaky_relu,
    bidirectional_lstm,
    choice,
    conv_add,
    glam_attention_mix,
    pack_lstm,
    use,
    word_similarity,
)
from mirrorgan_fast.pictures import to_uint8

from . import calls
from .calls import Call, Shapes
from .conftest import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
NARROW = [torch.bfloat16, torch.float16]
OPS = ["conv_add", "conv_glu", "glam_attention_mix", "glam_stage", "image_head"]
SHAPES = [
    Shapes(layout="rows"),
    Shapes(layout="rows", side=1, form="paper", head=True),
    Shapes(layout="rows", upsample=True, form="words", words=1, blocks=0),
    # several blocks of pixels, input channels and output channels, the last ones partial
    Shapes(2, 70, 7, 11, 70, words=40, layout="rows", upsample=True, head=True),
    Shapes(1, 48, 11, 13, 96, words=33, layout="rows", form="paper", blocks=0),
    Shapes(batch=0, layout="rows"),
]


def call(op: str, shapes: Shapes, dtype: torch.dtype) -> Call:
    if op == "conv_add":  # its kernel writes no upsampled map
        shapes = shapes._replace(upsample=False)
    return calls.call(op, shapes, dtype).to(DEVICE)


@pytest.fixture(autouse=True)
def in_triton() -> Iterator[None]:
    with use("triton"):
        yield


def test_triton_is_chosen() -> None:
    without = {"conv2d", "conv_relu", "glam", "glam_attention", "glam_stage"}
    without |= {"instance_norm", "unfolded_conv2d"}
    for op in {*choice.TABLE} - without:
        dtype = torch.float32 if op == "bidirectional_lstm" else torch.bfloat16
        chosen = choice.choose(op, DEVICE, dtype, needs_grad=False)
        assert chosen.implementation == "triton"
    for op in ("batch_norm_glu", "batch_norm_leaky_relu", "glam_attention_mix", "word_similarity"):
        chosen = choice.choose(op, DEVICE, torch.bfloat16, needs_grad=True)
        assert chosen.implementation == "triton"


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32])
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("op", OPS)
def test_matches_float64(assert_result, op, shapes, dtype):
    called = call(op, shapes, dtype)
    assert_result(called, called.run())


@pytest.mark.parametrize("op", OPS)
def test_writes_only_to_out(op):
    called = call(op, SHAPES[3], torch.float16)
    result = called.run()
    memory = torch.full((3 * result.numel(),), 3, dtype=result.dtype, device=DEVICE)
    strides = result.stride()
    out = memory[result.numel() : 2 * result.numel()].as_strided(
        result.shape, strides, result.numel()
    )
    assert called.run(out=out) is out
    assert torch.equal(out, result)
    assert (memory[: result.numel()] == 3).all()
    assert (memory[2 * result.numel() :] == 3).all()


def test_out_may_be_the_residual():
    called = call("conv_add", SHAPES[4], torch.float16)
    expected = called.run()
    residual = called.arguments[3].clone(memory_format=torch.preserve_format)
    called.op(*called.arguments[:3], residual, out=residual)
    assert torch.equal(residual, expected)


@pytest.mark.parametrize("op", OPS)
def test_samples_do_not_change_each_others_bits(op, monkeypatch):
    # On some processors NumPy's float32 rounding depends on a row's place in a block.
    if INTERPRETED:
        monkeypatch.setattr(np, "matmul", _exact_matmul)
    called = call(op, SHAPES[3], torch.bfloat16)
    batched = called.run()
    for n in range(len(batched)):
        assert torch.equal(called.for_sample(n).run(), batched[n : n + 1])


def _exact_matmul(a, b, dtype=None, matmul=np.matmul):
    """Multiply in float64, where sums of bfloat16 products do not depend on their order."""
    return matmul(a.astype(np.float64), b.astype(np.float64)).astype(dtype or a.dtype)


@pytest.mark.parametrize("op", OPS)
def test_strided_inputs(op):
    called = call(op, SHAPES[0], torch.float16)
    first, *rest = called.arguments
    strided = first.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    assert torch.equal(called.op(strided, *rest), called.run())


@pytest.mark.parametrize("op", ["conv_add", "conv_glu", "image_head"])
def test_nan_reaches_only_its_neighbors(op):
    called = call(op, Shapes(2, 5, 7, 8, layout="rows"), torch.float16)
    before = called.run().float()
    called.arguments[0][1, 2, 3, 4] = torch.nan
    after = called.run().float()
    if op == "image_head":
        before, after = before.permute(0, 3, 1, 2), after.permute(0, 3, 1, 2)
    near = torch.zeros_like(before, dtype=torch.bool)
    near[1, :, 2:5, 3:6] = True
    assert torch.equal(after[~near], before[~near])
    assert (after[near] == 0 if op == "image_head" else after[near].isnan()).all()


@pytest.mark.parametrize("words", [20, 40])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_padding_is_not_read(needs_grad, words):
    shapes = Shapes(words=words)
    called = call("glam_attention_mix", shapes, torch.float16)
    features, words, mask, *rest = called.arguments
    mask[0], mask[1, 1:] = False, False  # no words, and one word
    features.requires_grad_(needs_grad)
    expected = glam_attention_mix(features, words.masked_fill(~mask[..., None], 0), mask, *rest)
    words = words.masked_fill(~mask[..., None], torch.nan)
    actual = glam_attention_mix(features, words, mask, *rest)
    assert torch.equal(actual, expected)
    assert actual.isfinite().all()
    if needs_grad:
        actual.float().sum().backward()
        assert features.grad is not None
        assert features.grad.isfinite().all()


def assert_gradients(
    run: Callable[..., Tensor], inputs: list[Tensor], assert_matches: Callable[..., None]
) -> None:
    """Compare result and gradients with those of the reference in float64."""
    inputs = [tensor.detach().to(DEVICE) for tensor in inputs]
    narrow = [tensor.clone().requires_grad_() for tensor in inputs]
    wide = [tensor.double().requires_grad_() for tensor in inputs]
    actual = run(*narrow)
    cotangent = torch.randn(actual.shape, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    # On a GPU the backward pass runs in threads that no request for an implementation reaches.
    with mock.patch.object(choice, "asked_for", side_effect=AssertionError):
        actual.backward(cotangent.to(actual.dtype))
    with use("reference"):
        expected = run(*wide)
    expected.backward(cotangent.to(actual.dtype).double())
    assert_matches(actual.detach(), expected.detach())
    for one, other in zip(narrow, wide, strict=True):
        assert one.grad is not None
        assert one.grad.dtype == one.dtype
        assert_matches(one.grad, other.grad)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("form", ["authors", "paper", "words"])
@pytest.mark.parametrize(
    "shapes",
    [
        Shapes(),
        Shapes(3, 32, 23, 41, 64, words=18),
        Shapes(2, 20, 3, 5, 33, words=32),
        Shapes(2, 48, 9, 31, 96, words=12),  # more channels, or words, than one launch computes
        Shapes(2, 24, 3, 5, 33, words=40),
        Shapes(1, 20, 5, 9, 70, words=64),
    ],
)
def test_gradients_of_attention(assert_matches, shapes, form, dtype):
    called = call("glam_attention_mix", shapes._replace(form=form), dtype)
    mask = called.arguments[2]

    def run(*inputs: Tensor) -> Tensor:
        tensors = iter(inputs)
        arguments = [None if a is None else next(tensors) for a in others]
        return glam_attention_mix(*arguments[:2], mask, *arguments[2:])

    others = [*called.arguments[:2], *called.arguments[3:]]
    assert_gradients(run, [tensor for tensor in others if tensor is not None], assert_matches)


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32])
@pytest.mark.parametrize("shape", [(2, 6, 3, 5), (3, 140, 9, 17), (1, 2, 1, 3), (5, 64, 12, 12)])
@pytest.mark.parametrize("op", [batch_norm_glu, batch_norm_leaky_relu])
def test_batch_norms(assert_matches, op, shape, dtype):
    rng = torch.Generator().manual_seed(0)
    channels = shape[1]
    x = torch.randn(shape, generator=rng) * 2 + 3 * torch.randn(channels, 1, 1, generator=rng)
    weight, bias = torch.randn(2, channels, generator=rng)
    assert_gradients(lambda *g: op(*g)[0], [x.to(dtype), weight, bias], assert_matches)
    _, mean, variance = op(x.to(DEVICE, dtype), weight.to(DEVICE), bias.to(DEVICE))
    wide = x.to(dtype).double()
    assert_matches(mean, wide.mean(dim=(0, 2, 3)))
    assert_matches(variance, wide.var(dim=(0, 2, 3), unbiased=False))


def test_a_penalty_differentiates_the_leaky_relu_twice(assert_matches):
    x, weight, bias = torch.randn(3, 4, 5, 6), torch.randn(4), torch.randn(4)

    def penalty(*inputs: Tensor) -> Tensor:
        out = batch_norm_leaky_relu(*inputs)[0]
        (gradient,) = torch.autograd.grad(out.pow(2).sum(), inputs[0], create_graph=True)
        return gradient.pow(2).sum()

    assert_gradients(penalty, [x, weight, bias], assert_matches)


@pytest.mark.parametrize("op", [batch_norm_glu, batch_norm_leaky_relu])
def test_strided_weights(op):
    x, both = torch.randn(2, 6, 3, 5).to(DEVICE), torch.randn(6, 2).to(DEVICE)
    expected = op(x, both[:, 0].contiguous(), both[:, 1].contiguous())
    leaves = [x, both[:, 0], both[:, 1]]
    for actual, exact in zip(op(*leaves), expected, strict=True):
        assert torch.equal(actual, exact)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    strided = torch.autograd.grad(op(*leaves)[0].square().sum(), leaves)
    dense = [leaf.detach().contiguous().requires_grad_() for leaf in leaves]
    for actual, exact in zip(
        strided, torch.autograd.grad(op(*dense)[0].square().sum(), dense), strict=True
    ):
        assert torch.equal(actual, exact)


def test_nan_stays_in_its_channel():
    x = torch.randn(2, 6, 4, 4).to(DEVICE)
    x[1, 1, 2, 2] = torch.nan
    ones = torch.ones(6).to(DEVICE)
    out, mean, variance = batch_norm_leaky_relu(x, ones, ones)
    for found in (out.transpose(0, 1).flatten(1).sum(dim=1), mean, variance):
        assert found.isnan().tolist() == [False, True, False, False, False, False]


def test_no_captions_and_no_images():
    w, v = torch.ones(0, 3, 4).to(DEVICE).half(), torch.ones(2, 5, 4).to(DEVICE).half()
    mask = torch.ones(0, 3, dtype=torch.bool, device=DEVICE)
    v.requires_grad_()
    similarity = word_similarity(w, mask, v)
    assert similarity.shape == (2, 0)
    assert torch.autograd.grad(similarity.sum(), v)[0].eq(0).all()
    assert word_similarity(w.new_ones(2, 3, 4), mask.new_ones(2, 3), v[:0]).shape == (0, 2)


def test_too_large_lengths_are_cut():
    gates, tokens = torch.randn(6, 2, 128).to(DEVICE), torch.arange(6).view(2, 3).to(DEVICE)
    recurrent = pack_lstm(nn.LSTM(4, 32, bidirectional=True), layout="rows").recurrent.to(DEVICE)
    lengths = torch.tensor([3, 3]).to(DEVICE)
    expected = bidirectional_lstm(gates, tokens, lengths, recurrent)
    longer = bidirectional_lstm(gates, tokens, lengths + 2, recurrent)
    assert all(map(torch.equal, longer, expected))


def test_unknown_tokens_read_no_memory():
    """Their result is undefined, but they must not read memory outside of the gates."""
    recurrent = pack_lstm(nn.LSTM(4, 32, bidirectional=True), layout="rows").recurrent.to(DEVICE)
    gates = torch.full((8, 2, 128), torch.nan)
    gates[2:5] = 1  # a vocabulary of three words, with NaN before and after it in memory
    tokens, lengths = torch.tensor([[-1, 3], [3, -2]]).to(DEVICE), torch.tensor([2, 2]).to(DEVICE)
    states, _ = bidirectional_lstm(gates.to(DEVICE)[2:5], tokens, lengths, recurrent)
    assert states.isfinite().all()


def test_means_far_from_zero(assert_matches):
    x = torch.randn(4, 8, 16, 16).to(DEVICE) + 300
    _, _, variance = batch_norm_glu(x, x.new_ones(8), x.new_zeros(8))
    expected = x.double().var(dim=(0, 2, 3), unbiased=False)
    torch.testing.assert_close(variance.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("rows", [3, 8])
def test_an_outlier_loses_no_precision(rows):
    """Not even at the first pixel, which a kernel might subtract from all pixels."""
    x = torch.randn(1, 8, rows, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x[0, :, 0, 0] += 100
    expected = x.double().var(dim=(0, 2, 3), unbiased=False)
    for op in (batch_norm_glu, batch_norm_leaky_relu):
        _, _, variance = op(x, x.new_ones(8), x.new_zeros(8))
        torch.testing.assert_close(variance.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    ("captions", "words", "images", "regions", "depth"),
    [(3, 4, 2, 5, 20), (2, 18, 11, 70, 64), (4, 32, 3, 33, 256), (1, 1, 1, 3, 2)],
)
def test_word_similarity(assert_matches, captions, words, images, regions, depth, dtype):
    rng = torch.Generator().manual_seed(0)
    w = torch.randn(captions, words, depth, generator=rng) / depth**0.25
    v = torch.randn(images, regions, depth, generator=rng) / depth**0.25
    mask = torch.rand(captions, words, generator=rng) > 0.3
    mask[:, 0] = True
    mask = mask.to(DEVICE)
    inputs = [w.to(dtype), v.to(dtype)]

    def run(w: Tensor, v: Tensor) -> Tensor:
        return word_similarity(w, mask, v).to(w.dtype)  # its products have this precision

    assert_gradients(run, inputs, assert_matches)


@pytest.mark.parametrize(("captions", "words", "units"), [(3, 5, 40), (17, 4, 32), (2, 1, 128)])
def test_bidirectional_lstm(captions, words, units):
    torch.manual_seed(0)
    lstm = nn.LSTM(9, units, batch_first=True, bidirectional=True).to(DEVICE)
    vocabulary, tokens = torch.randn(7, 9).to(DEVICE), torch.randint(0, 7, (captions, words))
    x, tokens = vocabulary[tokens], tokens.to(DEVICE)
    lengths = torch.randint(0, words + 1, (captions,)).to(DEVICE)
    packed = pack_lstm(lstm, layout="rows")
    gates = conv_add(vocabulary.T[None, :, :, None], packed.weight, packed.bias)
    gates = gates[0, :, :, 0].T.unflatten(1, (2, -1))
    behind = torch.arange(words, device=DEVICE) >= lengths[:, None]
    tokens = tokens.masked_fill(behind, 3)
    states, last = bidirectional_lstm(gates, tokens, lengths, packed.recurrent)
    for n, length in enumerate(lengths.tolist()):
        expected = torch.zeros(words, 2, units, dtype=torch.float64)
        ends = torch.zeros(2, units, dtype=torch.float64)
        if length:
            out, (h, _) = lstm.double()(x[n : n + 1, :length].double())
            expected[:length] = out[0].unflatten(1, (2, units)).detach().cpu()
            ends = h[:, 0].detach().cpu()
        # On a GPU the products are computed in tf32.
        close = {"atol": 1e-6, "rtol": 1e-5} if INTERPRETED else {"atol": 3e-3, "rtol": 3e-3}
        torch.testing.assert_close(states[n, ..., :units].cpu().double(), expected, **close)
        torch.testing.assert_close(last[n, :, :units].cpu().double(), ends, **close)


@torch.no_grad()
def test_the_whole_generator_and_text_encoder():
    """As on a GPU: weights in rows, all images in one batch, captions of one to five words."""
    torch.manual_seed(0)
    config = MirrorGANConfig(
        image_size=32, stages=2, generator_channels=8, embedding_size=12, word_embedding_size=9,
        condition_size=10, noise_size=7, caption_length=5,
    )  # fmt: skip
    stem, glam = STEM(config, 20).eval().to(DEVICE), GLAM(config).eval().to(DEVICE)
    glam.G[-1][0].weight.mul_(8)  # otherwise all images are gray
    tokens, lengths = torch.randint(1, 20, (3, 5)).to(DEVICE), torch.tensor([5, 1, 3]).to(DEVICE)
    noise, condition_noise = torch.randn(3, 7).to(DEVICE), torch.randn(3, 10).to(DEVICE)
    mask = word_mask(lengths, 5)
    words, sentence = stem(tokens, lengths)
    expected = to_uint8(glam(noise, condition_noise, words, mask, sentence).images[-1])
    encoder = FusedSTEM(stem, layout="rows")
    fused_words, fused_sentence = encoder(tokens, lengths)
    close = {"atol": 1e-5, "rtol": 1e-4} if INTERPRETED else {"atol": 5e-3, "rtol": 5e-3}
    torch.testing.assert_close(fused_words * mask[..., None], words * mask[..., None], **close)
    torch.testing.assert_close(fused_sentence, sentence, **close)
    for dtype in NARROW:
        painter = FusedGLAM(glam, dtype, layout="rows")
        images = painter(noise, condition_noise, fused_words, mask, fused_sentence)
        assert expected.float().std() > 20
        assert (images.float() - expected.float()).abs().mean() < 1


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs programs one after the other")
@pytest.mark.parametrize("op", [*OPS, "word_similarity", "batch_norm_glu", "batch_norm_leaky_relu"])
def test_no_race(op):
    """Forward and backward give the same bits a hundred times, at sizes that fill a GPU."""
    if op == "word_similarity":
        w, v = (
            torch.randn(48, 18, 256).to(DEVICE).half(),
            torch.randn(48, 289, 256).to(DEVICE).half(),
        )
        mask = torch.ones(48, 18, dtype=torch.bool, device=DEVICE)
        run, leaves = (lambda w, v: word_similarity(w / 4, mask, v / 4)), [w, v]
    elif op.startswith("batch_norm"):
        function = {"batch_norm_glu": batch_norm_glu}.get(op, batch_norm_leaky_relu)
        x, weight = torch.randn(16, 128, 64, 64).to(DEVICE).half(), torch.ones(128).to(DEVICE)
        run, leaves = (lambda x, w: function(x, w, w)[0]), [x, weight]
    else:
        shapes = Shapes(16, 32, 64, 64, 64, words=18, layout="rows", head=True)
        called = call(op, shapes, torch.float16)
        run, leaves = (lambda x: called.op(x, *called.arguments[1:])), [called.arguments[0]]
    trains = op in ("word_similarity", "batch_norm_glu", "batch_norm_leaky_relu")
    trains |= op == "glam_attention_mix"
    leaves = [leaf.detach().requires_grad_(trains) for leaf in leaves]

    def results() -> tuple[Tensor, ...]:
        out = run(*leaves)
        return (out, *(torch.autograd.grad(out.float().sum(), leaves) if trains else ()))

    first = results()
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(first, results(), strict=True))


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a GPU")
def test_graphs_give_the_same_images():
    renderer = fuse(MirrorGAN.from_pretrained().to(DEVICE))
    captions = ["a red bird", "this bird has a yellow crown and a white belly", "a small bird"]
    graphs, renderer._graphs = renderer._graphs, None
    expected = renderer.sample(captions, seed=3)
    renderer._graphs = graphs
    for indices in ([0], [1, 2], [0, 1, 2], [0, 1, 2] * 30):
        images = renderer.sample([captions[i] for i in indices], 3, indices)
        assert images == [expected[i] for i in indices]
