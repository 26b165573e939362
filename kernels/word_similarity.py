"""DAMSM's word similarity of all pairs, forward and backward; the op is `ops/word_similarity.py`.

A program has a pair of image and caption, and goes over the image's regions a block at a time:
which word a region fits is known from the region alone, and where a word looks is a softmax in one
pass (Milakov and Gimelshein, 2018). Nothing of the size of pairs times words times regions is ever
written. One launch forward; backward three: of the words, of the regions, and a sum.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from mirrorgan_fast.kernels.products import dot
from mirrorgan_fast.kernels.settings import power_of_two, word_similarity, word_similarity_sum

MAX_WORDS, MAX_DEPTH = 32, 256  # more words spill, and on sm_100 Triton 3.7 cannot compile them


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
    seen, _ = see(w, real, regions_ptr, image, regions, gamma1, DEPTH, T, R, D)
    cosine, _, _ = compare(seen, w)
    similarity, _ = pool(cosine, real, gamma2)
    tl.store(out_ptr + image * captions + caption, similarity)


@triton.jit
def of_words_kernel(
    gradient_ptr,  # (images, captions)
    words_ptr,  # (captions, words, DEPTH)
    mask_ptr,  # (captions, words)
    regions_ptr,  # (images, regions, DEPTH)
    parts_ptr,  # (programs of a caption, captions, words, DEPTH)
    of_seen_ptr,  # (images, captions, words, DEPTH)
    looks_ptr,  # (images, captions, 2, words)
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
    STEPS: tl.constexpr,  # images of a program
):
    """Write what some images add to a caption's gradient, and what the regions' will need.

    Of each pair that is the gradient of c_t, its product with c_t, and the sum of exp(gamma1 b_tr)
    over the regions, as a logarithm.
    """
    chunk = (tl.program_id(0) // captions).to(tl.int64)
    caption = (tl.program_id(0) % captions).to(tl.int64)
    word = tl.arange(0, T)
    real = real_words(mask_ptr, caption, word, words)
    w = load(words_ptr, caption * words + word, real, DEPTH, D)
    wide = w.to(tl.float32)
    of_w = tl.zeros((T, D), tl.float32)
    for image in range(chunk * STEPS, tl.minimum((chunk + 1) * STEPS, images)):
        pair = image * captions + caption
        seen, logsum = see(w, real, regions_ptr, image, regions, gamma1, DEPTH, T, R, D)
        cosine, seen_norm, word_norm = compare(seen, w)
        _similarity, share = pool(cosine, real, gamma2)
        of_cosine = tl.load(gradient_ptr + pair) * gamma2 * share
        scale = (of_cosine / (seen_norm * word_norm))[:, None]
        of_w += scale * seen - (of_cosine * cosine / (word_norm * word_norm))[:, None] * wide
        of_seen = scale * wide - (of_cosine * cosine / (seen_norm * seen_norm))[:, None] * seen
        product = tl.sum(of_seen * seen, axis=1)
        of_seen = of_seen.to(w.dtype)
        column = tl.arange(0, D)
        tl.store(
            of_seen_ptr + (pair * words + word)[:, None] * DEPTH + column[None, :],
            of_seen,
            mask=(word < words)[:, None] & (column < DEPTH)[None, :],
        )
        tl.store(looks_ptr + pair * 2 * words + word, logsum, mask=word < words)
        tl.store(looks_ptr + (pair * 2 + 1) * words + word, product, mask=word < words)
        for start in range(0, regions, R):
            region = start + tl.arange(0, R)
            v = load(regions_ptr, image * regions + region, region < regions, DEPTH, D)
            _look, of_score = of_scores(
                w, v, of_seen, real, region < regions, logsum, product, gamma1, T, R
            )
            of_w = dot(of_score, v, of_w)
    column = tl.arange(0, D)
    tl.store(
        parts_ptr
        + ((chunk * captions + caption) * words + word)[:, None] * DEPTH
        + column[None, :],
        tl.where(real[:, None], of_w, 0.0),
        mask=(word < words)[:, None] & (column < DEPTH)[None, :],
    )


@triton.jit
def of_regions_kernel(
    words_ptr,  # (captions, words, DEPTH)
    mask_ptr,  # (captions, words)
    regions_ptr,  # (images, regions, DEPTH)
    of_seen_ptr,  # (images, captions, words, DEPTH)
    looks_ptr,  # (images, captions, 2, words)
    of_regions_ptr,  # (images, regions, DEPTH)
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
    of_v = tl.zeros((R, D), tl.float32)
    for caption in range(captions):
        pair = image * captions + caption
        real = real_words(mask_ptr, caption, word, words)
        w = load(words_ptr, caption * words + word, real, DEPTH, D)
        of_seen = load(of_seen_ptr, pair * words + word, real, DEPTH, D)
        logsum = tl.load(looks_ptr + pair * 2 * words + word, mask=real, other=0.0)
        product = tl.load(looks_ptr + (pair * 2 + 1) * words + word, mask=real, other=0.0)
        look, of_score = of_scores(
            w, v, of_seen, real, region < regions, logsum, product, gamma1, T, R
        )
        of_v = dot(tl.trans(look), of_seen, of_v)
        of_v = dot(tl.trans(of_score), w, of_v)
    column = tl.arange(0, D)
    tl.store(
        of_regions_ptr + (image * regions + region)[:, None] * DEPTH + column[None, :],
        of_v.to(of_regions_ptr.dtype.element_ty),
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
    """Write the sums of the parts."""
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
    """Return rows (len(row), D), zero outside."""
    column = tl.arange(0, D)
    return tl.load(
        pointer + row[:, None] * DEPTH + column[None, :],
        mask=inside[:, None] & (column < DEPTH)[None, :],
        other=0.0,
    )


@triton.jit
def fit(w, v, real, T: tl.constexpr, R: tl.constexpr):
    """Return b = softmax_t(w_t . v_r), float32 (T, R), zero at padding."""
    scores = dot(w, tl.trans(v), tl.zeros((T, R), tl.float32))
    scores = tl.where(real[:, None], scores, float("-inf"))
    share = tl.exp(scores - tl.max(scores, axis=0)[None, :])
    return share / tl.sum(share, axis=0)[None, :]


@triton.jit
def see(
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
    seen = tl.zeros((T, D), tl.float32)
    for start in range(0, regions, R):
        region = start + tl.arange(0, R)
        v = load(regions_ptr, image * regions + region, region < regions, DEPTH, D)
        logits = gamma1 * fit(w, v, real, T, R)
        logits = tl.where((region < regions)[None, :], logits, float("-inf"))
        higher = tl.maximum(highest, tl.max(logits, axis=1))
        share = tl.exp(logits - higher[:, None])
        before = tl.exp(highest - higher)
        total = total * before + tl.sum(share, axis=1)
        seen = dot(share.to(v.dtype), v, seen * before[:, None])
        highest = higher
    return seen / total[:, None], highest + tl.log(total)


@triton.jit
def compare(seen, w):
    """Return cos(c_t, w_t) and the lengths of both, (T,) each."""
    wide = w.to(tl.float32)
    seen_norm = tl.sqrt(tl.maximum(tl.sum(seen * seen, axis=1), 1e-12))
    word_norm = tl.maximum(tl.sqrt(tl.sum(wide * wide, axis=1)), 1e-6)
    return tl.sum(seen * wide, axis=1) / (seen_norm * word_norm), seen_norm, word_norm


@triton.jit
def pool(cosine, real, gamma2):
    """Return log sum_t exp(gamma2 cos_t) over the real words, and each word's share of the sum."""
    logits = tl.where(real, gamma2 * cosine, float("-inf"))
    highest = tl.max(logits, axis=0)
    share = tl.exp(logits - highest)
    total = tl.sum(share, axis=0)
    return highest + tl.log(total), share / total


