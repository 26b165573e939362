"""GLAM attention and the 1x1 convolution that follows it, in one pass.

    out = mix concat(f, Att^w, Att^s)

with Att^w and Att^s of `mirrorgan_fast.ops.glam_attention`. The mix can be applied before the sum
over words, mix_w sum_t k_t p_t = sum_t (mix_w k_t) p_t, and likewise for the sentence. So neither
Att^w nor Att^s nor their concatenation is written to memory.
"""

import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.ops.checks import check_out, refuse, write_to
from mirrorgan_fast.ops.choice import (
    CUDA,
    REFERENCE,
    TRITON,
    choose,
    needs_grad,
    run_reference,
)
from mirrorgan_fast.ops.glam_attention import autocast, check_attention, glam_attention
from mirrorgan_fast.ops.glam_attention import reference as attention_reference
from mirrorgan_fast.ops.inference_op import inference_op
from mirrorgan_fast.ops.kept_memory import new_map

_NAME = "glam_attention_mix"


def glam_attention_mix(
    features: Tensor,  # (N, C, H, W)
    words: Tensor,  # (N, T, C)
    mask: Tensor,  # (N, T)
    sentence: Tensor | None,  # (N, C)
    sentence_weight: Tensor | None,  # (C, C)
    mix: Tensor,  # (C', 3C)
    out: Tensor | None = None,  # (N, C', H, W)
) -> Tensor:
    """Mix the features with their word attention and, given a sentence, sentence attention.

    A sample's result depends only on that sample. NaN in the features of a pixel stays in that
    pixel. With AMX a score above 1e7 counts as the lowest score if others are smaller. Gradients
    exist for all inputs but ``mask``: of first order with Triton, otherwise of any order. Under
    autocast the inputs are converted to the autocast data type, which the result also has.

    Args:
        features: f, any floating-point data type; channels_last is fastest.
        words: U w, the words projected to C channels, in the same data type.
        mask: bool, true at real words, false at padding. Padding has no influence. Without any real
            word Att^w is 0.
        sentence: V s_ca, the sentence projected to C channels. None: no Att^s (AttnGAN's form).
        sentence_weight: M of the authors' form. None: the paper's form.
        mix: Weight of the 1x1 convolution, in the same data type; (C', 2C) without a sentence.
        out: Where to write the result. None: a new map is made.

    Returns:
        ``out``, channels_last and in the data type of ``features``.

    Raises:
        InputError: Shapes, data types or devices do not match.
    """
    features, words, mix = autocast(features), autocast(words), autocast(mix)
    sentence, sentence_weight = autocast(sentence), autocast(sentence_weight)
    inputs = (features, words, mask, sentence, sentence_weight, mix)
    check_attention_mix(_NAME, *inputs)
    shape = (features.shape[0], mix.shape[0], *features.shape[2:])
    if out is not None:
        check_out(_NAME, out, features, shape, features.dtype)
    differentiated = needs_grad(*inputs)
    choice = choose(_NAME, features.device.type, features.dtype, needs_grad=differentiated)
    implementation = _fallback(choice.implementation, words, mix)
    if differentiated:
        return write_to(out, _differentiable(implementation, *inputs))
    if implementation == REFERENCE:
        return write_to(out, run_reference(reference, *inputs))
    if out is None:
        out = new_map(shape, features)
    if implementation == TRITON:
        from mirrorgan_fast.kernels.glam_attention_mix import glam_attention_mix_triton

        glam_attention_mix_triton(*inputs, out)
    else:
        _op(*inputs, out)
    return out


def _fallback(implementation: str, words: Tensor, mix: Tensor) -> str:
    """Return the implementation, or another one if these sizes are too large for it."""
    _, count, channels = words.shape
    if implementation == CUDA and (count > 32 or channels != 32 or len(mix) > 64):
        implementation = TRITON
    if implementation == TRITON:
        from mirrorgan_fast.kernels.glam_attention_mix import fits

        return TRITON if fits(channels, len(mix)) else REFERENCE
    return implementation


def _differentiable(
    implementation: str,
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None,
    sentence_weight: Tensor | None,
    mix: Tensor,
) -> Tensor:
    """Compute `glam_attention_mix` with autograd."""
    attention = (features, words, mask, sentence, sentence_weight)
    if implementation == TRITON:
        from mirrorgan_fast.kernels.glam_attention_mix import glam_attention_mix_trained, trains

        if trains(*words.shape[1:], len(mix)):
            out: Tensor = glam_attention_mix_trained(*attention, mix)
            return out
    # PyTorch's convolution is faster, forward and backward, than the product in the reference.
    return functional.conv2d(glam_attention(*attention), mix[:, :, None, None])


def check_attention_mix(
    op: str,
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None,
    sentence_weight: Tensor | None,
    mix: Tensor,
) -> None:
    """Check the inputs that the ops with attention and mix share."""
    check_attention(op, features, words, mask, sentence, sentence_weight)
    columns = features.shape[1] * (2 if sentence is None else 3)
    if features.shape[1] == 0:
        refuse(op, "features", features, "at least one channel")
    if mix.dim() != 2 or mix.shape[1] != columns:
        refuse(op, "mix", mix, f"shape (C', {columns})")
    if mix.dtype != features.dtype or mix.device != features.device:
        refuse(op, "mix", mix, f"{features.dtype} on {features.device}, as features")


def reference(
    features: Tensor,  # (N, C, H, W)
    words: Tensor,  # (N, T, C)
    mask: Tensor,  # (N, T)
    sentence: Tensor | None,  # (N, C)
    sentence_weight: Tensor | None,  # (C, C)
    mix: Tensor,  # (C', 3C)
) -> Tensor:
    """Define `glam_attention_mix` in plain PyTorch. Same arguments, not checked."""
    wide = torch.promote_types(features.dtype, torch.float32)
    context = attention_reference(
        features.to(wide),
        words.to(wide),
        mask,
        None if sentence is None else sentence.to(wide),
        None if sentence_weight is None else sentence_weight.to(wide),
    )
    mixed = torch.einsum("oc,nchw->nohw", mix.to(wide), context).to(features.dtype)
    return mixed.contiguous(memory_format=torch.channels_last)


@inference_op(_NAME)
def _op(
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None,
    sentence_weight: Tensor | None,
    mix: Tensor,
    out: Tensor,
) -> None:
    # The compiled implementations are csrc/cpu/ and csrc/cuda/glam_attention_mix.
    out.copy_(reference(features, words, mask, sentence, sentence_weight, mix))
