"""GLAM attention and its mix in one pass, forward and backward; see `ops/glam_attention_mix.py`.

Rows are pixels of one sample, channels_last. The forward goes over the words a block at a time, as
Milakov and Gimelshein (2018) compute a softmax in one pass, so that it takes any number of them.
The backward computes the attention again rather than to have kept it, with all words at once.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from mirrorgan_fast.kernels.products import dot
from mirrorgan_fast.kernels.settings import FEW, attention_backward, attention_forward, power_of_two

MAX_WORDS, MAX_CHANNELS, MAX_COLUMNS = 64, 48, 96
"""Of the backward, which takes more than `FEW` words or channels, not both: more would spill."""


@triton.jit
def glam_attention_mix_kernel(
    f_ptr,  # (batch * pixels, CHANNELS)
    words_ptr,  # (batch, words, CHANNELS)
    mask_ptr,  # (batch, words)
    sentence_ptr,  # (batch, CHANNELS), or None
    weight_ptr,  # (CHANNELS, CHANNELS), or None
    mix_ptr,  # (COLUMNS, parts * CHANNELS)
    out_ptr,  # (batch * pixels, COLUMNS)
    pixels,
    words,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    M: tl.constexpr,  # pixels of a program
    N: tl.constexpr,  # power of two from COLUMNS on
    K: tl.constexpr,  # power of two from CHANNELS on
    T: tl.constexpr,  # words at a time
):
    """Write M pixels of a sample."""
    parts: tl.constexpr = 2 if sentence_ptr is None else 3
    blocks = tl.cdiv(pixels, M)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * M + tl.arange(0, M)
    channel = tl.arange(0, K)
    column = tl.arange(0, N)
    present = channel < CHANNELS
    row = (sample * pixels + pixel)[:, None]
    f = load_rows(f_ptr, row, (pixel < pixels)[:, None], channel, CHANNELS)
    highest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    looked = tl.zeros((M, K), tl.float32)
    for start in range(0, words, T):
        word = start + tl.arange(0, T)
        real = tl.load(mask_ptr + sample * words + word, mask=word < words, other=0) != 0
        keys = load_keys(words_ptr, sample, words, word, real, channel, CHANNELS)
        logits = dot(f, tl.trans(keys), tl.zeros((M, T), tl.float32))
        logits = tl.where(real[None, :], logits, float("-inf"))
        higher = tl.maximum(highest, tl.max(logits, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # no real word so far
        share = tl.exp(logits - base[:, None])
        before = tl.exp(highest - base)
        total = total * before + tl.sum(share, axis=1)
        looked = dot(share.to(keys.dtype), keys, looked * before[:, None])
        highest = higher
    of_words = looked / tl.where(total == 0, 1.0, total)[:, None]
    y = tl.zeros((M, N), tl.float32)
    y = dot(f, load_mix(mix_ptr, 0, parts, column, channel, COLUMNS, CHANNELS), y)
    part = load_mix(mix_ptr, 1, parts, column, channel, COLUMNS, CHANNELS)
    y = dot(of_words.to(part.dtype), part, y)
    if sentence_ptr is not None:
        s = tl.load(sentence_ptr + sample * CHANNELS + channel, mask=present, other=0.0)
        s = s.to(tl.float32)
        attention = sentence_attention(f, s, weight_ptr, channel, CHANNELS, M, K)
        part = load_mix(mix_ptr, 2, parts, column, channel, COLUMNS, CHANNELS)
        y = dot((attention * s[None, :]).to(part.dtype), part, y)
    tl.store(
        out_ptr + row * COLUMNS + column[None, :],
        y.to(out_ptr.dtype.element_ty),
        mask=(pixel < pixels)[:, None] & (column < COLUMNS)[None, :],
    )


@triton.jit
def backward_inputs_kernel(
    gradient_ptr,  # (batch * pixels, COLUMNS)
    f_ptr,  # (batch * pixels, CHANNELS)
    words_ptr,  # (batch, words, CHANNELS)
    mask_ptr,  # (batch, words)
    sentence_ptr,  # (batch, CHANNELS), or None
    weight_ptr,  # (CHANNELS, CHANNELS), or None
    mix_ptr,  # (COLUMNS, parts * CHANNELS)
    of_f_ptr,  # (batch * pixels, CHANNELS)
    of_words_ptr,  # (programs, words, CHANNELS)
    of_sentence_ptr,  # (programs, CHANNELS)
    of_weight_ptr,  # (programs, CHANNELS, CHANNELS)
    pixels,
    words,
    OF_PIXELS: tl.constexpr,  # which of the gradients are written: f's;
    OF_WORDS: tl.constexpr,  # what these pixels add to that of the words;
    OF_SENTENCE: tl.constexpr,  # to those of the sentence and its weight
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    T: tl.constexpr,
    STEPS: tl.constexpr,  # blocks of pixels of a program
):
    """Write the gradient of some pixels of a sample, and what they add to all but the mix's.

    Of many channels all of it together spills: then each is a launch of its own.
    """
    parts: tl.constexpr = 2 if sentence_ptr is None else 3
    programs = tl.cdiv(pixels, M * STEPS)
    program = tl.program_id(0).to(tl.int64)
    sample = program // programs
    channel = tl.arange(0, K)
    column = tl.arange(0, N)
    word = tl.arange(0, T)
    present = channel < CHANNELS
    real = tl.load(mask_ptr + sample * words + word, mask=word < words, other=0) != 0
    of_keys = tl.zeros((T, K), tl.float32)
    if sentence_ptr is not None:
        s = tl.load(sentence_ptr + sample * CHANNELS + channel, mask=present, other=0.0)
        s = s.to(tl.float32)
        of_s = tl.zeros((K,), tl.float32)
        of_weight = tl.zeros((K, K), tl.float32)
    # What all steps read is not hoisted: in registers it does not fit beside the sums.
    for step in tl.range(STEPS, disable_licm=True):
        pixel = (program % programs * STEPS + step) * M + tl.arange(0, M)
        row = (sample * pixels + pixel)[:, None]
        inside = (pixel < pixels)[:, None]
        g = load_rows(gradient_ptr, row, inside, column, COLUMNS)
        f = load_rows(f_ptr, row, inside, channel, CHANNELS)
        zero = tl.zeros((M, K), tl.float32)

        # all that the gradient is needed for comes first, so that it leaves the registers
        if OF_PIXELS:
            part = load_mix(mix_ptr, 0, parts, column, channel, COLUMNS, CHANNELS)
            of_f = dot(g, tl.trans(part), zero)
        if OF_PIXELS or OF_WORDS:
            part = load_mix(mix_ptr, 1, parts, column, channel, COLUMNS, CHANNELS)
            of_looked = dot(g, tl.trans(part), zero).to(f.dtype)
        if sentence_ptr is not None and (OF_PIXELS or OF_SENTENCE):
            part = load_mix(mix_ptr, 2, parts, column, channel, COLUMNS, CHANNELS)
            of_context = dot(g, tl.trans(part), zero)

        if OF_PIXELS or OF_WORDS:
            keys = load_keys(words_ptr, sample, words, word, real, channel, CHANNELS)
            share = word_attention(f, keys, real, M, T)
            of_share = dot(of_looked, tl.trans(keys), tl.zeros((M, T), tl.float32))
            of_logits = share * (of_share - tl.sum(share * of_share, axis=1)[:, None])
            of_logits = of_logits.to(keys.dtype)
            if OF_WORDS:
                of_keys = dot(tl.trans(share.to(keys.dtype)), of_looked, of_keys)
                of_keys = dot(tl.trans(of_logits), f, of_keys)
            if OF_PIXELS:
                of_f = dot(of_logits, keys, of_f)

        if sentence_ptr is not None and (OF_PIXELS or OF_SENTENCE):
            attention = sentence_attention(f, s, weight_ptr, channel, CHANNELS, M, K)
            if OF_SENTENCE:
                of_s += tl.sum(of_context * attention, axis=0)
            of_attention = of_context * s[None, :]
            of_gate = of_attention - tl.sum(attention * of_attention, axis=1)[:, None]
            of_gate = attention * of_gate
            if weight_ptr is not None:
                of_gate = of_gate.to(f.dtype)
                if OF_PIXELS:
                    weight = scaled(load_weight(weight_ptr, channel, CHANNELS), s)
                    of_f = dot(of_gate, weight, of_f)
                if OF_SENTENCE:
                    of_weight = dot(tl.trans(of_gate), f, of_weight)
            else:
                if OF_PIXELS:
                    of_f += of_gate * s[None, :]
                if OF_SENTENCE:
                    of_s += tl.sum(of_gate * f.to(tl.float32), axis=0)
        if OF_PIXELS:
            tl.store(
                of_f_ptr + row * CHANNELS + channel[None, :],
                of_f.to(of_f_ptr.dtype.element_ty),
                mask=inside & present[None, :],
            )

    if OF_WORDS:
        tl.store(
            of_words_ptr + (program * words + word)[:, None] * CHANNELS + channel[None, :],
            tl.where(real[:, None], of_keys, 0.0),
            mask=(word < words)[:, None] & present[None, :],
        )
    if sentence_ptr is not None and OF_SENTENCE:
        if weight_ptr is not None:
            weight = load_weight(weight_ptr, channel, CHANNELS).to(tl.float32)
            of_s += tl.sum(of_weight * weight, axis=0)
            tl.store(
                of_weight_ptr
                + (program * CHANNELS + channel)[:, None] * CHANNELS
                + channel[None, :],
                of_weight * s[None, :],
                mask=present[:, None] & present[None, :],
            )
        tl.store(of_sentence_ptr + program * CHANNELS + channel, of_s, mask=present)


@triton.jit
def backward_mix_kernel(
    gradient_ptr,  # (batch * pixels, COLUMNS)
    f_ptr,  # (batch * pixels, CHANNELS)
    words_ptr,  # (batch, words, CHANNELS)
    mask_ptr,  # (batch, words)
    sentence_ptr,  # (batch, CHANNELS), or None
    weight_ptr,  # (CHANNELS, CHANNELS), or None
    of_mix_ptr,  # (programs, COLUMNS, parts * CHANNELS)
    pixels,
    words,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    T: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Write what some pixels of a sample add to the mix's gradient.

    A kernel of its own: together with the other gradients the sums spill.
    """
    parts: tl.constexpr = 2 if sentence_ptr is None else 3
    programs = tl.cdiv(pixels, M * STEPS)
    program = tl.program_id(0).to(tl.int64)
    sample = program // programs
    channel = tl.arange(0, K)
    column = tl.arange(0, N)
    word = tl.arange(0, T)
    present = channel < CHANNELS
    real = tl.load(mask_ptr + sample * words + word, mask=word < words, other=0) != 0
    of_f = tl.zeros((N, K), tl.float32)
    of_looked = tl.zeros((N, K), tl.float32)
    if sentence_ptr is not None:
        s = tl.load(sentence_ptr + sample * CHANNELS + channel, mask=present, other=0.0)
        s = s.to(tl.float32)
        of_context = tl.zeros((N, K), tl.float32)
    for step in tl.range(STEPS, disable_licm=True):
        pixel = (program % programs * STEPS + step) * M + tl.arange(0, M)
        row = (sample * pixels + pixel)[:, None]
        inside = (pixel < pixels)[:, None]
        g = tl.trans(load_rows(gradient_ptr, row, inside, column, COLUMNS))
        f = load_rows(f_ptr, row, inside, channel, CHANNELS)
        keys = load_keys(words_ptr, sample, words, word, real, channel, CHANNELS)
        of_f = dot(g, f, of_f)
        share = word_attention(f, keys, real, M, T)
        looked = dot(share.to(keys.dtype), keys, tl.zeros((M, K), tl.float32))
        of_looked = dot(g, looked.to(g.dtype), of_looked)
        if sentence_ptr is not None:
            attention = sentence_attention(f, s, weight_ptr, channel, CHANNELS, M, K)
            of_context = dot(g, (attention * s[None, :]).to(g.dtype), of_context)
    at = (program * COLUMNS + column)[:, None] * (parts * CHANNELS) + channel[None, :]
    inside = (column < COLUMNS)[:, None] & present[None, :]
    tl.store(of_mix_ptr + at, of_f, mask=inside)
    tl.store(of_mix_ptr + at + CHANNELS, of_looked, mask=inside)
    if sentence_ptr is not None:
        tl.store(of_mix_ptr + at + 2 * CHANNELS, of_context, mask=inside)


