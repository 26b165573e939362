"""What the trainings of GAN-INT-CLS and GAWWN share: GAN-CLS, a matching-aware discriminator."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from mirrorgan_fast.models.config import GanIntClsConfig, GawwnConfig
from mirrorgan_fast.models.gan_int_cls import GanIntClsDiscriminator
from mirrorgan_fast.models.gawwn import GawwnBoxDiscriminator
from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.ops.wide import wide
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.gan import (
    Captioned,
    GANTraining,
    judgments,
    other_captions,
    sum_of,
)
from mirrorgan_fast.training.objectives import WrongPairs, matching_discriminator_loss
from mirrorgan_fast.training.settings import GanIntClsSettings, GawwnSettings


class GanClsTraining(GANTraining):
    """A generator of one stage against D, which judges pairs of an image and a caption.

    D also learns that images with captions of others are wrong pairs, unless ``wrong_weight`` is 0
    (Reed et al., algorithm 1). The arguments are those of ``GANTraining``.
    """

    NETWORKS: ClassVar[tuple[Callable[[Any], nn.Module], Callable[[Any], Any]]]
    """The classes of the generator and of D."""
    config: GanIntClsConfig | GawwnConfig
    settings: GanIntClsSettings | GawwnSettings
    D: GanIntClsDiscriminator | GawwnBoxDiscriminator

    def __init__(
        self,
        config: GanIntClsConfig | GawwnConfig,
        settings: GanIntClsSettings | GawwnSettings,
        stem: STEM,
        computation: Computation,
        *,
        compiled: bool,
    ) -> None:
        make_generator, make_discriminator = self.NETWORKS
        generator, self.D = make_generator(config), make_discriminator(config)
        super().__init__(
            config, settings, stem, generator, [self.D], computation, compiled=compiled
        )

    def train_discriminator(
        self, given: Captioned, fakes: Tensor, step: int, *box: Tensor
    ) -> dict[str, Tensor]:
        """Take a step of D down its loss; return the figures of it.

        Args:
            given: the captions and their images.
            fakes: generated images of them, (N, 3, S, S), detached from the generator.
            step: the number of the step.
            box: if D is told of boxes, those of the images, (N, 4).
        """
        D, s, wrong_weight = self.D, given.sentence, self.settings.wrong_weight
        with self.computation.autocast():
            seen = D(given.reals[-1])
            real, fake = D.conditional(seen, s, *box), D.conditional(D(fakes), s, *box)
            wrong = None
            if wrong_weight:
                other, is_wrong = other_captions(given, self.computation)
                wrong = WrongPairs(D.conditional(seen, other, *box), is_wrong)
            processes = self.computation.processes
            loss = matching_discriminator_loss(real, fake, wrong, wrong_weight, processes)
        penalty = self.r1_penalty(
            step, given.reals[-1], lambda images: [D.conditional(D(images), wide(s), *box)]
        )
        self.D_learner.lower(sum_of([loss, *penalty]), self.pace(step))
        return {"D": loss.detach(), **judgments(real, fake)}
