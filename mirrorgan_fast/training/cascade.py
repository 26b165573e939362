"""What the trainings of cascades share: a discriminator for each stage of the generator."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import CascadeConfig
from mirrorgan_fast.models.discriminator import Discriminator, Logits
from mirrorgan_fast.models.glam import GLAM
from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.ops.wide import wide
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.gan import Captioned, GANTraining, judgments, other_captions
from mirrorgan_fast.training.objectives import (
    Form,
    WrongPairs,
    discriminator_loss,
    generator_loss,
)
from mirrorgan_fast.training.settings import CascadeSettings

_COST_BEFORE_LAST = 0.4  # of a step without the last stage (birds-painted)


class CascadeTraining(GANTraining):
    """A generator of m stages and a discriminator D_i for each of them.

    Args:
        config: the sizes of the networks.
        settings: of this training.
        stem: the text encoder, which stays as it is.
        computation: how a step computes.
        compiled: whether ``torch.compile`` compiles the generator.

    Raises:
        InputError: see ``check_cascade``.
    """

    PART = "glam"
    config: CascadeConfig
    settings: CascadeSettings

    def __init__(
        self,
        config: CascadeConfig,
        settings: CascadeSettings,
        stem: STEM,
        computation: Computation,
        *,
        compiled: bool,
    ) -> None:
        check_cascade(config, settings)
        glam = GLAM(config)
        self.D = [Discriminator(config, size) for size in config.stage_sizes]
        super().__init__(config, settings, stem, glam, self.D, computation, compiled=compiled)

    def stages(self, step: int) -> int:
        """Return how many stages train in a step.

        All but the last at first: the meaning of captions is learned at half the image size, where
        a step takes less than half the time.
        """
        return self.config.stages - (step < self.settings.last_stage_from)

    def sizes(self, step: int) -> tuple[int, ...]:
        """Return the sizes in pixels of the images of the stages that train in a step."""
        return self.config.stage_sizes[: self.stages(step)]

    def options(self, step: int) -> tuple[Any, ...]:
        """Return how many stages the generator is to compute."""
        return (self.stages(step),)

    def work(self, steps: int) -> float:
        """Return how much the first steps are, in any unit."""
        before_last = min(steps, self.settings.last_stage_from)
        return steps - (1 - _COST_BEFORE_LAST) * before_last

    def generator_trains(self, step: int) -> bool:
        """Return whether the generator trains in a step, or the discriminators alone."""
        return step >= self.settings.generator_from

    def discriminator_losses(
        self, given: Captioned, fakes: list[Tensor]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return L_Di of each stage: tell real from generated, matching from wrong sentences.

        Only the form of the authors' code has wrong sentences (see ``discriminator_loss``). While
        the last stage does not train yet, there are fewer images than discriminators.

        Returns:
            the losses, and how real D_i finds real and generated images, from 0 to 1, as figures.
        """
        losses: list[Tensor] = []
        found: dict[str, Tensor] = {}
        other = None
        if self.settings.form == "authors":  # each image with another caption of the batch
            other, is_wrong = other_captions(given, self.computation)
        with self.computation.autocast():
            for D_i, real_i, fake_i in zip(self.D, given.reals, fakes, strict=False):
                both = torch.cat([real_i, fake_i.detach()])
                real, fake = D_i(both, parts=2).chunk(2)
                real_logits = D_i.judge(real, given.judged)
                fake_logits = D_i.judge(fake, given.judged)
                wrong = None
                if other is not None:
                    wrong = WrongPairs(D_i.conditional(real, other), is_wrong)
                alone = real_logits.unconditional, fake_logits.unconditional
                found |= judgments(*alone, name=f"D_{len(losses)}")
                losses.append(self.discriminator_loss(real_logits, fake_logits, wrong))
        return losses, found

    def discriminator_loss(self, real: Logits, fake: Logits, wrong: WrongPairs | None) -> Tensor:
        """Return L_Di (see ``objectives.discriminator_loss``)."""
        return discriminator_loss(real, fake, wrong, self.computation.processes)

    def r1_penalties(self, step: int, given: Captioned) -> list[Tensor]:
        """Return the weighted R1 penalty of each stage, in the steps that have it."""
        told = wide(given.judged)

        def judge(D_i: Discriminator, images: Tensor) -> Logits:  # noqa: N803
            return D_i.judge(D_i(images), told)

        return [
            penalty
            for D_i, real_i in zip(self.D, given.reals, strict=False)
            for penalty in self.r1_penalty(step, real_i, partial(judge, D_i))
        ]

    def generator_losses(self, given: Captioned, fakes: list[Tensor], form: Form) -> list[Tensor]:
        """Return L_Gi of each stage: be believed by D_i."""
        return [
            generator_loss(D_i.judge(D_i(fake_i), given.judged), form)
            for D_i, fake_i in zip(self.D, fakes, strict=False)
        ]


def check_cascade(config: CascadeConfig, options: CascadeSettings) -> None:
    """Check that every network of a cascade will be trained.

    Raises:
        InputError: the generator or its last stage would never train, or the last stage is the only
            one and would wait.
    """
    for name, what in (("last_stage_from", "last stage"), ("generator_from", "generator")):
        if getattr(options, name) >= options.steps:
            raise InputError(
                f"gan.{name} is {getattr(options, name)} of {options.steps} steps: the {what} "
                f"would never be trained; set it lower (0: it trains from the start)"
            )
    first = options.last_stage_from
    if first and config.stages == 1:
        raise InputError(
            f"gan.last_stage_from is {first}, but the model has only one stage, so nothing would "
            f"train before it; set it to 0"
        )
