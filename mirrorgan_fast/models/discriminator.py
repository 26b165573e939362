"""D_i, the discriminator of one stage: is the image real, and does it match the sentence?"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.models.config import CascadeConfig, Norm
from mirrorgan_fast.models.layers import BatchNormLeakyReLU, Conv2d, initialize
from mirrorgan_fast.ops import conv2d


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
        return self.conditionals(features, [sentence])[0]

    def conditionals(self, features: Tensor, sentences: Sequence[Tensor]) -> list[Tensor]:
        """Do what ``conditional`` does for several sentences of each image, in less time.

        ``joint`` maps the features beside the sentence, which is the same at every pixel. It is
        linear, so the features' part is computed once for all sentences, and the sentence's part
        from the sums of the kernel's taps that are inside the map.

        Args:
            features: (N, 8 DF, 4, 4), of N images.
            sentences: each (N, D).
        """
        convolution, activation = self.joint[0], self.joint[1]
        assert isinstance(convolution, Conv2d)
        channels = features.shape[1]
        kernel, bias = convolution.weight, convolution.bias
        of_image = conv2d(features, kernel[:, :channels], bias, padding=1)
        taps_of_channels = kernel[:, channels:].permute(0, 2, 3, 1).flatten(0, 2)  # (8 DF 9, D)
        inside = functional.unfold(features.new_ones(1, 1, *features.shape[2:]), 3, padding=1)[0]
        logits = []
        for sentence in sentences:
            taps = functional.linear(sentence, taps_of_channels).unflatten(1, (-1, len(inside)))
            of_sentence = (taps @ inside).view_as(of_image)
            joint = activation(of_image + of_sentence)
            logits.append(self.conditional_logit(joint).flatten())
        return logits


def _convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int, norm: Norm
) -> nn.Sequential:
    batch = norm == "batch"
    return nn.Sequential(
        Conv2d(in_channels, out_channels, kernel, stride=stride, padding=1, bias=not batch),
        BatchNormLeakyReLU(out_channels) if batch else nn.LeakyReLU(0.2, inplace=True),
    )
