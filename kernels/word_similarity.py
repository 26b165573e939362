"""DAMSM's word similarity of all pairs, forward and backward, for `ops/word_similarity.py`.

A program processes a pair of image and caption, a block of regions at a time. The attention of a
region to the words depends on that region only, and the attention of a word to the regions is an
online softmax (Milakov and Gimelshein, 2018). So nothing of size pairs x words x regions is written
to memory. The forward is one launch, the backward three: for the words, for the regions, and a sum.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from mirrorgan_fast.kernels.products import dot
from mirrorgan_fast.kernels.settings import power_of_two, word_similarity, word_similarity_sum

# More words would spill registers, and Triton 3.7 cannot compile them for sm_100.
MAX_WORDS, MAX_DEPTH = 32, 256


@triton.jit
def word_similarity_kernel(
    words_ptr,  # (captions, words, DEPTH)
    mask_ptr,  # (captions, words)
    regions_ptr,  # (images, regions, DEPTH)
    out_ptr,  # (images, captions)
    captions,
    words,
    regions,
    gamma1,
    gamma2,
    DEPTH: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
):
    """Write the similarity of a pair."""
    image = (tl.program_id(0) // captions).to(tl.int64)
    caption = (tl.program_id(0) % captions).to(tl.int64)
    word = tl.arange(0, T)
    real = real_words(mask_ptr, caption, word, words)
    w = load(words_ptr, caption * words + word, real, DEPTH, D)
    context, _ = attend_to_regions(w, real, regions_ptr, image, regions, gamma1, DEPTH, T, R, D)
    cosine, _, _ = cosine_and_norms(context, w)
    similarity, _ = pool(cosine, real, gamma2)
    tl.store(out_ptr + image * captions + caption, similarity)


@triton.jit
def of_words_kernel(
    grad_out_ptr,  # (images, captions)
    words_ptr,  # (captions, words, DEPTH)
    mask_ptr,  # (captions, words)
    regions_ptr,  # (images, regions, DEPTH)
    parts_ptr,  # (programs of a caption, captions, words, DEPTH)
    grad_context_ptr,  # (images, captions, words, DEPTH)
    saved_ptr,  # (images, captions, 2, words)
    images,
    captions,
    words,
    regions,
    gamma1,
    gamma2,
    DEPTH: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    STEPS: tl.constexpr,  # images per program
):
    """Write the part of some images in a caption's gradient, and inputs for `of_regions_kernel`.

    For each pair these are the gradient of c_t, its dot product with c_t, and log sum_r
    exp(gamma1 b_tr).
    """
    chunk = (tl.program_id(0) // captions).to(tl.int64)
    caption = (tl.program_id(0) % captions).to(tl.int64)
    word = tl.arange(0, T)
    real = real_words(mask_ptr, caption, word, words)
    w = load(words_ptr, caption * words + word, real, DEPTH, D)
    wide = w.to(tl.float32)
    grad_w = tl.zeros((T, D), tl.float32)
    for image in range(chunk * STEPS, tl.minimum((chunk + 1) * STEPS, images)):
        pair = image * captions + caption
        context, logsum = attend_to_regions(
            w, real, regions_ptr, image, regions, gamma1, DEPTH, T, R, D
        )
        cosine, context_norm, word_norm = cosine_and_norms(context, w)
        _similarity, share = pool(cosine, real, gamma2)
        grad_cosine = tl.load(grad_out_ptr + pair) * gamma2 * share
        scale = (grad_cosine / (context_norm * word_norm))[:, None]
        grad_w += scale * context - (grad_cosine * cosine / (word_norm * word_norm))[:, None] * wide
        grad_context = (
            scale * wide - (grad_cosine * cosine / (context_norm * context_norm))[:, None] * context
        )
        product = tl.sum(grad_context * context, axis=1)
        grad_context = grad_context.to(w.dtype)
        column = tl.arange(0, D)
        tl.store(
            grad_context_ptr + (pair * words + word)[:, None] * DEPTH + column[None, :],
            grad_context,
            mask=(word < words)[:, None] & (column < DEPTH)[None, :],
        )
        tl.store(saved_ptr + pair * 2 * words + word, logsum, mask=word < words)
        tl.store(saved_ptr + (pair * 2 + 1) * words + word, product, mask=word < words)
        for start in range(0, regions, R):
            region = start + tl.arange(0, R)
            v = load(regions_ptr, image * regions + region, region < regions, DEPTH, D)
            _attention, grad_score = attention_and_grad_scores(
                w, v, grad_context, real, region < regions, logsum, product, gamma1, T, R
            )
            grad_w = dot(grad_score, v, grad_w)
    column = tl.arange(0, D)
    tl.store(
        parts_ptr
        + ((chunk * captions + caption) * words + word)[:, None] * DEPTH
        + column[None, :],
        tl.where(real[:, None], grad_w, 0.0),
        mask=(word < words)[:, None] & (column < DEPTH)[None, :],
    )


@triton.jit
def of_regions_kernel(
    words_ptr,  # (captions, words, DEPTH)
    mask_ptr,  # (captions, words)
    regions_ptr,  # (images, regions, DEPTH)
    grad_context_ptr,  # (images, captions, words, DEPTH)
    saved_ptr,  # (images, captions, 2, words)
    grad_regions_ptr,  # (images, regions, DEPTH)
    captions,
    words,
    regions,
    gamma1,
    DEPTH: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
):
    """Write the gradient of R regions of an image."""
    blocks = tl.cdiv(regions, R)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    region = tl.program_id(0) % blocks * R + tl.arange(0, R)
    v = load(regions_ptr, image * regions + region, region < regions, DEPTH, D)
    word = tl.arange(0, T)
    grad_v = tl.zeros((R, D), tl.float32)
    for caption in range(captions):
        pair = image * captions + caption
        real = real_words(mask_ptr, caption, word, words)
        w = load(words_ptr, caption * words + word, real, DEPTH, D)
        grad_context = load(grad_context_ptr, pair * words + word, real, DEPTH, D)
        logsum = tl.load(saved_ptr + pair * 2 * words + word, mask=real, other=0.0)
        product = tl.load(saved_ptr + (pair * 2 + 1) * words + word, mask=real, other=0.0)
        attention, grad_score = attention_and_grad_scores(
            w, v, grad_context, real, region < regions, logsum, product, gamma1, T, R
        )
        grad_v = dot(tl.trans(attention), grad_context, grad_v)
        grad_v = dot(tl.trans(grad_score), w, grad_v)
    column = tl.arange(0, D)
    tl.store(
        grad_regions_ptr + (image * regions + region)[:, None] * DEPTH + column[None, :],
        grad_v.to(grad_regions_ptr.dtype.element_ty),
        mask=(region < regions)[:, None] & (column < DEPTH)[None, :],
    )


@triton.jit
def sum_kernel(
    parts_ptr,  # (parts, size)
    out_ptr,  # (size,)
    parts,
    size,
    BLOCK: tl.constexpr,
):
    """Write the sum over the parts."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(parts):
        total += tl.load(parts_ptr + part * size + place, mask=place < size, other=0.0)
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=place < size)


