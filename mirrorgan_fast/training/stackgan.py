"""Training of StackGAN's generator, one stage after the other."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor, nn

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.models.config import StackGANConfig
from mirrorgan_fast.models.discriminator import Discriminator, Seen
from mirrorgan_fast.models.stackgan import StackGANGenerator
from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.ops.wide import wide
from mirrorgan_fast.training.batches import Batch
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.gan import (
    Captioned,
    GANTraining,
    MoreOfGAN,
    judgments,
    other_captions,
    sum_of,
    train_gan,
)
from mirrorgan_fast.training.objectives import (
    WrongPairs,
    believed_loss,
    discriminator_loss,
    generator_loss,
    kl_loss,
    matching_discriminator_loss,
    saturating_loss,
)
from mirrorgan_fast.training.settings import StackGANSettings, TrainingSettings


class StackGANTraining(GANTraining):
    """L_D and L_G of the last stage of a StackGAN (eq. 3 to 6), whose first stage may be trained.

    What the discriminator is told of a caption is mu of the stage's conditioning augmentation,
    which it does not change.

    - ``form="paper"``: D judges pairs of image and caption, real and generated; the generator's
      loss is E log(1 - D) + lambda KL, with the KL summed over its dimensions. A trained first
      stage is in evaluation mode.
    - ``form="authors"``: D also has wrong pairs, and that of the second stage also judges images
      alone; the generator's loss is - E log D + lambda KL, a mean over its dimensions. A trained
      first stage stays in training mode: it normalizes by the statistics of the batch, and their
      running averages change.

    Args:
        config: the sizes of the networks.
        settings: of this stage.
        stem: the text encoder, which stays as it is.
        stage1: the first stage's trained generator, if this is the second stage.
        computation: how a step computes.
        compiled: whether ``torch.compile`` compiles the generator.
    """

    config: StackGANConfig
    settings: StackGANSettings
    generator: StackGANGenerator

    def __init__(
        self,
        config: StackGANConfig,
        settings: StackGANSettings,
        stem: STEM,
        stage1: StackGANGenerator | None,
        computation: Computation,
        *,
        compiled: bool,
    ) -> None:
        generator = StackGANGenerator(config)
        authors = settings.form == "authors"
        self.refines = stage1 is not None
        if stage1 is not None:
            generator.stage1.load_state_dict(stage1.stage1.state_dict())
            generator.stage1.requires_grad_(False).train(authors)
        self.judges_alone = authors and self.refines
        self.D = Discriminator(config, config.image_size, unconditional=self.judges_alone)
        super().__init__(
            config, settings, stem, generator, [self.D], computation, compiled=compiled
        )

    def start_from(self, generator: Mapping[str, Tensor]) -> None:
        """Give the generator and its average the weights of a trained one.

        A first stage that was trained before stays as it is.
        """
        own = self.generator.state_dict()
        kept = {name: own[name] for name in own if self.refines and name.startswith("stage1.")}
        super().start_from({**generator, **kept})

    def sizes(self, step: int) -> tuple[int, ...]:
        """Return the size of the stage's images."""
        return (self.config.image_size,)

    def step(self, step: int, epoch: int, batch: Batch) -> dict[str, Tensor]:
        """Lower L_D, then L_G; then average the generator."""
        settings, pace = self.settings, self.pace(step)
        given = self.encode(step, batch)
        images, mu, log_var = self.generate(step, given)
        told = given._replace(judged=mu.detach())

        loss_D, figures = self.discriminator_loss(told, images[-1].detach())
        penalty = self.r1_penalty(step, given.reals[-1], partial(self.judge, told))
        self.D_learner.lower(sum_of([loss_D, *penalty]), pace)

        # G: be believed by D, and keep the condition near a normal distribution
        with self.D_learner.frozen():
            with self.computation.autocast():
                KL = kl_loss(mu, log_var)
                loss = self.generator_loss(self.D(images[-1]), told)
                size = self.config.condition_size if settings.form == "paper" else 1
                loss_G = loss + settings.kl_weight * size * KL
            self.train_generator(loss_G, step)
        return {**figures, "D": loss_D.detach(), "KL": KL.detach(), "G": loss.detach()}

    def discriminator_loss(
        self, given: Captioned, fake: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L_D, and how real D finds real and generated pairs, from 0 to 1, as figures."""
        D, processes, wrong = self.D, self.computation.processes, None
        with self.computation.autocast():
            real_seen, fake_seen = D(torch.cat([given.reals[-1], fake]), parts=2).chunk(2)
            if self.settings.form == "authors":  # each image with another caption of the batch
                other, is_wrong = other_captions(given, self.computation)
                wrong = WrongPairs(D.conditional(real_seen, other), is_wrong)
            if self.judges_alone:
                both, generated = (D.judge(each, given.judged) for each in (real_seen, fake_seen))
                real, fake = both.conditional, generated.conditional
                loss = discriminator_loss(both, generated, wrong, processes)
            else:
                real, fake = (D.conditional(each, given.judged) for each in (real_seen, fake_seen))
                loss = matching_discriminator_loss(real, fake, wrong, processes=processes)
        return loss, judgments(real, fake)

    def judge(self, given: Captioned, images: Tensor) -> Sequence[Tensor]:
        """Return D's logits (N,) for images with their captions, and those for images alone."""
        seen, told = self.D(images), wide(given.judged)
        if self.judges_alone:
            return self.D.judge(seen, told)
        return [self.D.conditional(seen, told)]

    def generator_loss(self, seen: Seen, given: Captioned) -> Tensor:
        """Return what the generator's loss has of D."""
        if self.settings.form == "paper":
            return saturating_loss(self.D.conditional(seen, given.judged))
        if self.judges_alone:
            return generator_loss(self.D.judge(seen, given.judged), "authors")
        return believed_loss(self.D.conditional(seen, given.judged))


def first_stage_of(config: StackGANConfig) -> StackGANConfig:
    """Return the sizes of the model that the first stage is by itself."""
    return dataclasses.replace(config, stages=1, image_size=config.first_size)


def train_stackgan(
    config: StackGANConfig,
    options: StackGANSettings,
    settings: TrainingSettings,
    examples: TrainingExamples,
    stem: STEM,
    first: StackGANGenerator | None,
    folder: Path,
    execution: Execution,
    **more: Unpack[MoreOfGAN],
) -> nn.Module:
    """Train a stage of StackGAN for captions that a pretrained text encoder reads.

    If ``first``, the trained first stage, is given, it is the second one. The other arguments, the
    result and the errors are those of ``train_gan``.
    """
    where = ({"stem": stem, "stage1": first}, folder, execution)
    return train_gan(StackGANTraining, config, options, settings, examples, *where, **more)
