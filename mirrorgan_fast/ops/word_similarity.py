"""How well every image fits every caption by its words: the word half of DAMSM.

AttnGAN (Xu et al., 2018), eq. 7 to 10. With s_tr = w_t . v_r between the words of a caption and the
regions of an image,

    b_tr = softmax_t(s_tr)                    which word a region fits
    a_tr = softmax_r(gamma1 b_tr)             where a word looks
    c_t  = sum_r a_tr v_r                     what it sees
    out  = log sum_t exp(gamma2 cos(c_t, w_t))

for all pairs at once.
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
    """Match every image with every caption by its words.

    Gradients exist for words and regions; through Triton of first order. Products are of the data
    type of ``words``, sums and everything else of float32.

    Args:
        words: w of M captions, any floating data type.
        mask: bool, true at real words; each caption has at least one.
        regions: v of N images, any floating data type.
        gamma1: sharpness of the attention over regions.
        gamma2: sharpness of the pooling over words.

    Returns:
        log sum_t exp(gamma2 cos(c_t, w_t)), (N, M), float32 or wider.

    Raises:
        InputError: shapes, data types or devices do not fit together.
    """
    _check(words, mask, regions)
    differentiated = needs_grad(words, regions)
    choice = choose(_NAME, words.device.type, words.dtype, needs_grad=differentiated)
    if choice.implementation == TRITON:
        from mirrorgan_fast.kernels.word_similarity import MOST_DEPTH, MOST_WORDS
        from mirrorgan_fast.kernels.word_similarity import word_similarity_triton as in_triton

        if words.shape[1] <= MOST_WORDS and words.shape[2] <= MOST_DEPTH:
            similarity: Tensor = in_triton(words, mask, regions.to(words.dtype), gamma1, gamma2)
            return similarity
    return run_reference(reference, words, mask, regions, gamma1, gamma2)


def reference(
    words: Tensor,  # (M, T, D)
    mask: Tensor,  # (M, T)
    regions: Tensor,  # (N, R, D)
    gamma1: float,
    gamma2: float,
) -> Tensor:
    """What `word_similarity` means, in plain PyTorch; the arguments are the same, and trusted."""
    words = words.masked_fill(~mask[:, :, None], 0)  # no NaN in gradients of what is not read
    wide = torch.promote_types(words.dtype, torch.float32)
    # the one large product, in the precision that the features came in
    scores = torch.einsum("mtd,nrd->nmtr", words, regions.to(words.dtype)).to(wide)
    words, regions = words.to(wide), regions.to(wide)
    over_words = scores.masked_fill(~mask[:, :, None], -torch.inf).softmax(dim=2)
    looks = (over_words * gamma1).softmax(dim=3)
    # The product of c_t with the word and its length follow from the scores and the regions'
    # products: the (N, M, T, D) tensor of c_t is not needed.
    seen_words = (looks * scores).sum(dim=3)
    region_products = regions @ regions.transpose(1, 2)
    # all captions' looks at an image in one product, or the image's matrix is copied for each
    reached = (looks.flatten(1, 2) @ region_products).view_as(looks)
    seen_norms = (reached * looks).sum(dim=3).clamp(min=1e-12).sqrt()
    # Padding has words of length 0
    word_norms = words.norm(dim=2).clamp(min=1e-6)
    cosines = seen_words / (seen_norms * word_norms)
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
            refuse(_NAME, name, tensor, f"device {words.device}, that of words")
