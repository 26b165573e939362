"""D_i, the discriminator of one stage: is the image real, and does it match the sentence?"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.models.config import TextToImageConfig
from mirrorgan_fast.models.layers import BatchNormLeakyReLU, Conv2d, convolution, initialize
from mirrorgan_fast.ops import conv2d


class Logits(NamedTuple):
    """How real D_i finds N images: below 0 generated, above 0 of the data set."""

    unconditional: Tensor
    """(N,), of the images alone."""
    conditional: Tensor
    """(N,), of the images with a sentence each."""


class Seen(NamedTuple):
    """What D_i has computed of N images, before it is told a sentence."""

    features: Tensor
    """(N, 8 DF, 4, 4)."""
    joint: Tensor
    """(N, 8 DF, 4, 4), the features' part of the convolution that also sees the sentence."""

    def chunk(self, parts: int) -> list["Seen"]:
        """Return the parts of a batch."""
        chunks = (tensor.chunk(parts) for tensor in self)
        return [Seen(*each) for each in zip(*chunks, strict=True)]


class Discriminator(nn.Module):
    """Strided convolutions down to 4x4, then an unconditional and a conditional logit.

    Both logits are computed from the same features, which are computed once for an image and can be
    judged with several sentences (its own and wrong ones).

    ``config.discriminator_norm`` says whether the convolutions are followed by batch norm, as in
    the authors' code, or have a bias, in which case each image is judged on its own.

    Args:
        config: the sizes of the networks.
        image_size: of the images, in pixels.
        unconditional: whether there is a logit of the image alone.
    """

    def __init__(
        self, config: TextToImageConfig, image_size: int, *, unconditional: bool = True
    ) -> None:
        super().__init__()
        channels = config.discriminator_channels
        norm = config.discriminator_norm
        self.features = nn.Sequential(
            nn.Conv2d(3, channels, 4, stride=2, padding=1, bias=norm == "none"),
            nn.LeakyReLU(0.2, inplace=True),
        )
        size = image_size // 2
        while size > 4:
            self.features.append(convolution(channels, channels * 2, 4, norm, stride=2, padding=1))
            channels, size = channels * 2, size // 2
        while channels > config.discriminator_channels * 8:
            self.features.append(convolution(channels, channels // 2, 3, norm, padding=1))
            channels //= 2
        if unconditional:
            self.unconditional_logit = nn.Conv2d(channels, 1, 4)
        self.joint = convolution(channels + config.judged_size, channels, 3, norm, padding=1)
        self.conditional_logit = nn.Conv2d(channels, 1, 4)
        # Without a norm, the scale of the weights keeps the signal's size from layer to layer.
        initialize(self, gain=1.0 if norm == "batch" else nn.init.calculate_gain("leaky_relu", 0.2))

    def forward(
        self,
        image: Tensor,  # (N, 3, S, S)
        parts: int = 1,
    ) -> Seen:
        """Look at images.

        Args:
            image: values in [-1, 1].
            parts: how many equal batches these are, one after the other. Batch norm takes the
                statistics of each alone. One convolution of all takes less time than one of each:
                a wide kernel is read once.

        Returns:
            what ``judge`` needs.
        """
        x = image
        for layer in self.features:
            x = _in_parts(layer, x, parts)
        convolution = self.joint[0]
        assert isinstance(convolution, Conv2d)
        kernel = convolution.weight[:, : x.shape[1]]
        return Seen(x, conv2d(x, kernel, convolution.bias, padding=1))

    def judge(self, seen: Seen, sentence: Tensor) -> Logits:
        """Return both logits of images that were ``seen``, for ``sentence`` (N, D)."""
        return Logits(self.unconditional(seen), self.conditional(seen, sentence))

    def unconditional(self, seen: Seen) -> Tensor:
        """Return the logits (N,) that images are real."""
        logits: Tensor = self.unconditional_logit(seen.features)
        return logits.flatten()

    def conditional(self, seen: Seen, sentence: Tensor) -> Tensor:
        """Return the logits (N,) that they are real and fit ``sentence`` (N, D).

        The joint convolution sees the sentence at every pixel. It is linear, so the sentence's part
        is computed apart, from the sums of the kernel's taps that are inside the map.
        """
        convolution, activation = self.joint[0], self.joint[1]
        assert isinstance(convolution, Conv2d)
        kernel = convolution.weight[:, seen.features.shape[1] :]
        of_channels = kernel.permute(0, 2, 3, 1).flatten(0, 2)  # (8 DF 9, D)
        ones = seen.joint.new_ones(1, 1, *seen.joint.shape[2:])
        inside = functional.unfold(ones, kernel.shape[2:], padding=1)[0]  # (9, 16)
        taps = functional.linear(sentence, of_channels).unflatten(1, (-1, len(inside)))
        of_sentence = (taps @ inside).view_as(seen.joint)
        logits: Tensor = self.conditional_logit(activation(seen.joint + of_sentence))
        return logits.flatten()


def _in_parts(layer: nn.Module, x: Tensor, parts: int) -> Tensor:
    """Apply a layer, with batch norm on each of the equal parts of the batch alone."""
    if isinstance(layer, nn.Sequential):
        for each in layer:
            x = _in_parts(each, x, parts)
        return x
    if isinstance(layer, BatchNormLeakyReLU) and parts > 1:
        return torch.cat([layer(part) for part in x.chunk(parts)])
    mapped: Tensor = layer(x)
    return mapped
