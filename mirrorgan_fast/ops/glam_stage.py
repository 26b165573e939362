"""A whole stage of MirrorGAN's generator, f_i = F_i(F_att_i(f_{i-1}, w, s_ca)), or its image.

Attention and mix, residual blocks, up-block and image head, as `mirrorgan_fast.ops` has them one by
one. What a stage of 128 px writes between its layers takes as long to write and to read again as
all of its products to compute: here a few rows at a time go through all layers while they are in
the cache.
"""

import torch
from torch import Tensor

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops.checks import check_out, refuse, write_to
from mirrorgan_fast.ops.choice import REFERENCE, choose, needs_grad, run_reference
from mirrorgan_fast.ops.conv_add import conv_add
from mirrorgan_fast.ops.conv_add import reference as conv_add_reference
from mirrorgan_fast.ops.conv_glu import conv_glu
from mirrorgan_fast.ops.conv_glu import reference as conv_glu_reference
from mirrorgan_fast.ops.glam_attention_mix import check_attention_mix, glam_attention_mix
from mirrorgan_fast.ops.glam_attention_mix import reference as attention_reference
from mirrorgan_fast.ops.image_head import image_head
from mirrorgan_fast.ops.image_head import reference as image_reference
from mirrorgan_fast.ops.inference_op import inference_op
from mirrorgan_fast.ops.kept_memory import KeptMemory
from mirrorgan_fast.ops.packing import check_packed, in_tiles, taps_of

_NAME = "glam_stage"


def glam_stage(
    features: Tensor,  # (N, C, H, W)
    words: Tensor,  # (N, T, C)
    mask: Tensor,  # (N, T)
    sentence: Tensor | None,  # (N, C)
    sentence_weight: Tensor | None,  # (C, C)
    mix: Tensor,  # (C', 3C)
    weights: list[Tensor],  # packed
    biases: list[Tensor],
    head_weight: Tensor | None = None,  # packed, of 3 channels
    head_bias: Tensor | None = None,  # (3,)
    out: Tensor | None = None,  # (N, C'', 2H, 2W) or (N, 2H, 2W, 3)
    memory: KeptMemory | None = None,
) -> Tensor:
    """Attend and mix, run residual blocks and an up-block, and make an image if there is a head.

    For inference; where a gradient is needed the reference runs. Where the whole stage cannot go at
    once, its ops run one by one, with the same bits.

    Args:
        features: f_{i-1}, and with it up to ``mix`` the arguments of `glam_attention_mix`.
        words: U w.
        mask: true at real words.
        sentence: V s_ca, or None.
        sentence_weight: M of the authors' form, or None.
        mix: the weight of the 1x1 convolution.
        weights: of each residual block's `conv_glu` and `conv_add`, then of the up-block's
            `conv_glu`, from ``pack``.
        biases: as many.
        head_weight: of `image_head`; None: the result is f_i.
        head_bias: of `image_head`.
        out: where to write the result; None makes a new tensor.
        memory: for what is between the ops, where they run one by one; None: it is made anew.

    Returns:
        ``out``: f_i, channels_last and of the data type of ``features``; or images, uint8.

    Raises:
        InputError: as the ops that it consists of, or the lists do not fit together.
    """
    if len(weights) % 2 == 0 or len(weights) != len(biases):
        raise InputError(
            f"{_NAME}: weights: found {len(weights)} and {len(biases)} biases, wanted two of each "
            f"block and one, and as many biases"
        )
    if (head_weight is None) != (head_bias is None):
        raise InputError(f"{_NAME}: head_bias: found only one of weight and bias, wanted both")
    attention = (features, words, mask, sentence, sentence_weight, mix)
    channels = _check(attention, weights, biases, head_weight, head_bias)
    batch, _, height, width = features.shape
    shape: tuple[int, ...] = (batch, channels, 2 * height, 2 * width)
    dtype, memory_format = features.dtype, torch.channels_last
    if head_bias is not None:
        shape = (batch, 2 * height, 2 * width, channels)
        dtype, memory_format = torch.uint8, torch.contiguous_format
    if out is not None:
        check_out(_NAME, out, features, shape, dtype, memory_format)
    tensors = (*attention, *weights, *biases, head_weight, head_bias)
    if needs_grad(*tensors):
        layers_and_head = (weights, biases, head_weight, head_bias)
        return write_to(out, run_reference(reference, *attention, *layers_and_head))
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=features.device, memory_format=memory_format)

    choice = choose(_NAME, features.device.type, features.dtype, needs_grad=False)
    layers = list(zip(weights, biases, strict=True))
    head = None if head_weight is None or head_bias is None else (head_weight, head_bias)
    if choice.implementation == REFERENCE or not goes_at_once(
        width, mix, weights, biases, head_bias
    ):
        with torch.autocast(features.device.type, enabled=False):
            return _one_by_one(attention, layers, head, out, memory)
    _op(*attention, weights, biases, head_weight, head_bias, out)
    return out


