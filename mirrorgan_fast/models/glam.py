"""GLAM, the global-local collaborative attentive module: features to images, coarse to fine."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import CascadeConfig
from mirrorgan_fast.models.layers import (
    BatchNormGLU,
    ConditioningAugmentation,
    Conv2d,
    ResidualBlock,
    UpBlock,
    initialize,
)
from mirrorgan_fast.ops import glam_attention, glam_attention_mix, word_attention_map


class Generated(NamedTuple):
    """The result of a pass through the cascade, first stage first."""

    images: list[Tensor]
    """m images (N, 3, S_i, S_i) in [-1, 1]."""
    mu: Tensor
    """(N, condition), mean of the conditioning augmentation."""
    log_var: Tensor
    """(N, condition), logarithm of its variance."""


class GLAM(nn.Module):
    """The generator: f_0 = F_0(z, s_ca), f_i = F_i(F_att_i(f_{i-1}, w, s_ca)), I_i = G_i(f_i).

    MirrorGAN, eq. 2 to 5. F_att_i concatenates f_{i-1} with the word and sentence context, and
    mixes the three with a 1x1 convolution as the authors' code does. AttnGAN has no sentence
    context, and StackGAN++ has s_ca in the place of both.
    """

    def __init__(self, config: CascadeConfig) -> None:
        super().__init__()
        self.augment = ConditioningAugmentation(config)
        self.F = nn.ModuleList([FirstTransformer(config)])
        self.F_att = nn.ModuleList()
        self.G = nn.ModuleList([ImageGenerator(config.stage_channels[0])])
        for before, channels in itertools.pairwise(config.stage_channels):
            if config.word_attention:
                self.F_att.append(Attention(config))
                self.F.append(Transformer(before * 2, channels, config.residual_blocks))
            else:
                self.F_att.append(JoinedSentence(before, config.condition_size))
                self.F.append(Transformer(before, channels, config.residual_blocks))
            self.G.append(ImageGenerator(channels))
        initialize(self)

    def forward(
        self,
        noise: Tensor,  # (N, noise)
        condition_noise: Tensor,  # (N, condition)
        words: Tensor,  # (N, T, D)
        mask: Tensor,  # (N, T)
        sentence: Tensor,  # (N, D)
        stages: int | None = None,
    ) -> Generated:
        """Generate the images of all stages, or of the first few.

        Args:
            noise: z, standard normal.
            condition_noise: eps of the conditioning augmentation, standard normal.
            words: w from STEM.
            mask: bool, true at real words.
            sentence: s from STEM.
            stages: how many, 1 to m (default: m).
        """
        s_ca, mu, log_var = self.augment(sentence, condition_noise)
        f = self.F[0](noise, s_ca)
        images = [self.G[0](f)]
        later = list(zip(self.F_att, self.F[1:], self.G[1:], strict=True))
        for F_att_i, F_i, G_i in later[: None if stages is None else stages - 1]:
            f = F_i(F_att_i(f, words, mask, s_ca))
            images.append(G_i(f))
        return Generated(images, mu, log_var)

    @property
    def attends(self) -> bool:
        """Whether there is word attention."""
        return any(isinstance(F_att_i, Attention) for F_att_i in self.F_att)

    def attention_maps(
        self,
        noise: Tensor,  # (N, noise)
        condition_noise: Tensor,  # (N, condition)
        words: Tensor,  # (N, T, D)
        mask: Tensor,  # (N, T)
        sentence: Tensor,  # (N, D)
    ) -> list[Tensor]:
        """Return the word attention of each later stage: m - 1 maps (N, T, S, S).

        The maps sum to 1 over the words. The arguments are those of ``forward``. The map of stage i
        has the resolution of f_{i-1}.

        Raises:
            InputError: the system has no word attention.
        """
        s_ca, _, _ = self.augment(sentence, condition_noise)
        f = self.F[0](noise, s_ca)
        maps = []
        for F_att_i, F_i in zip(self.F_att, self.F[1:], strict=True):
            if not isinstance(F_att_i, Attention):
                raise InputError("this system has no word attention, so there are no maps of it")
            maps.append(F_att_i.word_map(f, words, mask))
            f = F_i(F_att_i(f, words, mask, s_ca))
        return maps


class FirstTransformer(nn.Module):
    """F_0: noise and condition to features at the first stage's size.

    A linear layer makes a 4x4 map, which is upsampled and halved in channels down to C.
    """

    def __init__(self, config: CascadeConfig) -> None:
        super().__init__()
        self.channels = config.generator_channels * config.first_size // 4
        self.linear = nn.Linear(
            config.noise_size + config.condition_size, self.channels * 2 * 4 * 4, bias=False
        )
        self.norm = nn.BatchNorm1d(self.channels * 2 * 4 * 4)
        self.upsample = nn.Sequential()
        channels = self.channels
        while channels > config.generator_channels:
            self.upsample.append(UpBlock(channels, channels // 2))
            channels //= 2

    def forward(
        self,
        noise: Tensor,  # (N, noise)
        s_ca: Tensor,  # (N, condition)
    ) -> Tensor:
        """Return f_0 (N, C, S_0, S_0)."""
        both = torch.cat([s_ca, noise.to(self.linear.weight.dtype)], dim=1)
        x = self.norm(self.linear(both))
        f: Tensor = self.upsample(functional.glu(x, dim=1).unflatten(1, (self.channels, 4, 4)))
        return f


class Attention(nn.Module):
    """F_att: word (local) and sentence (global) attention, mixed to 2C channels.

    Att^w = sum_l (U w_l) softmax_l(f^T (U w_l)); Att^s = (V s_ca) o softmax(f o (V s_ca)), where
    the ``authors`` form has a 1x1 convolution inside the second softmax. Without global attention
    this is AttnGAN's: f and Att^w are concatenated, and there is no mixing convolution.
    """

    def __init__(self, config: CascadeConfig) -> None:
        super().__init__()
        channels = config.generator_channels
        self.U = nn.Linear(config.embedding_size, channels, bias=False)
        self.V: nn.Linear | None = None
        self.sentence_conv: nn.Conv2d | None = None
        self.mix: nn.Module = nn.Identity()
        if config.sentence_attention != "none":
            self.V = nn.Linear(config.condition_size, channels)
            self.mix = nn.Conv2d(channels * 3, channels * 2, 1, bias=False)
        if config.sentence_attention == "authors":
            self.sentence_conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(
        self,
        features: Tensor,  # (N, C, H, W)
        words: Tensor,  # (N, T, D)
        mask: Tensor,  # (N, T)
        s_ca: Tensor,  # (N, condition)
    ) -> Tensor:
        """Return (N, 2C, H, W)."""
        keys = self.U(words)
        if self.V is None:
            return glam_attention(features, keys, mask)
        assert isinstance(self.mix, nn.Conv2d)
        return glam_attention_mix(
            features,
            keys,
            mask,
            self.V(s_ca),
            None if self.sentence_conv is None else self.sentence_conv.weight.flatten(1),
            self.mix.weight.flatten(1),
        )

    def word_map(
        self,
        features: Tensor,  # (N, C, H, W)
        words: Tensor,  # (N, T, D)
        mask: Tensor,  # (N, T)
    ) -> Tensor:
        """Return the weights (N, T, H, W) of the word attention, summing to 1 over the words."""
        return word_attention_map(features, self.U(words), mask)


class JoinedSentence(nn.Module):
    """StackGAN++'s F_att: s_ca at every pixel beside f, joined by a 3x3 convolution."""

    def __init__(self, channels: int, condition_size: int) -> None:
        super().__init__()
        self.join = nn.Sequential(
            Conv2d(condition_size + channels, channels * 2, 3, padding=1, bias=False),
            BatchNormGLU(channels * 2),
        )

    def forward(
        self,
        features: Tensor,  # (N, C, H, W)
        words: Tensor,  # (N, T, D)
        mask: Tensor,  # (N, T)
        s_ca: Tensor,  # (N, condition)
    ) -> Tensor:
        """Return (N, C, H, W). The words are not used."""
        sentence = s_ca.to(features.dtype)[:, :, None, None].expand(-1, -1, *features.shape[2:])
        joined: Tensor = self.join(torch.cat([sentence, features], dim=1))
        return joined


class Transformer(nn.Sequential):
    """F_i for i > 0: residual blocks, then an up-block."""

    def __init__(self, in_channels: int, out_channels: int, residual_blocks: int) -> None:
        super().__init__(
            *(ResidualBlock(in_channels) for _ in range(residual_blocks)),
            UpBlock(in_channels, out_channels),
        )


class ImageGenerator(nn.Sequential):
    """G_i: features (N, C, H, W) to an image (N, 3, H, W) in [-1, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 3, 3, padding=1, bias=False), nn.Tanh())
