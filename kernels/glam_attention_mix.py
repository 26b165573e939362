"""GLAM attention and its mix in one pass, forward and backward, for `ops/glam_attention_mix.py`.

The rows are pixels of one sample, channels_last. The forward processes the words a block at a time,
with an online softmax (Milakov and Gimelshein, 2018), so it accepts any number of words. The
backward recomputes the attention, with all words in one step, instead of saving it.
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
"""Limits of the backward. Only one of words and channels may be more than `FEW`, or it spills."""


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
    N: tl.constexpr,  # COLUMNS, rounded up to a power of two
    K: tl.constexpr,  # CHANNELS, rounded up to a power of two
    T: tl.constexpr,  # words per step
):
    """Write the result of M pixels of a sample."""
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
    word_context = tl.zeros((M, K), tl.float32)
    for start in range(0, words, T):
        word = start + tl.arange(0, T)
        real = tl.load(mask_ptr + sample * words + word, mask=word < words, other=0) != 0
        keys = load_keys(words_ptr, sample, words, word, real, channel, CHANNELS)
        logits = dot(f, tl.trans(keys), tl.zeros((M, T), tl.float32))
        logits = tl.where(real[None, :], logits, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(logits, axis=1))
        base = tl.where(new_highest == float("-inf"), 0.0, new_highest)  # no real word so far
        share = tl.exp(logits - base[:, None])
        rescale = tl.exp(highest - base)
        total = total * rescale + tl.sum(share, axis=1)
        word_context = dot(share.to(keys.dtype), keys, word_context * rescale[:, None])
        highest = new_highest
    att_w = word_context / tl.where(total == 0, 1.0, total)[:, None]
    y = tl.zeros((M, N), tl.float32)
    y = dot(f, load_mix(mix_ptr, 0, parts, column, channel, COLUMNS, CHANNELS), y)
    part = load_mix(mix_ptr, 1, parts, column, channel, COLUMNS, CHANNELS)
    y = dot(att_w.to(part.dtype), part, y)
    if sentence_ptr is not None:
        s = tl.load(sentence_ptr + sample * CHANNELS + channel, mask=present, other=0.0)
        s = s.to(tl.float32)
        share_of_channels = sentence_attention(f, s, weight_ptr, channel, CHANNELS, M, K)
        part = load_mix(mix_ptr, 2, parts, column, channel, COLUMNS, CHANNELS)
        y = dot((share_of_channels * s[None, :]).to(part.dtype), part, y)
    tl.store(
        out_ptr + row * COLUMNS + column[None, :],
        y.to(out_ptr.dtype.element_ty),
        mask=(pixel < pixels)[:, None] & (column < COLUMNS)[None, :],
    )


@triton.jit
def backward_inputs_kernel(
    grad_out_ptr,  # (batch * pixels, COLUMNS)
    f_ptr,  # (batch * pixels, CHANNELS)
    words_ptr,  # (batch, words, CHANNELS)
    mask_ptr,  # (batch, words)
    sentence_ptr,  # (batch, CHANNELS), or None
    weight_ptr,  # (CHANNELS, CHANNELS), or None
    mix_ptr,  # (COLUMNS, parts * CHANNELS)
    grad_f_ptr,  # (batch * pixels, CHANNELS)
    grad_words_ptr,  # (programs, words, CHANNELS)
    grad_sentence_ptr,  # (programs, CHANNELS)
    grad_weight_ptr,  # (programs, CHANNELS, CHANNELS)
    pixels,
    words,
    GRAD_F: tl.constexpr,  # whether to write the gradient of f
    GRAD_WORDS: tl.constexpr,  # whether to write that of the words
    GRAD_SENTENCE: tl.constexpr,  # whether to write those of the sentence and its weight
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    T: tl.constexpr,
    STEPS: tl.constexpr,  # blocks of pixels per program
):
    """Write the gradient of f for some pixels of a sample, and their part of the other gradients.

    The gradient of the mix is in `backward_mix_kernel`. With many channels, computing all gradients
    together would spill registers: then each is a separate launch.
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
    grad_keys = tl.zeros((T, K), tl.float32)
    if sentence_ptr is not None:
        s = tl.load(sentence_ptr + sample * CHANNELS + channel, mask=present, other=0.0)
        s = s.to(tl.float32)
        grad_s = tl.zeros((K,), tl.float32)
        grad_weight = tl.zeros((K, K), tl.float32)
    # Loads that are the same in all steps are not hoisted: registers have no room for them.
    for step in tl.range(STEPS, disable_licm=True):
        pixel = (program % programs * STEPS + step) * M + tl.arange(0, M)
        row = (sample * pixels + pixel)[:, None]
        inside = (pixel < pixels)[:, None]
        g = load_rows(grad_out_ptr, row, inside, column, COLUMNS)
        f = load_rows(f_ptr, row, inside, channel, CHANNELS)
        zero = tl.zeros((M, K), tl.float32)

        # Everything that needs g comes first, so that its registers become free.
        if GRAD_F:
            part = load_mix(mix_ptr, 0, parts, column, channel, COLUMNS, CHANNELS)
            grad_f = dot(g, tl.trans(part), zero)
        if GRAD_F or GRAD_WORDS:
            part = load_mix(mix_ptr, 1, parts, column, channel, COLUMNS, CHANNELS)
            grad_att_w = dot(g, tl.trans(part), zero).to(f.dtype)
        if sentence_ptr is not None and (GRAD_F or GRAD_SENTENCE):
            part = load_mix(mix_ptr, 2, parts, column, channel, COLUMNS, CHANNELS)
            grad_att_s = dot(g, tl.trans(part), zero)

        if GRAD_F or GRAD_WORDS:
            keys = load_keys(words_ptr, sample, words, word, real, channel, CHANNELS)
            share = word_attention(f, keys, real, M, T)
            grad_share = dot(grad_att_w, tl.trans(keys), tl.zeros((M, T), tl.float32))
            grad_logits = share * (grad_share - tl.sum(share * grad_share, axis=1)[:, None])
            grad_logits = grad_logits.to(keys.dtype)
            if GRAD_WORDS:
                grad_keys = dot(tl.trans(share.to(keys.dtype)), grad_att_w, grad_keys)
                grad_keys = dot(tl.trans(grad_logits), f, grad_keys)
            if GRAD_F:
                grad_f = dot(grad_logits, keys, grad_f)

        if sentence_ptr is not None and (GRAD_F or GRAD_SENTENCE):
            share_of_channels = sentence_attention(f, s, weight_ptr, channel, CHANNELS, M, K)
            if GRAD_SENTENCE:
                grad_s += tl.sum(grad_att_s * share_of_channels, axis=0)
            grad_share_of_channels = grad_att_s * s[None, :]
            grad_gate = (
                grad_share_of_channels
                - tl.sum(share_of_channels * grad_share_of_channels, axis=1)[:, None]
            )
            grad_gate = share_of_channels * grad_gate
            if weight_ptr is not None:
                grad_gate = grad_gate.to(f.dtype)
                if GRAD_F:
                    weight = scaled(load_weight(weight_ptr, channel, CHANNELS), s)
                    grad_f = dot(grad_gate, weight, grad_f)
                if GRAD_SENTENCE:
                    grad_weight = dot(tl.trans(grad_gate), f, grad_weight)
            else:
                if GRAD_F:
                    grad_f += grad_gate * s[None, :]
                if GRAD_SENTENCE:
                    grad_s += tl.sum(grad_gate * f.to(tl.float32), axis=0)
        if GRAD_F:
            tl.store(
                grad_f_ptr + row * CHANNELS + channel[None, :],
                grad_f.to(grad_f_ptr.dtype.element_ty),
                mask=inside & present[None, :],
            )

    if GRAD_WORDS:
        tl.store(
            grad_words_ptr + (program * words + word)[:, None] * CHANNELS + channel[None, :],
            tl.where(real[:, None], grad_keys, 0.0),
            mask=(word < words)[:, None] & present[None, :],
        )
    if sentence_ptr is not None and GRAD_SENTENCE:
        if weight_ptr is not None:
            weight = load_weight(weight_ptr, channel, CHANNELS).to(tl.float32)
            grad_s += tl.sum(grad_weight * weight, axis=0)
            tl.store(
                grad_weight_ptr
                + (program * CHANNELS + channel)[:, None] * CHANNELS
                + channel[None, :],
                grad_weight * s[None, :],
                mask=present[:, None] & present[None, :],
            )
        tl.store(grad_sentence_ptr + program * CHANNELS + channel, grad_s, mask=present)


