"""What the trainings of cascades share: a discriminator for each stage of the generator."""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import CascadeConfig, StackGANv2Config
from mirrorgan_fast.models.discriminator import Discriminator, Logits
from mirrorgan_fast.models.glam import GLAM
from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.ops.wide import wide
from mirrorgan_fast.training.batches import Batch
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.gan import Captioned, GANTraining, judgments, other_captions
from mirrorgan_fast.training.objectives import (
    Form,
    WrongPairs,
    discriminator_loss,
    edit_loss,
    generator_loss,
)
from mirrorgan_fast.training.projected import ProjectedJudge
from mirrorgan_fast.training.settings import CascadeSettings

Pairs = Literal["nothing", "noise", "word"]
"""What the images 2k and 2k + 1 of a batch differ in: their noise, or a word of their captions."""
_COST_BEFORE_LAST = 0.4  # of a step without the last stage (birds-painted)


class CascadeTraining(GANTraining):
    """A generator of m stages, and a discriminator D_i for each of them or a projected one.

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
        check_cascade(config, settings, computation.processes.count * computation.accumulate)
        glam = GLAM(config)
        self.D: list[Discriminator] = []
        self.projected: ProjectedJudge | None = None
        if config.discriminator == "projected":
            self.projected = ProjectedJudge(config, settings, computation)
            networks: list[nn.Module] = [self.projected.D]
        else:
            self.D = [Discriminator(config, size) for size in config.stage_sizes]
            networks = [*self.D]
        super().__init__(config, settings, stem, glam, networks, computation, compiled=compiled)

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

    def pairs(self, step: int) -> Pairs:
        """Return what the two images of a pair differ in; nothing: there are no pairs."""
        ways: list[Pairs] = []
        if self.settings.difference_weight:
            ways.append("noise")
        if self.settings.edit_weight:
            ways.append("word")
        return ways[step % len(ways)] if ways else "nothing"

    def of_same_noise(self, step: int) -> int:
        """Return how many images, one after the other, have the same random vectors in a step."""
        return 2 if self.pairs(step) == "word" else 1

    def asked(self, step: int, given: Captioned, batch: Batch) -> Captioned:
        """Return the captions that images are generated of.

        They are those of the batch. If images are generated in pairs, they are every second one of
        them: each twice, or once as it is and once with another word in the place of one.

        Args:
            step: from 0.
            given: the captions of the batch.
            batch: from which ``given`` was made.
        """
        pairs = self.pairs(step)
        if pairs == "nothing":
            return given
        firsts = Captioned._make([*(part[::2] for part in given[:-1]), given.reals])
        seconds = self._edited(firsts, batch) if pairs == "word" else firsts
        texts = [
            torch.stack(both, dim=1).flatten(0, 1)
            for both in zip(firsts[:-1], seconds[:-1], strict=True)
        ]
        return Captioned._make([*texts, given.reals])

    def _edited(self, given: Captioned, batch: Batch) -> Captioned:
        """Return the edited captions of every second image of a batch."""
        tokens = batch["edited_tokens"][::2].to(given.tokens.device)
        with torch.no_grad(), self.computation.autocast():
            words, sentence = self.stem(tokens, batch["length"][::2])
        # an edited caption is of no image of the data set, and of no class
        return given._replace(
            tokens=tokens, words=words, sentence=sentence, judged=sentence, labels=-1 - given.labels
        )

    def discriminator_losses(
        self, step: int, given: Captioned, asked: Captioned, fakes: list[Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return L_Di of each stage: tell real from generated, matching from wrong sentences.

        Only the form of the authors' code and the projected discriminator have wrong sentences (see
        ``discriminator_loss``). While the last stage does not train yet, there are fewer images
        than discriminators.

        Args:
            step: from 0.
            given: images of the data set and their captions.
            asked: the captions of the generated images.
            fakes: the generated images of each stage.

        Returns:
            the losses, and how real D_i finds real and generated images, from 0 to 1, as figures.
        """
        if self.projected is not None:
            alike = 1 if self.pairs(step) == "nothing" else 2
            loss, found = self.projected.discriminator_loss(given, asked, fakes, alike)
            return {"D": loss}, found
        losses: dict[str, Tensor] = {}
        found = {}
        other = None
        if self.settings.form == "authors":  # each image with another caption of the batch
            other, is_wrong = other_captions(given, self.computation)
        with self.computation.autocast():
            for i, (D_i, real_i, fake_i) in enumerate(
                zip(self.D, given.reals, fakes, strict=False)
            ):
                both = torch.cat([real_i, fake_i.detach()])
                real, fake = D_i(both, parts=2).chunk(2)
                real_logits = D_i.judge(real, given.judged)
                fake_logits = D_i.judge(fake, asked.judged)
                wrong = None
                if other is not None:
                    wrong = WrongPairs(D_i.conditional(real, other), is_wrong)
                alone = real_logits.unconditional, fake_logits.unconditional
                found |= judgments(*alone, name=f"D_{i}")
                losses[f"D_{i}"] = self.discriminator_loss(real_logits, fake_logits, wrong)
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

    def generator_losses(
        self, step: int, asked: Captioned, fakes: list[Tensor], form: Form
    ) -> dict[str, Tensor]:
        """Return L_Gi of each stage by name, be believed by D_i, and the losses of pairs."""
        pairs = self.pairs(step)
        if self.projected is not None:
            losses = self.projected.generator_losses(asked, fakes, different=pairs == "noise")
        else:
            losses = {
                f"G_{i}": generator_loss(D_i.judge(D_i(fake_i), asked.judged), form)
                for i, (D_i, fake_i) in enumerate(zip(self.D, fakes, strict=False))
            }
        if pairs == "word":
            losses["edit"] = self.settings.edit_weight * edit_loss(fakes)
        return losses


def check_cascade(config: CascadeConfig, options: CascadeSettings, parts: int) -> None:
    """Check that every network of a cascade will be trained.

    Args:
        config: the sizes of the networks.
        options: of the training.
        parts: that each batch is computed in.

    Raises:
        InputError: the generator or its last stage would never train, the last stage is the only
            one and would wait, or settings do not go with the discriminator.
    """
    projected = config.discriminator == "projected"
    for name in ("augment", "difference_weight"):
        if getattr(options, name) and not projected:
            raise InputError(
                f"gan.{name} is {getattr(options, name)}, which only a projected discriminator "
                f"has; set it to 0, or --set discriminator=projected"
            )
    if options.r1_weight and projected:
        raise InputError(
            f"gan.r1_weight is {options.r1_weight}, but a projected discriminator has no R1 "
            f"penalty; set it to 0"
        )
    for name in ("difference_weight", "edit_weight"):
        if getattr(options, name):
            _check_pairs(f"gan.{name}", config, options, parts)
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


def _check_pairs(setting: str, config: CascadeConfig, options: CascadeSettings, parts: int) -> None:
    """Raise InputError if images cannot be generated in pairs, which a setting asks for."""
    if isinstance(config, StackGANv2Config):
        raise InputError(
            f"{setting}: StackGAN++ cannot have it, because its discriminator is told what the "
            f"generator made of a caption; set it to 0"
        )
    if options.batch_size % (2 * parts):
        raise InputError(
            f"gan.batch_size is {options.batch_size}, computed in {parts} parts, expected a "
            f"multiple of {2 * parts}: with {setting}, the images of a part are pairs"
        )
    if options.edit_weight and options.captions > 1:
        raise InputError(
            f"gan.captions is {options.captions}, expected 1 with gan.edit_weight: a word of one "
            f"caption is changed"
        )
