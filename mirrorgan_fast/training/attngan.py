"""Training of AttnGAN's generator against its discriminators."""

from torch import Tensor

from mirrorgan_fast.models.config import AttnGANConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.training.batches import Batch
from mirrorgan_fast.training.cascade import CascadeTraining
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.gan import detached, frozen, sum_of
from mirrorgan_fast.training.objectives import damsm_loss, kl_loss
from mirrorgan_fast.training.settings import AttnGANSettings


class AttnGANTraining(CascadeTraining):
    """L_G = sum_i L_Gi + lambda L_DAMSM + KL (AttnGAN, eq. 3; the KL as in the authors' code).

    The other arguments are those of ``CascadeTraining``.

    Args:
        image_encoder: DAMSM's, trained with ``stem``, which stays as it is.
    """

    settings: AttnGANSettings

    def __init__(
        self,
        config: AttnGANConfig,
        settings: AttnGANSettings,
        stem: STEM,
        image_encoder: DAMSMImageEncoder,
        computation: Computation,
        *,
        compiled: bool,
    ) -> None:
        super().__init__(config, settings, stem, computation, compiled=compiled)
        self.image_encoder = frozen(image_encoder, computation.device)

    def step(self, step: int, epoch: int, batch: Batch) -> dict[str, Tensor]:
        """Lower sum_i L_Di, then L_G; then average the generator."""
        settings, pace, processes = self.settings, self.pace(step), self.computation.processes
        given = self.encode(step, batch)
        asked = self.asked(step, given, batch)
        fakes, mu, log_var = self.generate(step, asked)

        D_losses, figures = self.discriminator_losses(step, given, asked, fakes)
        figures |= detached(D_losses)
        self.D_learner.lower(sum_of([*D_losses.values(), *self.r1_penalties(step, given)]), pace)
        if not self.generator_trains(step):
            return figures

        # G: be believed by every D_i, match the caption
        with self.D_learner.frozen():
            with self.computation.autocast():
                KL = kl_loss(mu, log_var)
                G_losses = self.generator_losses(step, asked, fakes, settings.form)
                regions, codes = self.image_encoder(fakes[-1])
                captions = (asked.words, asked.mask, asked.sentence)
                damsm = damsm_loss(*captions, regions, codes, asked.labels, processes=processes)
                loss_G = sum_of(G_losses.values())
                loss_G = loss_G + settings.damsm_weight * damsm + settings.kl_weight * KL
            self.train_generator(loss_G, step)
        figures |= {"KL": KL.detach(), **detached(G_losses)}
        return figures | {"damsm": damsm.detach()}
