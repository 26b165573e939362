"""GLAM attention and the 1x1 convolution that mixes it, in one pass.

    out = mix concat(f, Att^w, Att^s)

with the attentions of `mirrorgan_fast.ops.glam_attention`. A sum over words or channels may be
mixed before it is weighed, mix_w sum_t k_t p_t = sum_t (mix_w k_t) p_t, so that neither attention
nor their concatenation is ever written.
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
    """Mix features with their word attention and, given a sentence, sentence attention.

    A sample's result depends on that sample alone. NaN in a pixel's features stays in that pixel.
    With AMX a score above 1e7, beside smaller ones, counts as the least.
    Gradients exist for all inputs but ``mask``, of first order through Triton, else of any. Under
    autocast the inputs are taken in the autocast data type, which is also the result's.

    Args:
        features: f, any floating data type; channels_last is fast.
        words: U w, the words projected to C channels; same data type.
        mask: bool, true at real words. What stands at the others has no influence; without any
            real word Att^w is 0.
        sentence: V s_ca, the sentence projected to C channels. None: no Att^s (AttnGAN's form).
        sentence_weight: M of the authors' form. None: the paper's form.
        mix: the weight of the 1x1 convolution, of the same data type; (C', 2C) without a sentence.
        out: where to write the result; None makes a new map.

    Returns:
        ``out``, channels_last and of the data type of ``features``.

    Raises:
        InputError: shapes, data types or devices do not fit together.
    """
    features, words, mix = autocast(features), autocast(words), autocast(mix)
    sentence, sentence_weight = autocast(sentence), autocast(sentence_weight)
    given = (features, words, mask, sentence, sentence_weight)
    check_attention_mix(_NAME, *given, mix)
    shape = (features.shape[0], mix.shape[0], *features.shape[2:])
    if out is not None:
        check_out(_NAME, out, features, shape, features.dtype)
    differentiated = needs_grad(*given, mix)
    choice = choose(_NAME, features.device.type, features.dtype, needs_grad=differentiated)
    implementation = _that_takes(words, mix, choice.implementation)
    if differentiated:
        return write_to(out, _differentiable(implementation, *given, mix))
    if implementation == REFERENCE:
        return write_to(out, run_reference(reference, *given, mix))
    if out is None:
        out = new_map(shape, features)
    if implementation == TRITON:
        from mirrorgan_fast.kernels.glam_attention_mix import glam_attention_mix_triton

        glam_attention_mix_triton(*given, mix, out)
    else:
        _op(*given, mix, out)
    return out


def _that_takes(words: Tensor, mix: Tensor, implementation: str) -> str:
    """Return the implementation, or where words and mix are too many for it another one."""
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
    """Do the same where a gradient is needed."""
    given = (features, words, mask, sentence, sentence_weight)
    if implementation == TRITON:
        from mirrorgan_fast.kernels.glam_attention_mix import glam_attention_mix_trained, trains

        if trains(*words.shape[1:], len(mix)):
            trained: Tensor = glam_attention_mix_trained(*given, mix)
            return trained
    # PyTorch's convolution is faster, forward and backward, than the product in the reference
    return functional.conv2d(glam_attention(*given), mix[:, :, None, None])


def check_attention_mix(
    op: str,
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None,
    sentence_weight: Tensor | None,
    mix: Tensor,
) -> None:
    """Check the inputs that the ops with attention and mix have in common."""
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
    """What `glam_attention_mix` means, in plain PyTorch; same arguments, trusted."""
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
    # Compiled: csrc/cpu/glam_attention_mix.cpp and csrc/cuda/glam_attention_mix.cu.
    out.copy_(reference(features, words, mask, sentence, sentence_weight, mix))
