"""The shapes that are measured: those of the bird configurations, for one image and for a batch."""

from typing import NamedTuple


class AttentionShape(NamedTuple):
    """A call of glam_attention."""

    batch: int  # N
    size: int  # H = W
    channels: int = 32  # C
    words: int = 18  # T


GLAM_ATTENTION = [AttentionShape(batch, size) for batch in (1, 8) for size in (32, 64, 128)]

# From birds-painted, forward and backward
GLAM_ATTENTION_TRAINED = [AttentionShape(32, size) for size in (32, 64)]


class MapShape(NamedTuple):
    """A feature map in training."""

    batch: int  # N
    channels: int  # 2C, of the input of batch_norm_glu
    size: int  # H = W


# From birds-painted: its last up-block, a residual block of each stage, its first up-block
BATCH_NORM_GLU = [
    MapShape(16, 64, 128),
    MapShape(16, 128, 64),
    MapShape(16, 128, 32),
    MapShape(16, 256, 8),
]


class NormShape(NamedTuple):
    """A call of instance_norm."""

    batch: int  # N
    channels: int  # C
    size: int  # H = W
    slope: float
    padding: int

    def __str__(self) -> str:
        return f"{self.channels}x{self.size}"


# From cyclegan-birds-painted: behind its first convolution, in its residual blocks, in front of its
# last convolution; and the residual blocks of an image of 512 pixels with the authors' channels
INSTANCE_NORM = [
    NormShape(4, 32, 128, 0.0, 0),
    NormShape(4, 128, 32, 0.0, 1),
    NormShape(1, 32, 128, 0.0, 3),
    NormShape(1, 256, 128, 0.0, 1),
]


# From birds-painted: its up-blocks with maps large enough for the sub-pixel form
UP_CONV = [MapShape(16, 64, 64), MapShape(16, 64, 32)]


class SimilarityShape(NamedTuple):
    """A call of word_similarity."""

    pairs: int  # N = M
    words: int  # T
    regions: int  # R
    depth: int  # D


# DAMSM's batch, with the regions of an Inception-v3
WORD_SIMILARITY = SimilarityShape(48, 18, 289, 256)


class StageShape(NamedTuple):
    """A stage of a generator."""

    channels: int  # C
    size: int  # H = W of the input
    words: int  # T


# From cub, from 128 to 256 px
LAST_STAGE = StageShape(32, 128, 18)


class StepShape(NamedTuple):
    """A training step."""

    recipe: str
    batch: int


# As in its recipe; and the largest model, at a batch that takes two cores a few seconds
TRAINING_STEPS = [StepShape("birds-painted", 32), StepShape("cub", 4)]


class ConvolutionShape(NamedTuple):
    """A convolution in training, with a padding of 1."""

    batch: int  # N
    channels: int  # C
    size: int  # H = W of the input
    out_channels: int  # C'
    kernel: int
    stride: int


# From birds-painted: a residual block's two, D_2's second and last but one, the joint one
CONV2D = [
    ConvolutionShape(32, 64, 64, 128, 3, 1),
    ConvolutionShape(32, 64, 64, 64, 3, 1),
    ConvolutionShape(32, 32, 64, 64, 4, 2),
    ConvolutionShape(32, 256, 8, 512, 4, 2),
    ConvolutionShape(32, 512, 4, 256, 3, 1),
]

# From cub at batch 4: D_2's fifth to seventh, D_0's joint one; from birds-painted: D_2's fifth
WIDE_CONV2D = [
    ConvolutionShape(4, 512, 16, 1024, 4, 2),
    ConvolutionShape(4, 1024, 8, 2048, 4, 2),
    ConvolutionShape(4, 2048, 4, 1024, 3, 1),
    ConvolutionShape(4, 512, 4, 512, 3, 1),
    ConvolutionShape(32, 256, 8, 512, 4, 2),
]
