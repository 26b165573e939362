"""Training of StackGAN++'s generator against its discriminators."""

from torch import Tensor

from mirrorgan_fast.models.discriminator import Logits
from mirrorgan_fast.training.batches import Batch
from mirrorgan_fast.training.cascade import CascadeTraining
from mirrorgan_fast.training.gan import detached, sum_of
from mirrorgan_fast.training.objectives import (
    WrongPairs,
    color_consistency_loss,
    kl_loss,
    stackgan_v2_discriminator_loss,
)
from mirrorgan_fast.training.settings import StackGANv2Settings


class StackGANv2Training(CascadeTraining):
    """L_G = sum_i L_Gi + alpha sum_i L_Ci + KL (StackGAN++, section 4).

    What discriminators are told of a caption is mu of the conditioning augmentation. They do not
    change it, but the generator does, unless ``settings.detach_mu``.
    """

    settings: StackGANv2Settings

    def step(self, step: int, epoch: int, batch: Batch) -> dict[str, Tensor]:
        """Lower sum_i L_Di, then L_G; then average the generator."""
        settings, pace = self.settings, self.pace(step)
        given = self.encode(step, batch)
        fakes, mu, log_var = self.generate(step, given)
        told = given._replace(judged=mu.detach())

        D_losses, figures = self.discriminator_losses(step, told, told, fakes)
        figures |= detached(D_losses)
        self.D_learner.lower(sum_of([*D_losses.values(), *self.r1_penalties(step, told)]), pace)
        if not self.generator_trains(step):
            return figures

        # G: be believed by every D_i, and keep the colors from stage to stage
        with self.D_learner.frozen():
            with self.computation.autocast():
                KL = kl_loss(mu, log_var)
                judged = told if settings.detach_mu else given._replace(judged=mu)
                G_losses = self.generator_losses(step, judged, fakes, "authors")
                loss_G = sum_of([settings.kl_weight * KL, *G_losses.values()])
                figures |= {"KL": KL.detach(), **detached(G_losses)}
                if settings.color_weight:
                    color = color_consistency_loss(fakes, settings.form)
                    loss_G = loss_G + settings.color_weight * color
                    figures["color"] = color.detach()
            self.train_generator(loss_G, step)
        return figures

    def discriminator_loss(self, real: Logits, fake: Logits, wrong: WrongPairs | None) -> Tensor:
        """Return L_Di."""
        return stackgan_v2_discriminator_loss(real, fake, wrong, self.computation.processes)