@triton.jit
def load_rows(pointer, row, inside, column, COLUMNS: tl.constexpr):
    """Return the rows of some pixels, zero outside."""
    at = row * COLUMNS + column[None, :]
    return tl.load(pointer + at, mask=inside & (column < COLUMNS)[None, :], other=0.0)


@triton.jit
def word_attention(f, keys, real, M: tl.constexpr, T: tl.constexpr):
    """Return softmax_t(f . k_t) over the real words, float32 (M, T)."""
    logits = dot(f, tl.trans(keys), tl.zeros((M, T), tl.float32))
    logits = tl.where(real[None, :], logits, float("-inf"))
    highest = tl.max(logits, axis=1)
    share = tl.exp(logits - tl.where(highest == float("-inf"), 0.0, highest)[:, None])
    total = tl.sum(share, axis=1)
    return share / tl.where(total == 0, 1.0, total)[:, None]


@triton.jit
def load_keys(words_ptr, sample, words, word, real, channel, CHANNELS: tl.constexpr):
    """Return the keys of some words (T, K), zero at padding, which is not even read."""
    return tl.load(
        words_ptr + (sample * words + word)[:, None] * CHANNELS + channel[None, :],
        mask=real[:, None] & (channel < CHANNELS)[None, :],
        other=0.0,
    )


