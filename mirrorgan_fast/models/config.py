"""The sizes of every system's networks, a frozen dataclass for each system."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.fields import bounded, check_fields
from mirrorgan_fast.files import StrPath

Norm = Literal["batch", "none"]
SentenceAttention = Literal["paper", "authors", "none"]


@dataclass(frozen=True)
class CascadeConfig:
    """What a text encoder and a cascade of generators are made of.

    The defaults are MirrorGAN's and AttnGAN's for birds (CUB). ``generator_channels`` and
    ``discriminator_channels`` are the channels C of the first layer at full resolution (GF and DF
    in the authors' code); every other width follows from them.

    The bounds keep what a damaged or hostile file may ask for within what a machine can build.

    Raises:
        InputError: a size out of its bounds, or sizes that do not go together.
    """

    image_size: int = bounded(256, 8, 4096)
    """Pixels a side of the last stage's images: a power of two, each stage doubles it."""
    stages: int = bounded(3, 1, 8)
    """m, the number of generators in the cascade."""
    generator_channels: int = bounded(32, 1, 1024)
    """Channels of the generator at full resolution (GF in the authors' code)."""
    discriminator_channels: int = bounded(64, 1, 1024)
    """Channels of the first layer of each discriminator (DF in the authors' code)."""
    discriminator_norm: Norm = "batch"
    """``batch`` is the authors'; ``none`` goes with the R1 penalty (``gan.r1_weight``)."""
    residual_blocks: int = bounded(2, 1, 32)
    """How many each later stage of the generator has."""
    noise_size: int = bounded(100, 1, 4096)
    """Length of z."""
    condition_size: int = bounded(100, 1, 4096)
    """Length of the augmented sentence s_ca."""
    embedding_size: int = bounded(256, 2, 4096)
    """D, the length of a word or sentence feature, and of their image counterparts: an even number,
    half of it for each direction of the LSTM."""
    word_embedding_size: int = bounded(300, 1, 4096)
    """Length of a word's vector before the LSTM of STEM."""
    caption_length: int = bounded(18, 1, 1024)
    """T in training and sampling; longer captions are shortened to it."""
    text_dropout: float = bounded(0.5, 0, below=1)
    """The share of the numbers of word vectors that are dropped while STEM is trained."""
    image_encoder: Literal["inception_v3", "small"] = "inception_v3"
    """The CNN of DAMSM."""

    def __post_init__(self) -> None:
        check_fields(self, "model config")
        if self.image_size & (self.image_size - 1) or self.first_size < 8:
            raise InputError(
                f"model config: image_size {self.image_size} with {self.stages} stages, expected a "
                f"power of two that leaves at least 8 pixels for the first stage"
            )
        if self.embedding_size % 2:
            raise InputError(
                f"model config: embedding_size is {self.embedding_size}, expected an even number"
            )

    @property
    def sentence_attention(self) -> SentenceAttention:
        """Form of the sentence attention; ``none`` leaves it out."""
        return "none"

    @property
    def first_size(self) -> int:
        """Pixels a side of the first stage's images."""
        return self.image_size >> (self.stages - 1)

    @property
    def stage_sizes(self) -> tuple[int, ...]:
        """Pixels a side of each stage's images, the first stage first."""
        return tuple(self.first_size << stage for stage in range(self.stages))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: StrPath | None = None) -> Self:
        """Build a configuration from what ``dataclasses.asdict`` gave.

        Args:
            values: the fields; those that are missing have their defaults.
            source: of the values, for errors.

        Raises:
            InputError: an entry that is not a field of this class, or not a valid value for it.
        """
        try:
            unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
            if unknown:
                raise InputError(f"model config: unknown entries {', '.join(unknown)}")
            return cls(**values)
        except InputError as error:
            if source is None:
                raise
            raise InputError(f"{source}: {error}") from error


@dataclass(frozen=True)
class AttnGANConfig(CascadeConfig):
    """What an AttnGAN is made of: word attention, no sentence attention."""


@dataclass(frozen=True)
class MirrorGANConfig(CascadeConfig):
    """What a MirrorGAN is made of. The defaults are the birds (CUB) configuration of the paper."""

    sentence_attention: SentenceAttention = "paper"
    """Form of the global attention; ``none`` is the paper's ablation, which is AttnGAN's F_att."""
    stream_encoder: Literal["resnet152", "small"] = "resnet152"
    """The CNN of STREAM."""
    stream_hidden_size: int = bounded(512, 1, 8192)
    """Units of the LSTM of STREAM."""
