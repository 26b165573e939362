"""The sizes of every system's networks, a frozen dataclass for each system."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.fields import bounded, check_fields
from mirrorgan_fast.files import StrPath
from mirrorgan_fast.models.backbones.efficientnet_lite import LITE0_DIGEST

_EYES = "eyes"  # in config.json: the digest of the CNN that all models share
BOX = "box"
"""The name of a box among the random vectors of images."""
Norm = Literal["batch", "none"]
SentenceAttention = Literal["paper", "authors", "none"]


@dataclass(frozen=True)
class SystemConfig:
    """What every system has."""

    image_size: int = bounded(256, 8, 4096)
    """Pixels a side of the images."""

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json says of the networks; ``from_dict`` reads it."""
        eyes = {_EYES: LITE0_DIGEST} if self.has_lite0 else {}
        return dataclasses.asdict(self) | eyes

    @property
    def has_lite0(self) -> bool:
        """Whether one of the networks sees with the EfficientNet-Lite0 of the package."""
        return False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: StrPath | None = None) -> Self:
        """Build a configuration from what ``to_dict`` gave.

        Args:
            values: the fields; those that are missing have their defaults.
            source: of the values, for errors.

        Raises:
            InputError: an entry that is not a field of this class, or not a valid value for it, or
                the model was trained with another EfficientNet-Lite0.
        """
        try:
            sizes = {name: value for name, value in values.items() if name != _EYES}
            unknown = sorted(set(sizes) - {field.name for field in dataclasses.fields(cls)})
            if unknown:
                raise InputError(f"model config: unknown entries {', '.join(unknown)}")
            config = cls(**sizes)
            if config.has_lite0 and values.get(_EYES, LITE0_DIGEST) != LITE0_DIGEST:
                raise InputError(
                    f"model config: {_EYES} is {values[_EYES]!r:.80}: the model was trained with "
                    f"another EfficientNet-Lite0 than this version of mirrorgan-fast has, "
                    f"{LITE0_DIGEST:.16}...; install the version that trained it"
                )
            return config
        except InputError as error:
            if source is None:
                raise
            raise InputError(f"{source}: {error}") from error


@dataclass(frozen=True)
class TextToImageConfig(SystemConfig):
    """What every text-to-image system is made of.

    ``generator_channels`` and ``discriminator_channels`` are GF and DF in the authors' code; every
    other width follows from them.

    The bounds keep what a damaged or hostile file may ask for within what a machine can build.

    Raises:
        InputError: a size out of its bounds, or sizes that do not go together.
    """

    generator_channels: int = bounded(32, 1, 1024)
    """Channels of the generator at full resolution (GF in the authors' code)."""
    discriminator_channels: int = bounded(64, 1, 1024)
    """Channels of the first layer of each discriminator (DF in the authors' code)."""
    discriminator_norm: Norm = "batch"
    """``batch`` is the authors'; ``none`` goes with the R1 penalty (``gan.r1_weight``)."""
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
    image_encoder: Literal["inception_v3", "efficientnet_lite0", "small"] = "inception_v3"
    """The CNN of DAMSM. EfficientNet-Lite0 comes with the package, with ImageNet's weights."""

    def __post_init__(self) -> None:
        check_fields(self, "model config")
        if self.embedding_size % 2:
            raise InputError(
                f"model config: embedding_size is {self.embedding_size}, expected an even number"
            )

    @property
    def has_lite0(self) -> bool:
        """Whether one of the networks sees with the EfficientNet-Lite0 of the package."""
        return self.image_encoder == "efficientnet_lite0"

    @property
    def stage_sizes(self) -> tuple[int, ...]:
        """Pixels a side of each stage's images, the first stage first."""
        return (self.image_size,)

    @property
    def judged_size(self) -> int:
        """Length of what discriminators are told of a caption: its sentence feature s."""
        return self.embedding_size

    @property
    def noises(self) -> dict[str, int]:
        """The lengths of the random vectors that an image is generated from, by their names.

        One that is named ``BOX`` is no random vector but a box (see ``boxes``).
        """
        return {"noise": self.noise_size, "condition_noise": self.condition_size}

    @property
    def places(self) -> bool:
        """Whether images are generated with a box that says where in them the thing is."""
        return BOX in self.noises

    @property
    def vector_size(self) -> int | None:
        """Length of the text vectors that the model reads; None if it reads captions."""
        return None

    def check_text(self, vector_size: int | None) -> None:
        """Check that the model reads such text.

        Args:
            vector_size: length of text vectors, or None for captions.

        Raises:
            InputError: the model reads the other kind of text, or vectors of another length.
        """
        wanted = self.vector_size
        if vector_size == wanted:
            return
        if wanted is None:
            raise InputError("this model reads captions, not text vectors; give it captions")
        if vector_size is None:
            raise InputError(
                f"this model reads text vectors of {wanted:,} numbers and knows no words: it only "
                f"makes images, with sample --text-vectors FILE (in Python: Sampler.sample_vectors)"
            )
        raise InputError(
            f"the text vectors have {vector_size:,} numbers each, but this model reads vectors of "
            f"{wanted:,}; use those of the text encoder that it was trained with"
        )