@triton.jit
def real_words(mask_ptr, caption, word, words):
    """Return which words of a caption are real."""
    return tl.load(mask_ptr + caption * words + word, mask=word < words, other=0) != 0


@triton.jit
def load(pointer, row, inside, DEPTH: tl.constexpr, D: tl.constexpr):
    """Return rows (len(row), D), zero where they do not exist."""
    column = tl.arange(0, D)
    return tl.load(
        pointer + row[:, None] * DEPTH + column[None, :],
        mask=inside[:, None] & (column < DEPTH)[None, :],
        other=0.0,
    )


@triton.jit
def attend_to_words(w, v, real, T: tl.constexpr, R: tl.constexpr):
    """Return b = softmax_t(w_t . v_r), float32 (T, R), zero at padding."""
    scores = dot(w, tl.trans(v), tl.zeros((T, R), tl.float32))
    scores = tl.where(real[:, None], scores, float("-inf"))
    share = tl.exp(scores - tl.max(scores, axis=0)[None, :])
    return share / tl.sum(share, axis=0)[None, :]


@triton.jit
def attend_to_regions(
    w,  # (T, D)
    real,  # (T,)
    regions_ptr,
    image,
    regions,
    gamma1,
    DEPTH: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
):
    """Return c (T, D), float32, and log sum_r exp(gamma1 b_tr) (T,)."""
    highest = tl.full((T,), float("-inf"), tl.float32)
    total = tl.zeros((T,), tl.float32)
    context = tl.zeros((T, D), tl.float32)
    for start in range(0, regions, R):
        region = start + tl.arange(0, R)
        v = load(regions_ptr, image * regions + region, region < regions, DEPTH, D)
        logits = gamma1 * attend_to_words(w, v, real, T, R)
        logits = tl.where((region < regions)[None, :], logits, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(logits, axis=1))
        share = tl.exp(logits - new_highest[:, None])
        rescale = tl.exp(highest - new_highest)
        total = total * rescale + tl.sum(share, axis=1)
        context = dot(share.to(v.dtype), v, context * rescale[:, None])
        highest = new_highest
    return context / total[:, None], highest + tl.log(total)


@triton.jit
def cosine_and_norms(context, w):
    """Return cos(c_t, w_t) and the lengths of both, (T,) each."""
    wide = w.to(tl.float32)
    context_norm = tl.sqrt(tl.maximum(tl.sum(context * context, axis=1), 1e-12))
    word_norm = tl.maximum(tl.sqrt(tl.sum(wide * wide, axis=1)), 1e-6)
    return tl.sum(context * wide, axis=1) / (context_norm * word_norm), context_norm, word_norm