@triton.jit
def load_mix(
    mix_ptr,
    part: tl.constexpr,
    parts: tl.constexpr,
    column,
    channel,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Return the weights (K, N) of one of the three that are mixed."""
    return tl.load(
        mix_ptr + column[None, :] * (parts * CHANNELS) + part * CHANNELS + channel[:, None],
        mask=(channel < CHANNELS)[:, None] & (column < COLUMNS)[None, :],
        other=0.0,
    )


@triton.jit
def load_weight(weight_ptr, channel, CHANNELS: tl.constexpr):
    """Return M (K, K) of the authors' form."""
    present = channel < CHANNELS
    return tl.load(
        weight_ptr + channel[:, None] * CHANNELS + channel[None, :],
        mask=present[:, None] & present[None, :],
        other=0.0,
    )


@triton.jit
def scaled(weight, s):
    """Return M with each column times s: M (f o s) = (M s) f."""
    return (weight.to(tl.float32) * s[None, :]).to(weight.dtype)


@triton.jit
def sentence_attention(
    f, s, weight_ptr, channel, CHANNELS: tl.constexpr, M: tl.constexpr, K: tl.constexpr
):
    """Return softmax_C(f o s), or softmax_C(M (f o s)), float32 (M, K)."""
    if weight_ptr is not None:
        weight = scaled(load_weight(weight_ptr, channel, CHANNELS), s)
        gate = dot(f, tl.trans(weight), tl.zeros((M, K), tl.float32))
    else:
        gate = f.to(tl.float32) * s[None, :]
    gate = tl.where((channel < CHANNELS)[None, :], gate, float("-inf"))
    share = tl.exp(gate - tl.max(gate, axis=1)[:, None])
    return share / tl.sum(share, axis=1)[:, None]


@triton_op("mirrorgan::glam_attention_mix_triton", mutates_args=("out",))
def glam_attention_mix_triton(
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None,
    sentence_weight: Tensor | None,
    mix: Tensor,
    out: Tensor,
) -> None:
    """Do what `mirrorgan_fast.ops.glam_attention_mix` does, into ``out``."""
    _forward(features, words, mask, sentence, sentence_weight, mix, out)


def fits(channels: int, columns: int) -> bool:
    """Return whether so many channels in and out fit into a multiprocessor."""
    return channels <= 128 and columns <= 256


def trains(words: int, channels: int, columns: int) -> bool:
    """Return whether the backward takes so many."""
    few = words <= FEW or channels <= FEW
    return few and words <= MAX_WORDS and channels <= MAX_CHANNELS and columns <= MAX_COLUMNS


@triton_op("mirrorgan::glam_attention_mix_trained", mutates_args=())
def glam_attention_mix_trained(
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None,
    sentence_weight: Tensor | None,
    mix: Tensor,
) -> Tensor:
    """Do the same where a gradient is needed, for as many words and channels as `trains` takes."""
    batch, _, height, width = features.shape
    out = torch.empty(
        (batch, len(mix), height, width),
        dtype=features.dtype,
        device=features.device,
        memory_format=torch.channels_last,
    )
    _forward(features, words, mask, sentence, sentence_weight, mix, out)
    return out


def _forward(
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None,
    sentence_weight: Tensor | None,
    mix: Tensor,
    out: Tensor,
) -> None:
    batch, channels, height, width = features.shape
    pixels = height * width
    setting = attention_forward(channels, len(mix), words.shape[1])
    programs = batch * triton.cdiv(pixels, setting.rows)
    if programs:
        wrap_triton(glam_attention_mix_kernel)[(programs,)](
            features.contiguous(memory_format=torch.channels_last),
            words.contiguous(),
            mask.contiguous(),
            None if sentence is None else sentence.contiguous(),
            None if sentence_weight is None else sentence_weight.contiguous(),
            mix.contiguous(),
            out,
            pixels,
            words.shape[1],
            CHANNELS=channels,
            COLUMNS=len(mix),
            M=setting.rows,
            N=setting.columns,
            K=power_of_two(channels),
            T=setting.depth,
            num_warps=setting.warps,
            num_stages=setting.stages,
        )


@triton_op("mirrorgan::glam_attention_mix_triton_backward", mutates_args=())
def glam_attention_mix_triton_backward(
    gradient: Tensor,
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None,
    sentence_weight: Tensor | None,
    mix: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of features, words, sentence, its weight and mix; empty if not given."""
    batch, channels, height, width = features.shape
    pixels, count = height * width, words.shape[1]
    setting = attention_backward(channels, len(mix), count)
    chunks = triton.cdiv(pixels, setting.rows * setting.turns)
    programs = batch * chunks
    of_features = torch.empty_like(features, memory_format=torch.channels_last)
    has_sentence, has_weight = sentence is not None, sentence_weight is not None
    wide = features.new_empty(0, dtype=torch.float32)
    of_words = wide.new_empty(programs, count, channels)
    of_sentence = wide.new_empty(programs * has_sentence, channels)
    of_weight = wide.new_empty(programs * has_weight, channels, channels)
    of_mix = wide.new_empty(programs, *mix.shape)
    if programs:
        given = (
            gradient.contiguous(memory_format=torch.channels_last),
            features.contiguous(memory_format=torch.channels_last),
            words.contiguous(),
            mask.contiguous(),
            None if sentence is None else sentence.contiguous(),
            None if sentence_weight is None else sentence_weight.contiguous(),
        )
        shapes = {
            "CHANNELS": channels,
            "COLUMNS": len(mix),
            "M": setting.rows,
            "N": setting.columns,
            "K": power_of_two(channels),
            "T": setting.depth,
            "STEPS": setting.turns,
            "num_warps": setting.warps,
            "num_stages": setting.stages,
        }
        launches = _launches(channels, count, has_sentence=has_sentence)
        for of_pixels, of_words_too, of_sentence_too in launches:
            wrap_triton(backward_inputs_kernel)[(programs,)](
                *given,
                mix.contiguous(),
                of_features,
                of_words,
                of_sentence,
                of_weight,
                pixels,
                count,
                OF_PIXELS=of_pixels,
                OF_WORDS=of_words_too,
                OF_SENTENCE=of_sentence_too,
                **shapes,
            )
        wrap_triton(backward_mix_kernel)[(programs,)](*given, of_mix, pixels, count, **shapes)
    return (
        of_features,
        of_words.view(batch, chunks, count, channels).sum(dim=1).to(words.dtype),
        of_sentence.view(batch * has_sentence, chunks, channels).sum(dim=1).to(mix.dtype),
        of_weight.sum(dim=0).to(mix.dtype),
        of_mix.sum(dim=0).to(mix.dtype),
    )


def _launches(channels: int, words: int, *, has_sentence: bool) -> list[tuple[bool, bool, bool]]:
    """Return which gradients each launch writes: of pixels, of words, of the sentence."""
    if channels <= FEW and words <= FEW:
        return [(True, True, has_sentence)]
    each = [(True, False, False), (False, True, False)]
    return [*each, (False, False, True)] if has_sentence else each


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    _, _, _, sentence, sentence_weight, _ = ctx.saved_tensors
    of_features, of_words, of_sentence, of_weight, of_mix = glam_attention_mix_triton_backward(
        gradient, *ctx.saved_tensors
    )
    return (
        of_features,
        of_words,
        None,
        None if sentence is None else of_sentence,
        None if sentence_weight is None else of_weight,
        of_mix,
    )


glam_attention_mix_trained.register_autograd(_backward, setup_context=_save)
