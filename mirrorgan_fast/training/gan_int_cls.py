"""Training of GAN-INT-CLS's generator against its discriminator."""

import torch
from torch import Tensor

from mirrorgan_fast.models.config import GanIntClsConfig
from mirrorgan_fast.models.gan_int_cls import GanIntClsDiscriminator, GanIntClsGenerator
from mirrorgan_fast.training.batches import Batch
from mirrorgan_fast.training.gan_cls import GanClsTraining
from mirrorgan_fast.training.objectives import believed_loss
from mirrorgan_fast.training.settings import GanIntClsSettings


class GanIntClsTraining(GanClsTraining):
    """GAN-INT-CLS (Reed et al., algorithm 1, and eq. 5 for mixed sentences).

    With ``wrong_weight`` 0 it is GAN-INT, with ``interpolation_weight`` 0 GAN-CLS, and with both 0
    a GAN. Wrong pairs are images with captions of others, as in the paper; the authors' code takes
    other images with the caption. The arguments are those of ``GANTraining``.
    """

    NETWORKS = GanIntClsGenerator, GanIntClsDiscriminator
    config: GanIntClsConfig
    settings: GanIntClsSettings
    D: GanIntClsDiscriminator

    def step(self, step: int, epoch: int, batch: Batch) -> dict[str, Tensor]:
        """Lower L_D, then L_G on images of new noise; then average the generator."""
        settings, D = self.settings, self.D
        given = self.encode(step, batch)
        with torch.no_grad():
            fakes = self.generate(step, given).images[-1]
        figures = self.train_discriminator(given, fakes, step)

        # G: be believed with the captions' sentences, and with mixtures of two of them
        s, mixed = given.sentence, self.mixed(given.sentence)
        both = torch.cat([s, mixed])
        noises = map(torch.cat, zip(self.noises(len(s)), self.noises(len(mixed)), strict=True))
        with self.D_learner.frozen():
            with self.computation.autocast():
                images = self._generate(*noises, given.words, given.mask, both).images[-1]
                logits = D.conditional(D(images), both)
                loss_G = believed_loss(logits[: len(s)]) * len(s)
                if len(mixed):
                    loss_mixed = believed_loss(logits[len(s) :]) * len(mixed)
                    loss_G = loss_G + settings.interpolation_weight * loss_mixed
                loss_G = loss_G / len(both)
            self.train_generator(loss_G, step)
        return {**figures, "G": loss_G.detach()}

    def mixed(self, sentences: Tensor) -> Tensor:
        """Return mixtures of the first half of the batch's sentences (N, D) with the second half.

        There are N / 2, or fewer if processes could not share them equally; none if the weight of
        their images is 0.
        """
        processes, beta = self.computation.processes, self.settings.beta
        whole = processes.gathered(sentences)
        half = len(whole) // 2 if self.settings.interpolation_weight else 0
        half -= half % processes.count
        return processes.own(beta * whole[:half] + (1 - beta) * whole[len(whole) // 2 :][:half])
