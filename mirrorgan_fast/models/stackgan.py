"""StackGAN (Zhang et al., 2017): a first stage draws a small image, a second one refines it."""

import torch
from torch import Tensor, nn

from mirrorgan_fast.models.config import StackGANConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.glam import Generated, ImageGenerator
from mirrorgan_fast.models.layers import (
    BatchNormReLU,
    Conv2d,
    ReLUConditioningAugmentation,
    ReLUResidualBlock,
    ReLUUpBlock,
    initialize_normally,
)
from mirrorgan_fast.models.text_to_image import TextToImage
from mirrorgan_fast.vocabulary import Vocabulary


class StackGAN(TextToImage):
    """A text encoder, and a generator of two stages that are trained one after the other.

    ``G`` is the generator. DAMSM's image encoder has no part in its training; with it, the text
    encoder was trained, and R-precision is measured. A model with the text "vectors" has neither:
    its sentences are made elsewhere (see ``StackGANConfig.text``), and its vocabulary is empty but
    for "<end>".
    """

    SYSTEM = "stackgan"
    CONFIG = StackGANConfig
    GENERATOR = "G"
    config: StackGANConfig

    def __init__(self, config: StackGANConfig, vocabulary: Vocabulary) -> None:
        super().__init__(config, vocabulary)
        self.G = StackGANGenerator(config)
        if config.text == "stem":
            self.image_encoder = DAMSMImageEncoder(config)


class StackGANGenerator(nn.Module):
    """I_0 = G_0(z, c_0), I = G(I_0, c): c_0 and c are the sentence, augmented for each stage."""

    def __init__(self, config: StackGANConfig) -> None:
        super().__init__()
        self.stage1 = Stage1Generator(config)
        self.stage2 = Stage2Generator(config) if config.stages == 2 else None
        initialize_normally(self)

    def forward(
        self,
        noise: Tensor,  # (N, noise)
        condition_noise: Tensor,  # (N, stages condition)
        words: Tensor,  # (N, T, D)
        mask: Tensor,  # (N, T)
        sentence: Tensor,  # (N, D)
    ) -> Generated:
        """Generate the images of all stages.

        Args:
            noise: z, standard normal.
            condition_noise: eps of each stage's conditioning augmentation, standard normal.
            words: not used.
            mask: not used.
            sentence: s from STEM, or a text vector.

        Returns:
            the images, and mu and log sigma^2 of the last stage.
        """
        eps = condition_noise.chunk(1 if self.stage2 is None else 2, dim=1)
        first = self.stage1(noise, eps[0], sentence)
        if self.stage2 is None:
            return Generated([first.images[0]], first.mu, first.log_var)
        image, mu, log_var = self.stage2(first.images[0], eps[1], sentence)
        return Generated([first.images[0], image], mu, log_var)


class Stage1Generator(nn.Module):
    """G_0: noise and condition to a 4x4 map, and up-blocks to the first image."""

    def __init__(self, config: StackGANConfig) -> None:
        super().__init__()
        channels = config.generator_channels // 2
        blocks = config.first_size.bit_length() - 3  # from 4 pixels on
        self.channels = channels << blocks
        self.augment = ReLUConditioningAugmentation(config)
        in_size, out_size = config.noise_size + config.condition_size, self.channels * 4 * 4
        self.linear = nn.Linear(in_size, out_size, bias=False)
        self.norm = nn.BatchNorm1d(out_size)
        self.upsample = nn.Sequential(
            *(ReLUUpBlock(self.channels >> i, self.channels >> (i + 1)) for i in range(blocks))
        )
        self.image = ImageGenerator(channels)

    def forward(
        self,
        noise: Tensor,  # (N, noise)
        condition_noise: Tensor,  # (N, condition)
        sentence: Tensor,  # (N, D)
    ) -> Generated:
        """Return I_0 (N, 3, S_0, S_0) with mu and log sigma^2 of its condition."""
        c, mu, log_var = self.augment(sentence, condition_noise)
        x = self.norm(self.linear(torch.cat([noise.to(c.dtype), c], dim=1))).relu()
        image = self.image(self.upsample(x.unflatten(1, (self.channels, 4, 4))))
        return Generated([image], mu, log_var)


class Stage2Generator(nn.Module):
    """G: the first image to features of a quarter of its size, joined with c, to the image."""

    def __init__(self, config: StackGANConfig) -> None:
        super().__init__()
        channels = config.generator_channels
        self.augment = ReLUConditioningAugmentation(config)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            Conv2d(channels, channels * 2, 4, stride=2, padding=1, bias=False),
            BatchNormReLU(channels * 2),
            Conv2d(channels * 2, channels * 4, 4, stride=2, padding=1, bias=False),
            BatchNormReLU(channels * 4),
        )
        channels *= 4
        self.join = nn.Sequential(
            Conv2d(channels + config.condition_size, channels, 3, padding=1, bias=False),
            BatchNormReLU(channels),
        )
        self.residual = nn.Sequential(
            *(ReLUResidualBlock(channels) for _ in range(config.residual_blocks))
        )
        blocks = (4 * config.image_size // config.first_size).bit_length() - 1
        self.upsample = nn.Sequential(
            *(ReLUUpBlock(channels >> i, channels >> (i + 1)) for i in range(blocks))
        )
        self.image = ImageGenerator(channels >> blocks)

    def forward(
        self,
        image: Tensor,  # (N, 3, S_0, S_0)
        condition_noise: Tensor,  # (N, condition)
        sentence: Tensor,  # (N, D)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return I (N, 3, S, S), mu and log sigma^2 of its condition."""
        c, mu, log_var = self.augment(sentence, condition_noise)
        features = self.encoder(image)
        c_map = c.to(features.dtype)[:, :, None, None].expand(-1, -1, *features.shape[2:])
        joined = self.join(torch.cat([features, c_map], dim=1))
        return self.image(self.upsample(self.residual(joined))), mu, log_var
