"""GLAM attention: the features concatenated with word attention and sentence attention.

MirrorGAN, section 3.2. With f the features at a pixel, k_t = U w_t the projected words and
s = V s_ca the projected sentence,

    Att^w = sum_t k_t softmax_t(f . k_t)
    Att^s = s o softmax_C(f o s)            (the paper)
    Att^s = s o softmax_C(M (f o s))        (the authors' code; M is a 1x1 convolution)

The op returns concat(f, Att^w, Att^s). It writes each part directly to its place in the result.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor

from mirrorgan_fast.ops.checks import refuse
from mirrorgan_fast.ops.choice import REFERENCE, choose, needs_grad, run_reference

MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)

_NAME = "glam_attention"
# Computed once, here: torch.compile cannot trace is_autocast_available() before PyTorch 2.12.
_WITH_AUTOCAST = [d for d in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(d)]


def glam_attention(
    features: Tensor,  # (N, C, H, W)
    words: Tensor,  # (N, T, C)
    mask: Tensor,  # (N, T)
    sentence: Tensor | None = None,  # (N, C)
    sentence_weight: Tensor | None = None,  # (C, C)
) -> Tensor:
    """Concatenate the features with their word attention and, given a sentence, Att^s.

    A sample's result depends only on that sample. NaN in the features of a pixel stays in that
    pixel. Gradients of any order exist for all inputs but ``mask``. Under autocast the inputs are
    converted to the autocast data type, which the result also has. In bfloat16 and float16
    everything is computed in float32 and rounded once.

    Args:
        features: f, any floating-point data type; contiguous and channels_last are both fast.
        words: U w, the words projected to C channels, in the same data type.
        mask: bool, true at real words, false at padding. Padding has no influence. Without any real
            word Att^w is 0.
        sentence: V s_ca, the sentence projected to C channels. None: no Att^s (AttnGAN's form).
        sentence_weight: M of the authors' form. None: the paper's form.

    Returns:
        (N, 3C, H, W), or (N, 2C, H, W) without a sentence, in the memory format and data type of
        ``features``.

    Raises:
        InputError: Shapes, data types or devices do not match.
    """
    features, words = autocast(features), autocast(words)
    sentence, sentence_weight = autocast(sentence), autocast(sentence_weight)
    inputs = (features, words, mask, sentence, sentence_weight)
    check_attention(_NAME, *inputs)
    differentiated = needs_grad(*inputs)
    choice = choose(_NAME, features.device.type, features.dtype, needs_grad=differentiated)
    if choice.implementation == REFERENCE:
        return run_reference(reference, *inputs)
    context: Tensor = _op(*inputs)
    return context


def word_attention_map(
    features: Tensor,  # (N, C, H, W)
    words: Tensor,  # (N, T, C)
    mask: Tensor,  # (N, T)
) -> Tensor:
    """Return the attention of each pixel to each word, softmax_t(f . k_t), for pictures of it.

    Args:
        features: f, any floating-point data type.
        words: U w, the words projected to C channels, in the same data type.
        mask: bool, true at real words, false at padding.

    Returns:
        (N, T, H, W) in [0, 1], float32 or wider: 0 at padding, summing to 1 over the real words.

    Raises:
        InputError: Shapes, data types or devices do not match.
    """
    features, words = autocast(features), autocast(words)
    check_attention("word_attention_map", features, words, mask, None, None)
    with torch.autocast(features.device.type, enabled=False):
        f, keys = _pixels_and_keys(features, words, mask)
        return _word_attention(f, keys, mask).permute(0, 3, 1, 2).contiguous()


def reference(
    features: Tensor,  # (N, C, H, W)
    words: Tensor,  # (N, T, C)
    mask: Tensor,  # (N, T)
    sentence: Tensor | None = None,  # (N, C)
    sentence_weight: Tensor | None = None,  # (C, C)
) -> Tensor:
    """Define `glam_attention` in plain PyTorch. Same arguments, not checked."""
    f, keys = _pixels_and_keys(features, words, mask)
    parts = [f, (_word_attention(f, keys, mask).flatten(1, 2) @ keys).view_as(f)]
    if sentence is not None:
        s = sentence.to(f.dtype)[:, None, None]
        gate = f * s
        if sentence_weight is not None:
            gate = gate @ sentence_weight.to(f.dtype).mT
        parts.append(s * gate.softmax(dim=3))
    context = torch.cat(parts, dim=3).to(features.dtype).permute(0, 3, 1, 2)
    return context.contiguous(memory_format=_memory_format(features))


def backward_reference(
    grad_out: Tensor,  # (N, 3C, H, W)
    features: Tensor,  # (N, C, H, W)
    words: Tensor,  # (N, T, C)
    mask: Tensor,  # (N, T)
    sentence: Tensor | None,  # (N, C)
    sentence_weight: Tensor | None,  # (C, C)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Define the gradients of the features, the words, the sentence and its weight.

    The gradient of an argument that is None is an empty tensor. All of them can be differentiated
    again, by the arguments and by ``grad_out``.
    """
    f, keys = _pixels_and_keys(features, words, mask)
    grad_f, grad_words, *rest = (
        grad_out.to(f.dtype).permute(0, 2, 3, 1).chunk(2 if sentence is None else 3, dim=3)
    )
    attention = _word_attention(f, keys, mask).flatten(1, 2)  # (N, H W, T)
    grad_words, pixels = grad_words.flatten(1, 2), f.flatten(1, 2)
    grad_logits = _softmax_backward(grad_words @ keys.mT, attention)
    grad_f = grad_f + (grad_logits @ keys).view_as(f)
    grad_keys = attention.mT @ grad_words + grad_logits.mT @ pixels
    grad_keys = grad_keys.masked_fill(~mask[:, :, None], 0)
    grad_sentence, grad_weight = f.new_zeros(0), f.new_zeros(0)
    if sentence is not None:
        (grad_att,) = rest
        s = sentence.to(f.dtype)[:, None, None]
        gated = scores = f * s
        weight = None if sentence_weight is None else sentence_weight.to(f.dtype)
        if weight is not None:
            scores = gated @ weight.mT
        shares = scores.softmax(dim=3)
        grad_gate = _softmax_backward(grad_att * s, shares)
        if weight is not None:
            grad_weight = grad_gate.flatten(0, 2).mT @ gated.flatten(0, 2)
            grad_gate = grad_gate @ weight
        grad_f = grad_f + grad_gate * s
        grad_sentence = (grad_att * shares + grad_gate * f).sum(dim=(1, 2))
    grad_f = grad_f.permute(0, 3, 1, 2).contiguous(memory_format=_memory_format(features))
    grads = (grad_f, grad_keys, grad_sentence, grad_weight)
    grad_f, grad_keys, grad_sentence, grad_weight = (g.to(features.dtype) for g in grads)
    return grad_f, grad_keys, grad_sentence, grad_weight


def _softmax_backward(grad_shares: Tensor, shares: Tensor) -> Tensor:
    """Return the gradient of what a softmax over the last dimension was taken of."""
    return shares * (grad_shares - (grad_shares * shares).sum(dim=-1, keepdim=True))


def _pixels_and_keys(features: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return f (N, H, W, C) and k (N, T, C), zero at padding, in float32 or wider.

    f is channels_last, like the features in the training model. A contiguous gradient would make
    the backward of the preceding batch norm several times slower on the CPU.
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    f = features.to(wide).permute(0, 2, 3, 1)
    return f, words.to(wide).masked_fill(~mask[:, :, None], 0)


def _word_attention(f: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Return softmax_t(f . k_t), (N, H, W, T), zero at padding."""
    padding = ~mask[:, None, None]
    logits = (f.flatten(1, 2) @ keys.mT).unflatten(1, f.shape[1:3])
    # The lowest finite number, not -inf: with -inf the softmax of a sample without real words is
    # NaN, and so is its gradient, which triggers torch's anomaly detection.
    logits = logits.masked_fill(padding, torch.finfo(f.dtype).min)
    attention: Tensor = logits.softmax(dim=3).masked_fill(padding, 0)
    return attention


@torch.library.custom_op(f"mirrorgan::{_NAME}", mutates_args=())
def _op(
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None = None,
    sentence_weight: Tensor | None = None,
) -> Tensor:
    # The CPU implementation is csrc/cpu/glam_attention.cpp.
    return reference(features, words, mask, sentence, sentence_weight)


@_op.register_fake
def _(
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None = None,
    sentence_weight: Tensor | None = None,
) -> Tensor:
    batch, channels, height, width = features.shape
    shape = (batch, channels * (2 if sentence is None else 3), height, width)
    return torch.empty(
        shape,
        dtype=features.dtype,
        device=features.device,
        memory_format=_memory_format(features),
    )


@torch.library.custom_op(f"mirrorgan::{_NAME}_backward", mutates_args=())
def _backward_op(
    grad_out: Tensor,
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None = None,
    sentence_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # The CPU implementation is csrc/cpu/glam_attention.cpp.
    return backward_reference(grad_out, features, words, mask, sentence, sentence_weight)


@_backward_op.register_fake
def _(
    grad_out: Tensor,
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None = None,
    sentence_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_features = torch.empty(
        features.shape,
        dtype=features.dtype,
        device=features.device,
        memory_format=_memory_format(features),
    )
    return (
        grad_features,
        words.new_empty(words.shape),
        features.new_empty((0,) if sentence is None else sentence.shape),
        features.new_empty((0,) if sentence_weight is None else sentence_weight.shape),
    )


def _save_inputs(ctx: Any, inputs: tuple[Tensor | None, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    """Compute everything again from the inputs, so that only these are saved."""
    features, words, mask, sentence, weight = ctx.saved_tensors
    grads = _backward_op(grad_out, features, words, mask, sentence, weight)
    grad_features, grad_words, grad_sentence, grad_weight = grads
    return (
        grad_features,
        grad_words,
        None,
        None if sentence is None else grad_sentence,
        None if weight is None else grad_weight,
    )


def _second_backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the gradients' definition in plain PyTorch; from here any order exists."""
    grad_out, features, words, mask, *optional = ctx.saved_tensors
    present = [tensor for tensor in optional if tensor is not None]

    def first(grad: Tensor, f: Tensor, k: Tensor, *s: Tensor) -> tuple[Tensor, ...]:
        given = (*s, *[None] * (2 - len(s)))
        return backward_reference(grad, f, k, mask, given[0], given[1])

    grads = torch.func.vjp(first, grad_out, features, words, *present)[1](cotangents)
    grad_grad_out, grad_features, grad_words, *rest = grads
    return grad_grad_out, grad_features, grad_words, None, *rest, *[None] * (2 - len(present))


_op.register_autograd(_backward, setup_context=_save_inputs)
_backward_op.register_autograd(_second_backward, setup_context=_save_inputs)


def _memory_format(features: Tensor) -> torch.memory_format:
    channels_last = not features.is_contiguous() and features.is_contiguous(
        memory_format=torch.channels_last
    )
    return torch.channels_last if channels_last else torch.contiguous_format


def check_attention(
    op: str,
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None,
    sentence_weight: Tensor | None,
) -> None:
    """Check the inputs that the attention ops share."""
    if features.dim() != 4 or not features.is_floating_point():
        refuse(op, "features", features, "floating point of shape (N, C, H, W)")
    batch, channels = features.shape[:2]
    if words.dim() != 3 or (words.shape[0], words.shape[2]) != (batch, channels):
        refuse(op, "words", words, f"shape (N, T, C) = ({batch}, T, {channels})")
    if mask.dtype != torch.bool or mask.shape != words.shape[:2]:
        refuse(op, "mask", mask, f"bool of shape (N, T) = {tuple(words.shape[:2])}")
    if sentence is not None and sentence.shape != (batch, channels):
        refuse(op, "sentence", sentence, f"shape (N, C) = ({batch}, {channels})")
    if sentence_weight is not None:
        if sentence is None:
            refuse(op, "sentence_weight", sentence_weight, "None without a sentence")
        if sentence_weight.shape != (channels, channels):
            wanted = f"shape (C, C) = ({channels}, {channels})"
            refuse(op, "sentence_weight", sentence_weight, wanted)

    floating = {"words": words, "sentence": sentence, "sentence_weight": sentence_weight}
    for name, tensor in {**floating, "mask": mask}.items():
        if tensor is not None and tensor.device != features.device:
            refuse(op, name, tensor, f"device {features.device}, as features")
    for name, tensor in floating.items():
        if tensor is not None and tensor.dtype != features.dtype:
            refuse(op, name, tensor, f"{features.dtype}, as features")


def autocast(tensor: MaybeTensor) -> MaybeTensor:
    """Return a floating-point tensor in autocast's data type, if that is on; None stays None."""
    if tensor is None:
        return None
    device = tensor.device.type
    if device not in _WITH_AUTOCAST or not torch.is_autocast_enabled(device):
        return tensor
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))
