"""D_i, the discriminator of one stage: is the image real, and does it match the sentence?"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mirrorgan_fast.models.config import CascadeConfig, Norm
from mirrorgan_fast.models.layers import BatchNormLeakyReLU, Conv2d, initialize


class Logits(NamedTuple):
    """How real D_i finds N images: below 0 generated, above 0 of the data set."""

    unconditional: Tensor
    """(N,), of the images alone."""
    conditional: Tensor
    """(N,), of the images with a sentence each."""


class Discriminator(nn.Module):
    """Strided convolutions down to 4x4, then an unconditional and a conditional logit.

    Both logits are computed from the same features, which are computed once for an image and can be
    judged with several sentences (its own and wrong ones).

    ``config.discriminator_norm`` says whether the convolutions are followed by batch norm, as in
    the authors' code, or have a bias, in which case each image is judged on its own.
    """

    def __init__(self, config: CascadeConfig, image_size: int) -> None:
        super().__init__()
        channels = config.discriminator_channels
        norm = config.discriminator_norm
        self.features = nn.Sequential(
            nn.Conv2d(3, channels, 4, stride=2, padding=1, bias=norm == "none"),
            nn.LeakyReLU(0.2, inplace=True),
        )
        size = image_size // 2
        while size > 4:
            self.features.append(_convolution(channels, channels * 2, 4, 2, norm))
            channels, size = channels * 2, size // 2
        while channels > config.discriminator_channels * 8:
            self.features.append(_convolution(channels, channels // 2, 3, 1, norm))
            channels //= 2
        self.unconditional_logit = nn.Conv2d(channels, 1, 4)
        self.joint = _convolution(channels + config.embedding_size, channels, 3, 1, norm)
        self.conditional_logit = nn.Conv2d(channels, 1, 4)
        # Without a norm, the scale of the weights keeps the signal's size from layer to layer.
        initialize(self, gain=1.0 if norm == "batch" else nn.init.calculate_gain("leaky_relu", 0.2))

    def forward(self, image: Tensor) -> Tensor:
        """Return the features (N, 8 DF, 4, 4) of an image (N, 3, S, S) in [-1, 1]."""
        features: Tensor = self.features(image)
        return features

    def judge(self, features: Tensor, sentence: Tensor) -> Logits:
        """Return both logits of images with these ``features``, for ``sentence`` (N, D)."""
        return Logits(self.unconditional(features), self.conditional(features, sentence))

    def unconditional(self, features: Tensor) -> Tensor:
        """Return the logits (N,) that images with these ``features`` are real."""
        logits: Tensor = self.unconditional_logit(features)
        return logits.flatten()

    def conditional(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Return the logits (N,) that they are real and fit ``sentence`` (N, D)."""
        sentence_map = sentence[:, :, None, None].expand(-1, -1, *features.shape[2:])
        joint = self.joint(torch.cat([features, sentence_map], dim=1))
        logits: Tensor = self.conditional_logit(joint)
        return logits.flatten()


def _convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int, norm: Norm
) -> nn.Module:
    batch = norm == "batch"
    return nn.Sequential(
        Conv2d(in_channels, out_channels, kernel, stride=stride, padding=1, bias=not batch),
        BatchNormLeakyReLU(out_channels) if batch else nn.LeakyReLU(0.2, inplace=True),
    )