@triton.jit
def pool(cosine, real, gamma2):
    """Return log sum_t exp(gamma2 cos_t) over the real words, and each word's share of the sum."""
    logits = tl.where(real, gamma2 * cosine, float("-inf"))
    highest = tl.max(logits, axis=0)
    share = tl.exp(logits - highest)
    total = tl.sum(share, axis=0)
    return highest + tl.log(total), share / total


@triton.jit
def attention_and_grad_scores(
    w,  # (T, D)
    v,  # (R, D)
    grad_context,  # (T, D)
    real,  # (T,)
    inside,  # (R,)
    logsum,  # (T,)
    product,  # (T,)
    gamma1,
    T: tl.constexpr,
    R: tl.constexpr,
):
    """Return the attention a_tr and the gradient of s_tr, (T, R) in the data type of ``w``."""
    share = attend_to_words(w, v, real, T, R)
    attention = tl.exp(gamma1 * share - logsum[:, None])
    attention = tl.where(real[:, None] & inside[None, :], attention, 0.0)
    grad_attention = dot(grad_context, tl.trans(v), tl.zeros((T, R), tl.float32))
    grad_share = gamma1 * attention * (grad_attention - product[:, None])
    grad_score = share * (grad_share - tl.sum(share * grad_share, axis=0)[None, :])
    return attention.to(w.dtype), grad_score.to(w.dtype)


@triton_op("mirrorgan::word_similarity_triton", mutates_args=())
def word_similarity_triton(
    words: Tensor, mask: Tensor, regions: Tensor, gamma1: float, gamma2: float
) -> Tensor:
    """Implement `mirrorgan_fast.ops.word_similarity` for inputs of the same data type."""
    captions, count, depth = words.shape
    images = len(regions)
    out = torch.empty((images, captions), dtype=torch.float32, device=words.device)
    if out.numel():
        wrap_triton(word_similarity_kernel)[(images * captions,)](
            words.contiguous(),
            mask.contiguous(),
            regions.contiguous(),
            out,
            captions,
            count,
            regions.shape[1],
            gamma1,
            gamma2,
            **_shapes(count, depth),
        )
    return out


@triton_op("mirrorgan::word_similarity_triton_backward", mutates_args=())
def word_similarity_triton_backward(
    grad_out: Tensor, words: Tensor, mask: Tensor, regions: Tensor, gamma1: float, gamma2: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of words and regions."""
    captions, count, depth = words.shape
    images, places, _ = regions.shape
    shapes, turns = _shapes(count, depth), word_similarity(count).turns
    chunks = triton.cdiv(images, turns)
    words, mask, regions = words.contiguous(), mask.contiguous(), regions.contiguous()
    parts = words.new_empty((chunks, *words.shape), dtype=torch.float32)
    grad_context = words.new_empty((images, *words.shape))
    saved = words.new_empty((images, captions, 2, count), dtype=torch.float32)
    if words.numel() * regions.numel() == 0:
        return torch.zeros_like(words), torch.zeros_like(regions)
    grad_words, grad_regions = torch.empty_like(words), torch.empty_like(regions)
    wrap_triton(of_words_kernel)[(chunks * captions,)](
        grad_out.contiguous(), words, mask, regions, parts, grad_context, saved,
        images, captions, count, places, gamma1, gamma2, STEPS=turns, **shapes,
    )  # fmt: skip
    wrap_triton(of_regions_kernel)[(images * triton.cdiv(places, shapes["R"]),)](
        words, mask, regions, grad_context, saved, grad_regions,
        captions, count, places, gamma1, **shapes,
    )  # fmt: skip
    summed = word_similarity_sum()
    wrap_triton(sum_kernel)[(triton.cdiv(words.numel(), summed.columns),)](
        parts, grad_words, chunks, words.numel(), BLOCK=summed.columns,
        num_warps=summed.warps, num_stages=summed.stages,
    )  # fmt: skip
    return grad_words, grad_regions


def _shapes(words: int, depth: int) -> dict[str, int]:
    setting = word_similarity(words)
    return {
        "DEPTH": depth,
        "T": setting.rows,
        "R": setting.columns,
        "D": power_of_two(depth),
        "num_warps": setting.warps,
        "num_stages": setting.stages,
    }


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    words, mask, regions, ctx.gamma1, ctx.gamma2 = inputs
    ctx.save_for_backward(words, mask, regions)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    grad_words, grad_regions = word_similarity_triton_backward(
        grad_out, *ctx.saved_tensors, ctx.gamma1, ctx.gamma2
    )
    return grad_words, None, grad_regions, None, None


word_similarity_triton.register_autograd(_backward, setup_context=_save)
