"""Weights of layers for the inference ops: with batch norms folded in, and packed."""

from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from mirrorgan_fast.models.glam import FirstTransformer
from mirrorgan_fast.models.layers import BatchNormActivation, ReLUUpBlock, UpBlock
from mirrorgan_fast.models.stackgan import Stage1Generator
from mirrorgan_fast.ops import (
    Layout,
    PackedLayer,
    conv_add,
    conv_glu,
    conv_relu,
    instruction_set,
    pack,
    pack_transposed,
)

BF16 = torch.bfloat16
_MULTIPLY_BF16 = ("amx", "avx512_bf16")  # instruction sets


def fastest_dtype(device: str = "cpu") -> torch.dtype:
    """Return the data type in which a fused generator is fastest on a device of this type."""
    narrow = device == "cuda" or (device == "cpu" and instruction_set() in _MULTIPLY_BF16)
    return BF16 if narrow else torch.float32


class Packing(NamedTuple):
    """How the weights of a generator's layers are packed."""

    dtype: torch.dtype
    layout: Layout | None

    @classmethod
    def of(cls, generator: nn.Module, dtype: torch.dtype | None, layout: Layout | None) -> Self:
        """Return how a generator's weights are packed, by default in its device's fastest dtype."""
        device = next(generator.parameters()).device.type
        return cls(fastest_dtype(device) if dtype is None else dtype, layout)

    def packed(
        self,
        weight: Tensor,  # (N, C, h, w), or (N, C) of a linear layer
        bias: Tensor | None,  # (N,)
        *,
        glu: bool = False,
        upsample: bool = False,
    ) -> PackedLayer:
        """Pack a layer."""
        weight = weight.detach() if weight.dim() == 4 else weight.detach()[:, :, None, None]
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        packed = pack(weight, glu=glu, upsample=upsample, dtype=self.dtype, layout=self.layout)
        return PackedLayer(packed, bias.float().clone())

    def transposed(self, conv: nn.Module, norm: nn.Module | None = None) -> PackedLayer:
        """Pack a transposed 4x4 convolution with stride 2, with the batch norm behind it.

        Before a batch norm it has no bias.
        """
        assert isinstance(conv, nn.ConvTranspose2d)
        weight, bias = conv.weight.detach(), conv.bias
        if bias is None:
            bias = conv.weight.new_zeros(conv.out_channels)
        if norm is not None:
            scale, bias = scale_and_bias(norm)
            weight = weight * scale[:, None, None]
        packed = pack_transposed(weight, dtype=self.dtype, layout=self.layout)
        return PackedLayer(packed, bias.detach().float().clone())

    def image(self, generator: nn.Module) -> PackedLayer:
        """Pack the convolution of an image generator."""
        conv = next(generator.children())
        assert isinstance(conv, nn.Conv2d)
        return self.packed(conv.weight, None)

    def up_conv(self, block: nn.Module) -> PackedLayer:
        """Pack an up-block, with a GLU or a ReLU."""
        assert isinstance(block, UpBlock | ReLUUpBlock)
        return self.packed(*folded(*block), glu=isinstance(block, UpBlock), upsample=True)

    def first_linear(self, first: FirstTransformer | Stage1Generator) -> PackedLayer:
        """Pack a first stage's linear layer, with its outputs in the order of a channels_last map.

        Before a GLU there are two such maps, one after the other.
        """

        def channels_last(rows: Tensor) -> Tensor:
            maps: Tensor = rows.unflatten(0, (-1, first.channels, 4 * 4))
            return maps.transpose(1, 2).flatten(0, 2)

        weight, bias = map(channels_last, folded(first.linear, first.norm))
        return self.packed(weight, bias, glu=isinstance(first, FirstTransformer))


def folded(
    layer: nn.Module,  # without a bias
    norm: nn.Module,
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a layer with the following batch norm folded in."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    scale, bias = scale_and_bias(norm)
    return layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1)), bias


def scale_and_bias(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the factor of each channel (C,) that a batch norm is in inference, and its bias."""
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | BatchNormActivation)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


class FusedLayer(NamedTuple):
    """A convolution, or a linear layer, with what follows it, as one op."""

    packed: PackedLayer
    activation: Literal["none", "glu", "relu"] = "none"

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map a channels_last map (N, C, H, W) to another one.

        ``residual``, if it is given, is added before the activation; there is none with a GLU.
        """
        if self.activation == "glu":
            return conv_glu(x, *self.packed)
        if self.activation == "relu":
            return conv_relu(x, *self.packed, residual)
        return conv_add(x, *self.packed, residual)

    def of_rows(self, x: Tensor) -> Tensor:
        """Map (N, C) to (N, C'): the rows are the pixels of one map."""
        y = self(x.reshape(1, len(x), 1, x.shape[1]).permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1).reshape(y.shape[2], y.shape[1])
