"""What the training of a cascade does with a projected discriminator."""

import torch
from torch import Tensor

from mirrorgan_fast.models.config import CascadeConfig
from mirrorgan_fast.models.projected import ProjectedDiscriminator
from mirrorgan_fast.training.augmentation import Augmentation
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.gan import Captioned, judgments, other_captions
from mirrorgan_fast.training.objectives import (
    WrongPairs,
    difference_loss,
    hinge_discriminator_loss,
    stages_alike_loss,
)
from mirrorgan_fast.training.settings import CascadeSettings

_COARSEST = 2  # maps whose distances say how different images are


class ProjectedJudge:
    """A projected discriminator of the last stage's images, with the losses of both sides.

    A step first calls ``discriminator_loss`` and then ``generator_losses``: the images are looked
    at once.

    Args:
        config: the sizes of the networks.
        settings: of this training.
        computation: how a step computes.
    """

    def __init__(
        self, config: CascadeConfig, settings: CascadeSettings, computation: Computation
    ) -> None:
        self.D = ProjectedDiscriminator(config)
        self.settings, self.computation = settings, computation
        self._fake: list[Tensor] = []
        self._real: list[Tensor] = []

    def discriminator_loss(
        self, given: Captioned, asked: Captioned, fakes: list[Tensor], alike: int = 1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L_D: tell real from generated, matching from wrong captions.

        Args:
            given: images of the data set and their captions.
            asked: the captions of the generated images.
            fakes: the generated images of each stage.
            alike: how many generated images one after the other are augmented alike.

        Returns:
            the loss, and how real D finds real and generated images, from 0 to 1, as figures.
        """
        other, is_wrong = other_captions(given, self.computation)
        with self.computation.autocast():
            self._fake = self.D.look(self._augmented(fakes[-1], alike))
            with torch.no_grad():
                self._real = self.D.look(self._augmented(given.reals[-1]))
            fake = self.D([map.detach() for map in self._fake])
            real = self.D(self._real)
            real_logits = self.D.conditional(real, given.judged)
            fake_logits = self.D.conditional(fake, asked.judged)
            wrong = WrongPairs(self.D.conditional(real, other), is_wrong)
            loss = hinge_discriminator_loss(
                real_logits, fake_logits, wrong, self.computation.processes
            )
        return loss, judgments(real_logits, fake_logits)

    def generator_losses(
        self, asked: Captioned, fakes: list[Tensor], *, different: bool
    ) -> dict[str, Tensor]:
        """Return the generator's weighted losses by name, for the images that were looked at.

        Args:
            asked: the captions of the generated images.
            fakes: these images, of each stage.
            different: whether each two are of the same caption, and are kept different.
        """
        settings = self.settings
        logits = self.D.conditional(self.D(self._fake), asked.judged)
        losses = {"G": -logits.float().mean()}
        if settings.stages_weight:
            losses["stages"] = settings.stages_weight * stages_alike_loss(fakes)
        if different:
            maps = self._fake[-_COARSEST:], self._real[-_COARSEST:]
            least, processes = settings.least_difference, self.computation.processes
            loss = difference_loss(*maps, least, processes)
            losses["difference"] = settings.difference_weight * loss
        self._fake, self._real = [], []
        return losses

    def _augmented(self, images: Tensor, alike: int = 1) -> Tensor:
        """Augment images; each ``alike`` ones alike, or what differs would be the augmentation."""
        if not self.settings.augment:
            return images
        processes, device = self.computation.processes, self.computation.device
        return Augmentation.drawn(len(images), processes, device, alike)(images)