_Attention = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor]


def reference(
    features: Tensor,  # (N, C, H, W)
    words: Tensor,  # (N, T, C)
    mask: Tensor,  # (N, T)
    sentence: Tensor | None,  # (N, C)
    sentence_weight: Tensor | None,  # (C, C)
    mix: Tensor,  # (C', 3C)
    weights: list[Tensor],
    biases: list[Tensor],
    head_weight: Tensor | None = None,
    head_bias: Tensor | None = None,
) -> Tensor:
    """What `glam_stage` means, in plain PyTorch; same arguments, trusted."""
    x = attention_reference(features, words, mask, sentence, sentence_weight, mix)
    *layers, up = zip(weights, biases, strict=True)
    for glu, add in zip(layers[::2], layers[1::2], strict=True):
        x = conv_add_reference(conv_glu_reference(x, *glu), *add, x)
    f = conv_glu_reference(x, *up)
    return (
        f
        if head_weight is None or head_bias is None
        else image_reference(f, head_weight, head_bias)
    )


def _one_by_one(
    attention: _Attention,
    layers: list[tuple[Tensor, Tensor]],
    head: tuple[Tensor, Tensor] | None,
    out: Tensor,
    memory: KeptMemory | None,
) -> Tensor:
    """Do the same with the ops that a stage consists of, each by what is fastest for it."""

    def made(name: str, like: Tensor, channels: int, scale: int = 1) -> Tensor | None:
        return None if memory is None else memory.map(name, len(like), like, channels, scale)

    x = glam_attention_mix(*attention, out=made("x", attention[0], len(attention[-1])))
    *of_blocks, up = layers
    for glu, add in zip(of_blocks[::2], of_blocks[1::2], strict=True):
        hidden = conv_glu(x, *glu, out=made("hidden", x, len(glu[1]) // 2))
        x = conv_add(hidden, *add, x, out=x)
    if head is None:
        return conv_glu(x, *up, out=out)
    f = conv_glu(x, *up, out=made("f", x, len(up[1]) // 2, scale=2))
    return image_head(f, *head, out=out)


def goes_at_once(
    width: int,
    mix: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    head_bias: Tensor | None,
) -> bool:
    """Whether all is whole tiles, and blocks keep the channels; and the up-block is in phases."""
    if weights[-1].shape[0] != 4 or not all(map(in_tiles, weights)):
        return False
    *hidden, last = (len(bias) // 2 for bias in biases[::2])
    if any(n != len(mix) for n in hidden):
        return False
    images = 0 if head_bias is None else len(head_bias)
    return width % 16 == 0 and len(mix) % 32 == 0 and last % 32 == 0 and images <= 4


def _check(
    attention: _Attention,
    weights: list[Tensor],
    biases: list[Tensor],
    head_weight: Tensor | None,
    head_bias: Tensor | None,
) -> int:
    """Check that the layers fit behind each other; return the channels of the result."""
    check_attention_mix(_NAME, *attention)
    features, mix = attention[0], attention[-1]
    channels, last = len(mix), len(weights) - 1
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        glu = i % 2 == 0
        scale = check_packed(_NAME, features, weight, bias, glu=glu, channels=channels)
        if scale != (2 if i == last else 1) or taps_of(weight) == 1:
            refuse(_NAME, f"weights[{i}]", weight, "3x3, packed with upsample the last one alone")
        channels = len(bias) // 2 if glu else len(bias)
        if not glu and channels != len(mix):
            refuse(_NAME, f"biases[{i}]", bias, f"shape ({len(mix)},), as many as mix gives")
    if head_weight is not None and head_bias is not None:
        if check_packed(_NAME, features, head_weight, head_bias, glu=False, channels=channels) != 1:
            refuse(_NAME, "head_weight", head_weight, "packed without upsample")
        channels = len(head_bias)
    return channels


@inference_op(_NAME)
def _op(
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None,
    sentence_weight: Tensor | None,
    mix: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    head_weight: Tensor | None,
    head_bias: Tensor | None,
    out: Tensor,
) -> None:
    # The CPU implementation is csrc/cpu/glam_stage.cpp.
    given = (features, words, mask, sentence, sentence_weight, mix)
    out.copy_(reference(*given, weights, biases, head_weight, head_bias))