@dataclass(frozen=True)
class CascadeConfig(TextToImageConfig):
    """What a text encoder and a cascade of generators are made of.

    The defaults are MirrorGAN's and AttnGAN's for birds (CUB). Each stage doubles the size of the
    images, down to at least 8 pixels for the first.
    """

    stages: int = bounded(3, 1, 8)
    """m, the number of generators in the cascade."""
    residual_blocks: int = bounded(2, 1, 32)
    """How many each later stage of the generator has."""
    discriminator: Literal["convolutional", "projected"] = "convolutional"
    """``convolutional``: one for the images of each stage, as the authors have them; ``projected``:
    one for those of the last stage, which sees with the EfficientNet-Lite0 of the package
    (``models.projected``)."""

    @property
    def has_lite0(self) -> bool:
        """Whether one of the networks sees with the EfficientNet-Lite0 of the package."""
        return super().has_lite0 or self.discriminator == "projected"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size & (self.image_size - 1) or self.first_size < 8:
            raise InputError(
                f"model config: image_size {self.image_size} with {self.stages} stages, expected a "
                f"power of two that leaves at least 8 pixels for the first stage"
            )

    @property
    def word_attention(self) -> bool:
        """Whether later stages attend to words; without, the sentence s_ca is beside f."""
        return True

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

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each stage's features, the first stage first."""
        return (self.generator_channels,) * self.stages


@dataclass(frozen=True)
class AttnGANConfig(CascadeConfig):
    """What an AttnGAN is made of: word attention, no sentence attention."""


@dataclass(frozen=True)
class MirrorGANConfig(CascadeConfig):
    """What a MirrorGAN is made of. The defaults are the birds (CUB) configuration of the paper."""

    sentence_attention: SentenceAttention = "paper"
    """Form of the global attention; ``none`` is the paper's ablation, which is AttnGAN's F_att."""
    stream_encoder: Literal["resnet152", "efficientnet_lite0", "small"] = "resnet152"
    """The CNN of STREAM. EfficientNet-Lite0 comes with the package, with ImageNet's weights."""
    stream_hidden_size: int = bounded(512, 1, 8192)
    """Units of the LSTM of STREAM."""

    @property
    def has_lite0(self) -> bool:
        """Whether one of the networks sees with the EfficientNet-Lite0 of the package."""
        return super().has_lite0 or self.stream_encoder == "efficientnet_lite0"


@dataclass(frozen=True)
class StackGANv2Config(CascadeConfig):
    """What a StackGAN++ (v2) is made of: a cascade without attention.

    The defaults are those of the authors' code for birds. The channels of f are halved from stage
    to stage, so ``generator_channels`` are those of the first stage.
    """

    generator_channels: int = bounded(64, 1, 1024)
    """Channels of the first stage at full resolution (GF in the authors' code); each later stage
    has half of those before."""
    condition_size: int = bounded(128, 1, 4096)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.generator_channels % (1 << (self.stages - 1)):
            raise InputError(
                f"model config: generator_channels is {self.generator_channels} with {self.stages} "
                f"stages, expected a multiple of {1 << (self.stages - 1)}: each stage halves them"
            )

    @property
    def judged_size(self) -> int:
        """Length of what discriminators are told of a caption: mu of the augmentation."""
        return self.condition_size

    @property
    def word_attention(self) -> bool:
        """Whether later stages attend to words: they do not."""
        return False

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each stage's features, the first stage first."""
        return tuple(self.generator_channels >> stage for stage in range(self.stages))


