"""Blocks of several generators, made of the inference ops."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.inference.packing import FusedLayer, Packing, folded, scale_and_bias
from mirrorgan_fast.models.layers import (
    Bottleneck,
    ConditioningAugmentation,
    ReLUConditioningAugmentation,
    ReLUResidualBlock,
    ResidualBlock,
)

_SIDE = 4  # height and width of the first map


def first_map(rows: Tensor) -> Tensor:
    """Return rows (N, 16 C), which are channels_last maps of 4x4 pixels, as maps (N, C, 4, 4)."""
    return rows.view(len(rows), _SIDE, _SIDE, -1).permute(0, 3, 1, 2)


class FusedAugmentation:
    """``layers.ConditioningAugmentation``, or StackGAN's own."""

    def __init__(self, packing: Packing, augment: ConditioningAugmentation) -> None:
        glu, linear = not isinstance(augment, ReLUConditioningAugmentation), augment.linear
        packed = packing.packed(linear.weight, linear.bias, glu=glu)
        self.linear = FusedLayer(packed, "glu" if glu else "relu")

    def __call__(self, sentence: Tensor, noise: Tensor) -> Tensor:
        """Map (N, D) and standard normal noise (N, condition) to s_ca (N, condition)."""
        mu, log_var = self.linear.of_rows(sentence).float().chunk(2, dim=1)
        return (mu + torch.exp(0.5 * log_var) * noise).to(sentence.dtype)


class FirstMap:
    """A transposed 4x4 convolution of one pixel, and batch norm: a linear layer of rows."""

    def __init__(
        self,
        packing: Packing,
        conv: nn.Module,
        norm: nn.Module,
        activation: Literal["none", "relu"] = "none",
    ) -> None:
        assert isinstance(conv, nn.ConvTranspose2d)
        scale, bias = scale_and_bias(norm)
        weight = conv.weight * scale[:, None, None]  # (C, C', 4, 4)
        rows = weight.permute(2, 3, 1, 0).flatten(0, 2)  # (16 C', C), in channels_last order
        packed = packing.packed(rows, bias.repeat(_SIDE * _SIDE))
        self.linear = FusedLayer(packed, activation)

    def __call__(self, x: Tensor) -> Tensor:
        """Map rows (N, C) to maps (N, C', 4, 4)."""
        return first_map(self.linear.of_rows(x))


class FusedResidual:
    """``layers.ResidualBlock``, or StackGAN's own."""

    def __init__(self, packing: Packing, residual: nn.Module) -> None:
        assert isinstance(residual, ResidualBlock | ReLUResidualBlock)
        first, first_norm, second, second_norm = residual.block
        glu = isinstance(residual, ResidualBlock)
        packed = packing.packed(*folded(first, first_norm), glu=glu)
        self.first = FusedLayer(packed, "glu" if glu else "relu")
        packed = packing.packed(*folded(second, second_norm))
        self.second = FusedLayer(packed, "none" if glu else "relu")

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return self.second(self.first(x), x)


class FusedBottleneck:
    """``layers.Bottleneck`` with ReLUs."""

    def __init__(self, packing: Packing, bottleneck: nn.Module) -> None:
        assert isinstance(bottleneck, Bottleneck)
        first, first_norm, second, second_norm, third, third_norm = bottleneck.block
        self.layers = [
            FusedLayer(packing.packed(*folded(conv, norm)), "relu")
            for conv, norm in ((first, first_norm), (second, second_norm), (third, third_norm))
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        first, second, third = self.layers
        return third(second(first(x)), x)


class FusedStrided:
    """A 4x4 convolution with stride 2, batch norm and ReLU: a product of each pixel's patch."""

    def __init__(self, packing: Packing, conv: nn.Module, norm: nn.Module) -> None:
        weight, bias = folded(conv, norm)  # (C', C, 4, 4)
        rows = weight.permute(0, 2, 3, 1).flatten(1)
        self.product = FusedLayer(packing.packed(rows, bias), "relu")

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / 2, W / 2)."""
        padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (N, H + 2, W + 2, C)
        patches = padded.unfold(1, 4, 2).unfold(2, 4, 2)  # (N, H / 2, W / 2, C, 4, 4)
        rows = patches.permute(0, 1, 2, 4, 5, 3).flatten(3)
        return self.product(rows.permute(0, 3, 1, 2))
