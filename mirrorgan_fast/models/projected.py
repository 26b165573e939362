"""A discriminator with a frozen CNN: Projected GAN (Sauer et al., 2021), with captions."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from mirrorgan_fast.models.backbones.efficientnet_lite import STRIDES, lite0
from mirrorgan_fast.models.config import CascadeConfig, Norm
from mirrorgan_fast.models.discriminator import Logits
from mirrorgan_fast.models.layers import convolution
from mirrorgan_fast.ops.wide import wide

INPUT_SIZE = 128
"""Pixels a side of the images that the CNN sees; others are resized."""
_MIXED = 64  # channels of the maps after mixing
_DOWN, _LAST = 96, 128  # channels of a head's maps, and of its last one
_LAST_SIZE = 4


class Judged(NamedTuple):
    """What the heads have computed of N images, before they are told a sentence."""

    maps: tuple[Tensor, ...]
    """Of each head, (N, 128, 4, 4)."""


class ProjectedDiscriminator(nn.Module):
    """Four heads on the maps of EfficientNet-Lite0 at strides 4, 8, 16 and 32.

    The maps are mixed across channels, and from coarse to fine, by random convolutions that never
    learn: without them, a head would look at the easiest channels alone (Sauer et al., section
    3.2). A head halves its map to 4 x 4 and has a logit at each place: one of the image alone, and
    one with a sentence, to which it adds the product of its features with the projected sentence
    (Miyato and Koyama, 2018).

    ``look`` is apart from the rest: what it does never learns, so that the maps of an image can be
    judged before and after the heads have learned.

    Args:
        config: ``discriminator_norm`` says whether the heads have batch norm.
    """

    def __init__(self, config: CascadeConfig) -> None:
        super().__init__()
        self.eyes = lite0()
        channels = self.eyes.map_channels
        self.across = nn.ModuleList(nn.Conv2d(each, _MIXED, 1) for each in channels)
        self.upward = nn.ModuleList(nn.Conv2d(_MIXED, _MIXED, 3, padding=1) for _ in channels)
        for layer in (*self.across, *self.upward):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.requires_grad_(False)
        self.heads = nn.ModuleList(
            _Head(INPUT_SIZE // stride, config.judged_size, config.discriminator_norm)
            for stride in STRIDES
        )

    def look(self, images: Tensor) -> list[Tensor]:
        """Return the mixed maps of images (N, 3, S, S) in [-1, 1], the finest first.

        Returns:
            for each stride, (N, 64, 128 / stride, 128 / stride).
        """
        if images.shape[2] != INPUT_SIZE:
            scaled = functional.interpolate(
                wide(images), size=INPUT_SIZE, mode="bilinear", antialias=True
            )
            images = scaled.to(images.dtype)
        mixed: list[Tensor] = []
        coarser: Tensor | None = None
        for map, across, upward in reversed(
            list(zip(self.eyes.maps(images), self.across, self.upward, strict=True))
        ):
            both = across(map)
            if coarser is not None:
                both = both + functional.interpolate(coarser, size=map.shape[2:], mode="bilinear")
            coarser = upward(both) * 0.5**0.5  # a sum of two would grow from map to map
            mixed.append(coarser)
        return mixed[::-1]

    def forward(self, maps: list[Tensor]) -> Judged:
        """Compute what ``judge`` needs from the maps that ``look`` returned."""
        both = zip(self._heads(), maps, strict=True)
        return Judged(tuple(head.features(each) for head, each in both))

    def judge(self, judged: Judged, sentence: Tensor) -> Logits:
        """Return both logits, (N, 64) each, of images for ``sentence`` (N, D)."""
        return Logits(self.unconditional(judged), self.conditional(judged, sentence))

    def unconditional(self, judged: Judged) -> Tensor:
        """Return the logits (N, 64) that images are real: four heads, 4 x 4 places each."""
        both = zip(self._heads(), judged.maps, strict=True)
        return torch.cat([head.logits(each).flatten(1) for head, each in both], dim=1)

    def conditional(self, judged: Judged, sentence: Tensor) -> Tensor:
        """Return the logits (N, 64) that they are real and fit ``sentence`` (N, D)."""
        # STEM's sentences may have any length (``gan.sentence_gain``)
        direction = functional.normalize(wide(sentence), dim=1) * sentence.shape[1] ** 0.5
        both = zip(self._heads(), judged.maps, strict=True)
        return torch.cat([head.logits(each, direction).flatten(1) for head, each in both], dim=1)

    def _heads(self) -> Iterator["_Head"]:
        for head in self.heads:
            assert isinstance(head, _Head)
            yield head


class _Head(nn.Module):
    def __init__(self, size: int, sentence_size: int, norm: Norm) -> None:
        super().__init__()
        self.features = nn.Sequential()
        channels = _MIXED
        while size > _LAST_SIZE:
            self.features.append(_normalized(channels, _DOWN, 4, norm, stride=2))
            channels, size = _DOWN, size // 2
        self.features.append(_normalized(channels, _LAST, 3, norm, stride=1))
        self.logit = spectral_norm(nn.Conv2d(_LAST, 1, 1))
        self.projection = spectral_norm(nn.Linear(sentence_size, _LAST, bias=False))

    def logits(self, features: Tensor, sentence: Tensor | None = None) -> Tensor:
        """Map features (N, 128, 4, 4), and sentences (N, D) if there are any, to (N, 1, 4, 4)."""
        logits: Tensor = self.logit(features)
        if sentence is None:
            return logits
        projected: Tensor = self.projection(sentence)
        product = (features * projected[:, :, None, None]).sum(dim=1, keepdim=True)
        return logits + product * float(_LAST**-0.5)


def _normalized(
    in_channels: int, channels: int, kernel: int, norm: Norm, *, stride: int
) -> nn.Sequential:
    """Return a convolution with spectral norm, its norm and a leaky ReLU."""
    layers = convolution(in_channels, channels, kernel, norm, stride=stride, padding=1)
    spectral_norm(layers[0])
    return layers
