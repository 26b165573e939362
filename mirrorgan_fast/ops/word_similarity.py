"""The similarity of every image and every caption by words: the word level of DAMSM.

AttnGAN (Xu et al., 2018), eq. 7 to 10. With the scores s_tr = w_t . v_r of the words t of a caption
and the regions r of an image,

    b_tr = softmax_t(s_tr)                    attention of a region to the words
    a_tr = softmax_r(gamma1 b_tr)             attention of a word to the regions
    c_t  = sum_r a_tr v_r                     region context of a word
    out  = log sum_t exp(gamma2 cos(c_t, w_t))

for all pairs in one call.
"""

import torch
from torch import Tensor

from mirrorgan_fast.ops.checks import refuse
from mirrorgan_fast.ops.choice import TRITON, choose, needs_grad, run_reference

_NAME = "word_similarity"


def word_similarity(
    words: Tensor,  # (M, T, D)
    mask: Tensor,  # (M, T)
    regions: Tensor,  # (N, R, D)
    *,
    gamma1: float = 4.0,
    gamma2: float = 5.0,
) -> Tensor:
    """Return the similarity of every image and every caption.

    Gradients exist for words and regions; Triton has first-order gradients only. Products are
    computed in the data type of ``words``, sums and everything else in float32.

    Args:
        words: w of M captions, any floating-point data type.
        mask: bool, true at real words, false at padding. Each caption has at least one real word.
        regions: v of N images, any floating-point data type.
        gamma1: Sharpness of the attention over regions.
        gamma2: Sharpness of the pooling over words.

    Returns:
        log sum_t exp(gamma2 cos(c_t, w_t)), (N, M), float32 or wider.

    Raises:
        InputError: Shapes, data types or devices do not match.
    """
    _check(words, mask, regions)
    differentiated = needs_grad(words, regions)
    choice = choose(_NAME, words.device.type, words.dtype, needs_grad=differentiated)
    if choice.implementation == TRITON:
        from mirrorgan_fast.kernels.word_similarity import (
            MAX_DEPTH,
            MAX_WORDS,
            word_similarity_triton,
        )

        if words.shape[1] <= MAX_WORDS and words.shape[2] <= MAX_DEPTH:
            regions = regions.to(words.dtype)
            similarity: Tensor = word_similarity_triton(words, mask, regions, gamma1, gamma2)
            return similarity
    return run_reference(reference, words, mask, regions, gamma1, gamma2)


def reference(
    words: Tensor,  # (M, T, D)
    mask: Tensor,  # (M, T)
    regions: Tensor,  # (N, R, D)
    gamma1: float,
    gamma2: float,
) -> Tensor:
    """Define `word_similarity` in plain PyTorch. Same arguments, not checked."""
    words = words.masked_fill(~mask[:, :, None], 0)  # NaN in padding must not reach the gradients
    wide = torch.promote_types(words.dtype, torch.float32)
    # The only large product, in the data type of the words.
    scores = torch.einsum("mtd,nrd->nmtr", words, regions.to(words.dtype)).to(wide)
    words, regions = words.to(wide), regions.to(wide)
    over_words = scores.masked_fill(~mask[:, :, None], -torch.inf).softmax(dim=2)
    attention = (over_words * gamma1).softmax(dim=3)  # a_tr
    # c_t . w_t = sum_r a_tr s_tr, and |c_t|^2 = sum_rq a_tr (v_r . v_q) a_tq. So the (N, M, T, D)
    # tensor of all c_t is not needed.
    context_words = (attention * scores).sum(dim=3)
    region_products = regions @ regions.transpose(1, 2)
    # One product for all captions of an image: with broadcasting PyTorch would copy the image's
    # matrix for each caption.
    weighted = (attention.flatten(1, 2) @ region_products).view_as(attention)
    context_norms = (weighted * attention).sum(dim=3).clamp(min=1e-12).sqrt()
    word_norms = words.norm(dim=2).clamp(min=1e-6)  # padding has norm 0
    cosines = context_words / (context_norms * word_norms)
    similarity: Tensor = (cosines * gamma2).masked_fill(~mask, -torch.inf).logsumexp(dim=2)
    return similarity


def _check(words: Tensor, mask: Tensor, regions: Tensor) -> None:
    if words.dim() != 3 or not words.is_floating_point():
        refuse(_NAME, "words", words, "floating point of shape (M, T, D)")
    if mask.dtype != torch.bool or mask.shape != words.shape[:2]:
        refuse(_NAME, "mask", mask, f"bool of shape (M, T) = {tuple(words.shape[:2])}")
    depth = words.shape[2]
    if regions.dim() != 3 or regions.shape[2] != depth or not regions.is_floating_point():
        refuse(_NAME, "regions", regions, f"floating point of shape (N, R, {depth})")
    for name, tensor in (("mask", mask), ("regions", regions)):
        if tensor.device != words.device:
            refuse(_NAME, name, tensor, f"device {words.device}, as words")
