"""What a training run depends on beside the model's sizes: a dataclass a stage, with presets."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.training.objectives import Form

Stage = Literal["cnn", "stem", "stream", "gan"]
STAGES: tuple[Stage, ...] = ("cnn", "stem", "stream", "gan")
"""Of the chain, in their order."""


_FROM_ZERO = ("seed", "decay_steps", "last_stage_from")
_MOST_OF_SEED = 2**40 - 1  # with a step beside it, it is a seed of PyTorch's


class _Settings:
    """Refuses what no setting here can be: a count below 1, a negative number."""

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            least = 1 if entry.type is int and entry.name not in _FROM_ZERO else 0
            if entry.name == "batch_size":
                least = 2  # of one there are no statistics, and no other caption
            if isinstance(value, int | float) and not value >= least:
                raise InputError(
                    f"training settings: {entry.name} is {value}, expected {least} or more"
                )
            most = {"seed": _MOST_OF_SEED, "average_decay": 1}.get(entry.name)
            if most is not None and value > most:
                raise InputError(
                    f"training settings: {entry.name} is {value}, expected {most} or less"
                )
            if entry.name == "betas" and not all(0 <= beta < 1 for beta in value):
                raise InputError(
                    f"training settings: betas is {value}, expected two numbers from 0 to below 1"
                )


@dataclass(frozen=True)
class CNNSettings(_Settings):
    """Training of the small CNN by the phrases of captions, before DAMSM and STREAM see with it.

    Not for the large CNNs, which start from ImageNet's weights.
    """

    steps: int = 3_000
    batch_size: int = 64
    learning_rate: float = 3e-3
    phrases: int = 1_024
    """How many: the commonest of up to three words."""


@dataclass(frozen=True)
class STEMSettings(_Settings):
    """Pretraining of STEM with DAMSM; the defaults are AttnGAN's for birds."""

    steps: int = 36_000
    batch_size: int = 48
    learning_rate: float = 2e-3
    decay: float = 0.98
    """Factor on the learning rate after each epoch."""
    gradient_clip: float = 0.25


@dataclass(frozen=True)
class STREAMSettings(_Settings):
    """Pretraining of STREAM as a captioner."""

    steps: int = 36_000
    batch_size: int = 48
    learning_rate: float = 1e-3
    gradient_clip: float = 5.0


@dataclass(frozen=True)
class GANSettings(_Settings):
    """Training of GLAM against the discriminators; the defaults are the paper's for birds."""

    steps: int = 265_000
    batch_size: int = 20
    learning_rate: float = 2e-4
    discriminator_learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    decay_steps: int = 0
    """At the end, over which both learning rates fall to zero in a line, as CycleGAN's do; all
    ``steps`` where those are fewer."""
    form: Form = "paper"
    """Form of the losses: the paper's, or those of the authors' code."""
    stream_weight: float = 20.0
    """lambda."""
    damsm_weight: float = 0.0
    kl_weight: float = 1.0
    r1_weight: float = 0.0
    """gamma of the R1 penalty (``r1_penalty``), which every fourth step adds fourfold."""
    last_stage_from: int = 0
    """Step from which the last stage trains too. Until then the others train alone, in 0.4 of
    the time a step: what captions mean is learned at half of the size."""
    average_decay: float = 0.999
    """Of the moving average of the generator's parameters and buffers, which is what is kept."""


@dataclass(frozen=True)
class TrainingSettings(_Settings):
    """The whole chain."""

    cnn: CNNSettings = field(default_factory=CNNSettings)
    stem: STEMSettings = field(default_factory=STEMSettings)
    stream: STREAMSettings = field(default_factory=STREAMSettings)
    gan: GANSettings = field(default_factory=GANSettings)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """``auto`` is bf16 autocast where the processor computes in it, else fp32."""
    augment: bool = True
    """Random crops and flips; not for captions that speak of left and right."""
    seed: int = 0


PRESETS: dict[str, TrainingSettings] = {
    "cub": TrainingSettings(),
    "coco": TrainingSettings(gan=GANSettings(batch_size=14, steps=710_000)),
    "birds-painted": TrainingSettings(
        stem=STEMSettings(steps=5_500, decay=0.85),
        stream=STREAMSettings(steps=16_000, batch_size=192, learning_rate=2e-3),
        gan=GANSettings(
            steps=15_000,
            decay_steps=3_000,
            batch_size=32,
            learning_rate=2e-3,
            discriminator_learning_rate=6e-4,
            form="authors",
            stream_weight=1.0,
            damsm_weight=2.0,
            r1_weight=0.1,
            last_stage_from=3_000,
        ),
        augment=False,
    ),
}
