"""Training of AttnGAN's generator against its discriminators."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.models.config import AttnGANConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.glam import GLAM
from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.training.batches import Batch
from mirrorgan_fast.training.cascade import (
    CascadeTraining,
    Validate,
    figures_of,
    sum_of,
    train_cascade,
)
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.objectives import damsm_loss, kl_loss
from mirrorgan_fast.training.settings import TrainingSettings


class AttnGANTraining(CascadeTraining):
    """L_G = sum_i L_Gi + lambda L_DAMSM + KL (AttnGAN, eq. 3; the KL as in the authors' code)."""

    def step(self, step: int, epoch: int, batch: Batch) -> dict[str, Tensor]:
        """Lower sum_i L_Di, then L_G; then average the generator."""
        settings, pace, processes = self.settings, self.pace(step), self.computation.processes
        given = self.encode(step, batch)
        fakes, mu, log_var = self.generate(step, given)

        D_losses, figures = self.discriminator_losses(given, fakes)
        figures |= figures_of("D", D_losses)
        self.D_learner.lower(sum_of(D_losses + self.r1_penalties(step, given)), pace)
        if not self.generator_trains(step):
            return figures

        # G: be believed by every D_i, match the caption
        with self.D_learner.frozen():
            with self.computation.autocast():
                KL = kl_loss(mu, log_var)
                G_losses = self.generator_losses(given, fakes)
                regions, codes = self.image_encoder(fakes[-1])
                captions = (given.words, given.mask, given.sentence)
                damsm = damsm_loss(*captions, regions, codes, given.labels, processes=processes)
                loss_G = sum_of(G_losses) + settings.damsm_weight * damsm + settings.kl_weight * KL
            lowered = self.G_learner.lower(loss_G, pace)
        if lowered:
            self.average.update(self.glam, step)
        figures |= {"KL": KL.detach(), **figures_of("G", G_losses)}
        return figures | {"damsm": damsm.detach()}


def train_attngan(
    config: AttnGANConfig,
    settings: TrainingSettings,
    examples: TrainingExamples,
    stem: STEM,
    image_encoder: DAMSMImageEncoder,
    folder: Path,
    execution: Execution,
    *,
    start: Mapping[str, Tensor] | None = None,
    validate: Validate | None = None,
) -> GLAM:
    """Train AttnGAN's generator.

    Args:
        config: the sizes of the networks.
        settings: of the whole chain.
        examples: what to train on.
        stem: pretrained text encoder.
        image_encoder: pretrained with ``stem``.
        folder: of the run.
        execution: where and how to train.
        start: see ``train_cascade``.
        validate: see ``train_cascade``.

    Returns:
        the moving average of the generator.

    Raises:
        InputError: see ``train_cascade``.
    """

    def make(computation: Computation, compiled: bool) -> AttnGANTraining:
        return AttnGANTraining(
            config,
            settings.gan,
            stem,
            image_encoder,
            computation,
            compiled=compiled,
        )

    return train_cascade(
        make,
        config,
        settings,
        examples,
        {"stem": stem, "image_encoder": image_encoder},
        folder,
        execution,
        start=start,
        validate=validate,
    )
