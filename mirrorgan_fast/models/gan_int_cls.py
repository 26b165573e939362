"""GAN-INT-CLS (Reed et al., 2016): one stage, a matching-aware discriminator, mixed sentences."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.models.config import GanIntClsConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.glam import Generated
from mirrorgan_fast.models.layers import (
    BatchNormLeakyReLU,
    BatchNormReLU,
    Bottleneck,
    Conv2d,
    SentenceLinear,
    initialize_normally,
    transposed_up,
)
from mirrorgan_fast.models.text_to_image import TextToImage
from mirrorgan_fast.vocabulary import Vocabulary

SLOPE = BatchNormLeakyReLU.SLOPE


class GanIntCls(TextToImage):
    """A text encoder and a generator of one stage, ``G``.

    DAMSM's image encoder has no part in its training; with it, the text encoder was trained, and
    R-precision is measured.
    """

    SYSTEM = "gan-int-cls"
    CONFIG = GanIntClsConfig
    GENERATOR = "G"
    config: GanIntClsConfig

    def __init__(self, config: GanIntClsConfig, vocabulary: Vocabulary) -> None:
        super().__init__(config, vocabulary)
        self.G = GanIntClsGenerator(config)
        self.image_encoder = DAMSMImageEncoder(config)


class GanIntClsGenerator(nn.Module):
    """z and the projected sentence to a 4x4 map, and transposed convolutions to the image.

    As in the authors' code, a bottleneck follows the first two maps, which the paper lacks.
    """

    def __init__(self, config: GanIntClsConfig) -> None:
        super().__init__()
        ngf = config.generator_channels
        doublings = config.image_size.bit_length() - 3  # from 4 pixels on
        channels = ngf << (doublings - 1)
        self.project = SentenceLinear(config.embedding_size, config.condition_size)
        self.first = nn.ConvTranspose2d(
            config.noise_size + config.condition_size, channels, 4, bias=False
        )
        self.first_norm = nn.BatchNorm2d(channels)
        self.first_bottleneck = Bottleneck(channels, max(1, channels // 4), 0.0)
        self.second = transposed_up(channels, channels // 2)
        self.second_norm = nn.BatchNorm2d(channels // 2)
        channels //= 2
        self.second_bottleneck = Bottleneck(channels, max(1, channels // 4), 0.0)
        self.upsample = nn.Sequential()
        while channels > ngf:
            self.upsample.extend(
                [transposed_up(channels, channels // 2), BatchNormReLU(channels // 2)]
            )
            channels //= 2
        self.image = nn.Sequential(transposed_up(channels, 3), nn.Tanh())
        initialize_normally(self, linear=False)

    def forward(
        self,
        noise: Tensor,  # (N, noise)
        words: Tensor,  # (N, T, D)
        mask: Tensor,  # (N, T)
        sentence: Tensor,  # (N, D)
    ) -> Generated:
        """Generate images.

        Args:
            noise: z, standard normal.
            words: not used.
            mask: not used.
            sentence: s from STEM, or a mixture of two sentences.

        Returns:
            the images, and no statistics: there is no conditioning augmentation.
        """
        t = functional.leaky_relu(self.project(sentence), SLOPE)
        both = torch.cat([noise.to(t.dtype), t], dim=1)
        x = self.first_bottleneck(self.first_norm(self.first(both[:, :, None, None])))
        x = self.second_bottleneck(self.second_norm(self.second(x)))
        none = sentence[:, :0]
        return Generated([self.image(self.upsample(x))], none, none)


class GanIntClsDiscriminator(nn.Module):
    """Strided convolutions to 4x4, joined with the projected sentence, to one logit of the pair.

    As in the authors' code for birds, but with the leaky ReLU after its third convolution that is
    missing there.
    """

    def __init__(self, config: GanIntClsConfig) -> None:
        super().__init__()
        channels, size = config.discriminator_channels, config.image_size // 2
        self.features = nn.Sequential(
            nn.Conv2d(3, channels, 4, stride=2, padding=1, bias=False), nn.LeakyReLU(SLOPE)
        )
        while size > 4:
            self.features.append(Conv2d(channels, channels * 2, 4, stride=2, padding=1, bias=False))
            channels, size = channels * 2, size // 2
            last = size == 4
            self.features.append(nn.BatchNorm2d(channels) if last else BatchNormLeakyReLU(channels))
        self.features.append(Bottleneck(channels, max(1, channels // 4), SLOPE))
        self.project = nn.Sequential(
            nn.Linear(config.embedding_size, config.condition_size),
            nn.BatchNorm1d(config.condition_size),
            nn.LeakyReLU(SLOPE),
        )
        self.joint = nn.Sequential(
            Conv2d(channels + config.condition_size, channels, 1, bias=False),
            BatchNormLeakyReLU(channels),
        )
        self.logit = nn.Conv2d(channels, 1, 4, bias=False)
        initialize_normally(self, linear=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (N, 3, S, S) to features (N, C, 4, 4), which ``conditional`` needs."""
        features: Tensor = self.features(image)
        return features

    def conditional(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Return the logits (N,) that images are real and fit ``sentence`` (N, D)."""
        t = self.project(sentence)[:, :, None, None].expand(-1, -1, *features.shape[2:])
        logit: Tensor = self.logit(self.joint(torch.cat([features, t.to(features.dtype)], dim=1)))
        return logit.flatten()