@triton.jit
def backward_mix_kernel(
    grad_out_ptr,  # (batch * pixels, COLUMNS)
    f_ptr,  # (batch * pixels, CHANNELS)
    words_ptr,  # (batch, words, CHANNELS)
    mask_ptr,  # (batch, words)
    sentence_ptr,  # (batch, CHANNELS), or None
    weight_ptr,  # (CHANNELS, CHANNELS), or None
    grad_mix_ptr,  # (programs, COLUMNS, parts * CHANNELS)
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
    """Write the part of some pixels of a sample in the gradient of the mix.

    This is a separate kernel, as its sums together with the other gradients would spill registers.
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
    grad_mix_f = tl.zeros((N, K), tl.float32)
    grad_mix_w = tl.zeros((N, K), tl.float32)
    if sentence_ptr is not None:
        s = tl.load(sentence_ptr + sample * CHANNELS + channel, mask=present, other=0.0)
        s = s.to(tl.float32)
        grad_mix_s = tl.zeros((N, K), tl.float32)
    for step in tl.range(STEPS, disable_licm=True):
        pixel = (program % programs * STEPS + step) * M + tl.arange(0, M)
        row = (sample * pixels + pixel)[:, None]
        inside = (pixel < pixels)[:, None]
        g = tl.trans(load_rows(grad_out_ptr, row, inside, column, COLUMNS))
        f = load_rows(f_ptr, row, inside, channel, CHANNELS)
        keys = load_keys(words_ptr, sample, words, word, real, channel, CHANNELS)
        grad_mix_f = dot(g, f, grad_mix_f)
        share = word_attention(f, keys, real, M, T)
        word_context = dot(share.to(keys.dtype), keys, tl.zeros((M, K), tl.float32))
        grad_mix_w = dot(g, word_context.to(g.dtype), grad_mix_w)
        if sentence_ptr is not None:
            share_of_channels = sentence_attention(f, s, weight_ptr, channel, CHANNELS, M, K)
            grad_mix_s = dot(g, (share_of_channels * s[None, :]).to(g.dtype), grad_mix_s)
    at = (program * COLUMNS + column)[:, None] * (parts * CHANNELS) + channel[None, :]
    inside = (column < COLUMNS)[:, None] & present[None, :]
    tl.store(grad_mix_ptr + at, grad_mix_f, mask=inside)
    tl.store(grad_mix_ptr + at + CHANNELS, grad_mix_w, mask=inside)
    if sentence_ptr is not None:
        tl.store(grad_mix_ptr + at + 2 * CHANNELS, grad_mix_s, mask=inside)


@triton.jit
def load_rows(pointer, row, inside, column, COLUMNS: tl.constexpr):
    """Return the rows of some pixels, with zeros outside the map."""
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
    """Return the keys of some words (T, K), zero at padding. Padding is not read."""
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
    """Return the part (K, N) of the mix for one of f, Att^w and Att^s."""
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
    """Return M diag(s): M (f o s) = (M diag(s)) f."""
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
    """Implement `mirrorgan_fast.ops.glam_attention_mix`."""
    _forward(features, words, mask, sentence, sentence_weight, mix, out)


def fits(channels: int, columns: int) -> bool:
    """Return whether this many channels in and out fit into a multiprocessor."""
    return channels <= 128 and columns <= 256


def trains(words: int, channels: int, columns: int) -> bool:
    """Return whether the backward accepts these sizes."""
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
    """Implement `mirrorgan_fast.ops.glam_attention_mix` with a gradient, for sizes in `trains`."""
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
    grad_out: Tensor,
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None,
    sentence_weight: Tensor | None,
    mix: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of features, words, sentence, sentence_weight and mix.

    Those of sentence and sentence_weight are empty if these are None.
    """
    batch, channels, height, width = features.shape
    pixels, count = height * width, words.shape[1]
    setting = attention_backward(channels, len(mix), count)
    chunks = triton.cdiv(pixels, setting.rows * setting.turns)
    programs = batch * chunks
    grad_features = torch.empty_like(features, memory_format=torch.channels_last)
    has_sentence, has_weight = sentence is not None, sentence_weight is not None
    wide = features.new_empty(0, dtype=torch.float32)
    grad_words = wide.new_empty(programs, count, channels)
    grad_sentence = wide.new_empty(programs * has_sentence, channels)
    grad_weight = wide.new_empty(programs * has_weight, channels, channels)
    grad_mix = wide.new_empty(programs, *mix.shape)
    if programs:
        inputs = (
            grad_out.contiguous(memory_format=torch.channels_last),
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
        for with_f, with_words, with_sentence in launches:
            wrap_triton(backward_inputs_kernel)[(programs,)](
                *inputs,
                mix.contiguous(),
                grad_features,
                grad_words,
                grad_sentence,
                grad_weight,
                pixels,
                count,
                GRAD_F=with_f,
                GRAD_WORDS=with_words,
                GRAD_SENTENCE=with_sentence,
                **shapes,
            )
        wrap_triton(backward_mix_kernel)[(programs,)](*inputs, grad_mix, pixels, count, **shapes)
    return (
        grad_features,
        grad_words.view(batch, chunks, count, channels).sum(dim=1).to(words.dtype),
        grad_sentence.view(batch * has_sentence, chunks, channels).sum(dim=1).to(mix.dtype),
        grad_weight.sum(dim=0).to(mix.dtype),
        grad_mix.sum(dim=0).to(mix.dtype),
    )


def _launches(channels: int, words: int, *, has_sentence: bool) -> list[tuple[bool, bool, bool]]:
    """Return which gradients each launch writes: (f, words, sentence)."""
    if channels <= FEW and words <= FEW:
        return [(True, True, has_sentence)]
    each = [(True, False, False), (False, True, False)]
    return [*each, (False, False, True)] if has_sentence else each


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    _, _, _, sentence, sentence_weight, _ = ctx.saved_tensors
    grad_features, grad_words, grad_sentence, grad_weight, grad_mix = (
        glam_attention_mix_triton_backward(grad_out, *ctx.saved_tensors)
    )
    return (
        grad_features,
        grad_words,
        None,
        None if sentence is None else grad_sentence,
        None if sentence_weight is None else grad_weight,
        grad_mix,
    )


glam_attention_mix_trained.register_autograd(_backward, setup_context=_save)