@triton.jit
def of_scores(
    w,  # (T, D)
    v,  # (R, D)
    of_seen,  # (T, D)
    real,  # (T,)
    inside,  # (R,)
    logsum,  # (T,)
    product,  # (T,)
    gamma1,
    T: tl.constexpr,
    R: tl.constexpr,
):
    """Return the looks a_tr and the gradient of the scores s_tr, (T, R) of the type of ``w``."""
    share = fit(w, v, real, T, R)
    look = tl.exp(gamma1 * share - logsum[:, None])
    look = tl.where(real[:, None] & inside[None, :], look, 0.0)
    of_look = dot(of_seen, tl.trans(v), tl.zeros((T, R), tl.float32))
    of_share = gamma1 * look * (of_look - product[:, None])
    of_score = share * (of_share - tl.sum(share * of_share, axis=0)[None, :])
    return look.to(w.dtype), of_score.to(w.dtype)


@triton_op("mirrorgan::word_similarity_triton", mutates_args=())
def word_similarity_triton(
    words: Tensor, mask: Tensor, regions: Tensor, gamma1: float, gamma2: float
) -> Tensor:
    """Do what `mirrorgan_fast.ops.word_similarity` does; both features of one data type."""
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
    gradient: Tensor, words: Tensor, mask: Tensor, regions: Tensor, gamma1: float, gamma2: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of words and regions."""
    captions, count, depth = words.shape
    images, places, _ = regions.shape
    shapes, turns = _shapes(count, depth), word_similarity(count).turns
    chunks = triton.cdiv(images, turns)
    words, mask, regions = words.contiguous(), mask.contiguous(), regions.contiguous()
    parts = words.new_empty((chunks, *words.shape), dtype=torch.float32)
    of_seen = words.new_empty((images, *words.shape))
    looks = words.new_empty((images, captions, 2, count), dtype=torch.float32)
    if words.numel() * regions.numel() == 0:
        return torch.zeros_like(words), torch.zeros_like(regions)
    of_words, of_regions = torch.empty_like(words), torch.empty_like(regions)
    wrap_triton(of_words_kernel)[(chunks * captions,)](
        gradient.contiguous(), words, mask, regions, parts, of_seen, looks,
        images, captions, count, places, gamma1, gamma2, STEPS=turns, **shapes,
    )  # fmt: skip
    wrap_triton(of_regions_kernel)[(images * triton.cdiv(places, shapes["R"]),)](
        words, mask, regions, of_seen, looks, of_regions,
        captions, count, places, gamma1, **shapes,
    )  # fmt: skip
    summed = word_similarity_sum()
    wrap_triton(sum_kernel)[(triton.cdiv(words.numel(), summed.columns),)](
        parts, of_words, chunks, words.numel(), BLOCK=summed.columns,
        num_warps=summed.warps, num_stages=summed.stages,
    )  # fmt: skip
    return of_words, of_regions


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


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    of_words, of_regions = word_similarity_triton_backward(
        gradient, *ctx.saved_tensors, ctx.gamma1, ctx.gamma2
    )
    return of_words, None, of_regions, None, None


word_similarity_triton.register_autograd(_backward, setup_context=_save)