@dataclass(frozen=True)
class StackGANConfig(TextToImageConfig):
    """What a StackGAN is made of: two separate stages, of which the second refines the first.

    The defaults are those of the authors' code, which are near the birds of the paper.
    """

    text: Literal["stem", "vectors"] = "stem"
    """``stem``: captions, which STEM encodes. ``vectors``: sentence features of ``embedding_size``
    numbers that another text encoder made, such as the 1,024 of the authors' char-CNN-RNN; such a
    model has neither STEM nor words, and is not trained here."""
    generator_channels: int = bounded(128, 4, 1024)
    """GF in the authors' code; a multiple of 4."""
    condition_size: int = bounded(128, 1, 4096)
    residual_blocks: int = bounded(4, 1, 32)
    """Of the second stage."""
    stages: int = bounded(2, 1, 2)
    """2, or 1 for a model that is the first stage alone."""
    first_size: int = bounded(64, 8, 4096)
    """Pixels a side of the first stage's images: a power of two. With one stage, ``image_size``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first_size & (self.first_size - 1) or self.image_size & (self.image_size - 1):
            raise InputError(
                f"model config: image_size is {self.image_size} and first_size {self.first_size}, "
                f"expected powers of two"
            )
        if self.generator_channels % 4:
            raise InputError(
                f"model config: generator_channels is {self.generator_channels}, expected a "
                f"multiple of 4"
            )
        factor = self.image_size / self.first_size
        if factor not in ((1,) if self.stages == 1 else (2, 4)):
            wanted = "equal" if self.stages == 1 else "two or four times as large"
            raise InputError(
                f"model config: image_size is {self.image_size} and first_size {self.first_size}, "
                f"expected image_size {wanted}, for {self.stages} stages"
            )

    @property
    def stage_sizes(self) -> tuple[int, ...]:
        """Pixels a side of each stage's images, the first stage first."""
        return (self.first_size, self.image_size)[: self.stages]

    @property
    def judged_size(self) -> int:
        """Length of what discriminators are told of a caption: mu of the augmentation."""
        return self.condition_size

    @property
    def vector_size(self) -> int | None:
        """Length of the text vectors that the model reads; None if it reads captions."""
        return self.embedding_size if self.text == "vectors" else None

    @property
    def noises(self) -> dict[str, int]:
        """The lengths of z, and of the eps of all stages together."""
        return {
            "noise": self.noise_size,
            "condition_noise": self.stages * self.condition_size,
        }


@dataclass(frozen=True)
class GanIntClsConfig(TextToImageConfig):
    """What a GAN-INT-CLS is made of: one stage, and a projection of the sentence in G and in D.

    The defaults are those of the authors' code for birds, with sentences of STEM.
    """

    image_size: int = bounded(64, 16, 4096)
    generator_channels: int = bounded(128, 1, 1024)
    """ngf: channels of the generator's last map before the image, at half the image's size."""
    condition_size: int = bounded(128, 1, 4096)
    """nt: the length of the projected sentence."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size & (self.image_size - 1):
            raise InputError(
                f"model config: image_size is {self.image_size}, expected a power of two"
            )
        if self.discriminator_norm != "batch":
            raise InputError(
                f"model config: discriminator_norm is {self.discriminator_norm!r}, but the "
                f"discriminator of GAN-INT-CLS can only have batch norm"
            )

    @property
    def noises(self) -> dict[str, int]:
        """The length of z."""
        return {"noise": self.noise_size}


@dataclass(frozen=True)
class CycleGANConfig(SystemConfig):
    """What a CycleGAN is made of. The defaults are those of the authors' code.

    The networks take images of any size.
    """

    image_size: int = bounded(256, 32, 4096)
    """Pixels a side of the images in training: a multiple of 4."""
    generator_channels: int = bounded(64, 1, 1024)
    """ngf: channels of the generators at full resolution."""
    discriminator_channels: int = bounded(64, 1, 1024)
    """ndf: channels of the first layer of each discriminator."""
    residual_blocks: int = bounded(9, 1, 32)
    """Of each generator; the authors have 6 for images of 128 pixels."""
    x: str = "A"
    """The name of the domain X, such as "sky". If it is left as it is, the data gives it."""
    y: str = "B"
    """The name of the domain Y."""

    def __post_init__(self) -> None:
        check_fields(self, "model config")
        if self.image_size % 4:
            raise InputError(
                f"model config: image_size is {self.image_size}, expected a multiple of 4"
            )
        for field, name in (("x", self.x), ("y", self.y)):
            if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 80:
                raise InputError(
                    f"model config: {field} is {name!r:.80}, expected a name of 1 to 80 characters"
                )
        if self.x == self.y:
            raise InputError(f"model config: x and y are both {self.x!r}, expected two names")


@dataclass(frozen=True)
class GawwnConfig(TextToImageConfig):
    """What a GAWWN with a bounding box is made of.

    The defaults are those of the authors' scripts for birds, with sentences of STEM. Boxes are
    applied to maps of an eighth of the image's size a side, which are 16 x 16 for 128 pixels.
    """

    image_size: int = bounded(128, 32, 4096)
    generator_channels: int = bounded(128, 1, 1024)
    """ngf; the generator's maps at an eighth of the image's size have twice as many channels."""
    discriminator_channels: int = bounded(128, 1, 1024)
    """ndf: channels of the first layer of the discriminator."""
    condition_size: int = bounded(128, 1, 4096)
    """nt: the length of the projected sentence in the discriminator; in the generator it is 4 ngf.
    """
    kept_boxes: int = bounded(1024, 1, 65_536)
    """Boxes of training images that are kept with the model; images without a given box have one
    of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size & (self.image_size - 1):
            raise InputError(
                f"model config: image_size is {self.image_size}, expected a power of two"
            )

    @property
    def grid_size(self) -> int:
        """Height and width of the maps that boxes are applied to."""
        return self.image_size // 8

    @property
    def noises(self) -> dict[str, int]:
        """The lengths of z and of the box."""
        return {"noise": self.noise_size, BOX: 4}
