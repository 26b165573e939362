"""CycleGAN (Zhu et al., 2017): images of one domain to those of another, learned without pairs."""

import os
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import CycleGANConfig
from mirrorgan_fast.models.layers import Conv2d, initialize_normally
from mirrorgan_fast.ops import instance_norm
from mirrorgan_fast.weights import CONFIG, load_pretrained, save_description, save_tensors

SLOPE = 0.2


class CycleGAN(nn.Module):
    """Two generators, G: X -> Y and F: Y -> X."""

    SYSTEM: ClassVar[str] = "cyclegan"
    """The system's name, which config.json has."""
    CONFIG = CycleGANConfig

    def __init__(self, config: CycleGANConfig) -> None:
        super().__init__()
        self.config = config
        self.G, self.F = ResNetGenerator(config), ResNetGenerator(config)

    def to_domain(self, name: str) -> "ResNetGenerator":
        """Return the generator of images of a domain, from those of the other one.

        Raises:
            InputError: the model has no domain of this name.
        """
        config = self.config
        if name not in (config.x, config.y):
            raise InputError(
                f"the model translates to {config.x!r} and to {config.y!r}, not to {name!r:.80}"
            )
        return self.G if name == config.y else self.F

    def save_pretrained(
        self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32
    ) -> None:
        """Write config.json and model.safetensors into ``folder``.

        Args:
            folder: made if need be.
            dtype: of the weights in the file; float16 halves it.

        Raises:
            InputError: the folder cannot be written.
        """
        save_description(folder, self.SYSTEM, self.config)
        save_tensors(folder, self.state_dict(), dtype)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str]) -> Self:
        """Load a model for inference: one that comes with the package, or a folder.

        Raises:
            InputError: there is no such model, its system is another, or one of its files is
                missing, damaged or from a newer version.
        """
        return load_pretrained(
            name_or_path,
            cls.SYSTEM,
            lambda folder, sizes: cls(cls.CONFIG.from_dict(sizes, folder / CONFIG)),
        )


class ResNetGenerator(nn.Module):
    """A generator: two convolutions down, residual blocks, two transposed convolutions up.

    In the names of the paper: c7s1-64, d128, d256, R256 for each block, u128, u64, c7s1-3. Between
    two convolutions is one ``instance_norm``, which also pads for the next one.
    """

    def __init__(self, config: CycleGANConfig) -> None:
        super().__init__()
        ngf = config.generator_channels
        self.first = Conv2d(3, ngf, 7)
        self.down = nn.ModuleList(
            Conv2d(channels, channels * 2, 3, stride=2, padding=1) for channels in (ngf, ngf * 2)
        )
        self.blocks = nn.ModuleList(
            ResidualBlock(ngf * 4, last=i == config.residual_blocks - 1)
            for i in range(config.residual_blocks)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(channels, channels // 2, 3, stride=2, padding=1, output_padding=1)
            for channels in (ngf * 4, ngf * 2)
        )
        self.last = nn.Conv2d(ngf, 3, 7)
        initialize_normally(self)

    def forward(self, image: Tensor) -> Tensor:
        """Translate images.

        Args:
            image: (N, 3, H, W) in [-1, 1]; H and W are multiples of 4, at least 8.

        Returns:
            images (N, 3, H, W) in [-1, 1].
        """
        x = instance_norm(self.first(functional.pad(image, (3,) * 4, mode="reflect")), slope=0.0)
        first, second = self.down
        x = instance_norm(first(x), slope=0.0)
        x = instance_norm(second(x), slope=0.0, padding=1)
        for block in self.blocks:
            x = block(x)
        first, second = self.up
        x = instance_norm(first(x), slope=0.0)
        x = instance_norm(second(x), slope=0.0, padding=3)
        translated: Tensor = torch.tanh(self.last(x))
        return translated


class ResidualBlock(nn.Module):
    """x + IN(conv(ReLU(IN(conv(x))))), with reflection padding and no ReLU behind the sum.

    Args:
        channels: of its maps.
        last: whether its result is not padded for another block.
    """

    def __init__(self, channels: int, *, last: bool) -> None:
        super().__init__()
        self.first, self.second = Conv2d(channels, channels, 3), Conv2d(channels, channels, 3)
        self.padding = 0 if last else 1

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H + 2, W + 2), padded by 1 pixel, to the same shape; the last block unpads."""
        inner = instance_norm(self.first(x), slope=0.0, padding=1)
        return instance_norm(self.second(inner), x[:, :, 1:-1, 1:-1], padding=self.padding)


class PatchDiscriminator(nn.Module):
    """A discriminator with a logit for each patch of 70 x 70 pixels: C64-C128-C256-C512."""

    def __init__(self, config: CycleGANConfig) -> None:
        super().__init__()
        ndf = config.discriminator_channels
        self.first = nn.Conv2d(3, ndf, 4, stride=2, padding=1)
        self.convolutions = nn.ModuleList(
            Conv2d(ndf * inputs, ndf * inputs * 2, 4, stride=stride, padding=1)
            for inputs, stride in ((1, 2), (2, 2), (4, 1))
        )
        self.logit = nn.Conv2d(ndf * 8, 1, 4, padding=1)
        initialize_normally(self)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [-1, 1] to logits (N, 1, H', W'), H' = H / 8 - 2."""
        x = functional.leaky_relu(self.first(image), SLOPE)
        for convolution in self.convolutions:
            x = instance_norm(convolution(x), slope=SLOPE)
        logits: Tensor = self.logit(x)
        return logits
