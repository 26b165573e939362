"""A whole stage of MirrorGAN's generator, f_i = F_i(F_att_i(f_{i-1}, w, s_ca)), or its image.

A stage is attention and mix, residual blocks, an up-block and, for the image, an image head. Each
is also an op by itself. Between the layers of a stage of 128 px, writing the feature maps to memory
and reading them again takes as long as computing all products. So this op takes a few rows at a
time through all layers, while they are in the cache.
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
    head_weight: Tensor | None = None,  # packed, for 3 output channels
    head_bias: Tensor | None = None,  # (3,)
    out: Tensor | None = None,  # (N, C'', 2H, 2W) or (N, 2H, 2W, 3)
    memory: KeptMemory | None = None,
) -> Tensor:
    """Run attention, mix, residual blocks and up-block, and the image head if there is one.

    For inference: if a gradient is needed, the reference runs. If the whole stage cannot run as one
    op, its ops run one by one and give the same bits.

    Args:
        features: f_{i-1}. This and the arguments up to ``mix`` are those of `glam_attention_mix`.
        words: U w.
        mask: True at real words.
        sentence: V s_ca, or None.
        sentence_weight: M of the authors' form, or None.
        mix: Weight of the 1x1 convolution.
        weights: From ``pack``: for each residual block that of its `conv_glu` and that of its
            `conv_add`, then that of the up-block's `conv_glu`.
        biases: One for each weight.
        head_weight: For `image_head`. None: the result is f_i.
        head_bias: For `image_head`.
        out: Where to write the result. None: a new tensor is made.
        memory: For the maps between the ops if they run one by one. None: new maps are made.

    Returns:
        ``out``: f_i, channels_last and in the data type of ``features``; or images, uint8.

    Raises:
        InputError: As the ops of the stage, or the lists do not match.
    """
    if len(weights) % 2 == 0 or len(weights) != len(biases):
        raise InputError(
            f"{_NAME}: weights: found {len(weights)} and {len(biases)} biases, wanted two for each "
            f"block and one for the up-block, and as many biases"
        )
    if (head_weight is None) != (head_bias is None):
        raise InputError(
            f"{_NAME}: head_bias: found only one of head_weight and head_bias, wanted both"
        )
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
    if choice.implementation == REFERENCE or not runs_as_one_op(
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
    """Define `glam_stage` in plain PyTorch. Same arguments, not checked."""
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
    """Run the ops of a stage one by one, each in its fastest implementation."""

    def map_for(name: str, like: Tensor, channels: int, scale: int = 1) -> Tensor | None:
        return None if memory is None else memory.map(name, len(like), like, channels, scale)

    x = glam_attention_mix(*attention, out=map_for("x", attention[0], len(attention[-1])))
    *blocks, up = layers
    for glu, add in zip(blocks[::2], blocks[1::2], strict=True):
        hidden = conv_glu(x, *glu, out=map_for("hidden", x, len(glu[1]) // 2))
        x = conv_add(hidden, *add, x, out=x)
    if head is None:
        return conv_glu(x, *up, out=out)
    f = conv_glu(x, *up, out=map_for("f", x, len(up[1]) // 2, scale=2))
    return image_head(f, *head, out=out)


def runs_as_one_op(
    width: int,
    mix: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    head_bias: Tensor | None,
) -> bool:
    """Return whether the compiled op accepts a stage of these sizes.

    It does if the up-block's weights are packed in four phases, all weights are in tiles, no tile
    is padded, the residual blocks keep the number of channels, and the image has at most four.
    """
    if weights[-1].shape[0] != 4 or not all(map(in_tiles, weights)):
        return False
    *hidden, last = (len(bias) // 2 for bias in biases[::2])
    if any(n != len(mix) for n in hidden):
        return False
    image_channels = 0 if head_bias is None else len(head_bias)
    return width % 16 == 0 and len(mix) % 32 == 0 and last % 32 == 0 and image_channels <= 4


def _check(
    attention: _Attention,
    weights: list[Tensor],
    biases: list[Tensor],
    head_weight: Tensor | None,
    head_bias: Tensor | None,
) -> int:
    """Check that each layer accepts the result of the previous one; return the last channels."""
    check_attention_mix(_NAME, *attention)
    features, mix = attention[0], attention[-1]
    channels, last = len(mix), len(weights) - 1
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        glu = i % 2 == 0
        scale = check_packed(_NAME, features, weight, bias, glu=glu, channels=channels)
        if scale != (2 if i == last else 1) or taps_of(weight) == 1:
            refuse(
                _NAME,
                f"weights[{i}]",
                weight,
                "a 3x3 convolution; only the last one is packed with upsample",
            )
        channels = len(bias) // 2 if glu else len(bias)
        if not glu and channels != len(mix):
            refuse(_NAME, f"biases[{i}]", bias, f"shape ({len(mix)},), the channels that mix gives")
    if head_weight is not None and head_bias is not None:
        if check_packed(_NAME, features, head_weight, head_bias, glu=False, channels=channels) != 1:
            refuse(_NAME, "head_weight", head_weight, "weights packed without upsample")
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
    attention = (features, words, mask, sentence, sentence_weight, mix)
    out.copy_(reference(*attention, weights, biases, head_weight, head_bias))
