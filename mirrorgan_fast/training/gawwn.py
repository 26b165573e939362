"""Training of GAWWN's generator with boxes against its discriminator."""

import torch
from torch import Tensor

from mirrorgan_fast.models.config import GawwnConfig
from mirrorgan_fast.models.gawwn import GawwnBoxDiscriminator, GawwnBoxGenerator
from mirrorgan_fast.training.batches import Batch
from mirrorgan_fast.training.gan_cls import GanClsTraining
from mirrorgan_fast.training.objectives import believed_loss
from mirrorgan_fast.training.settings import GawwnSettings


class GawwnTraining(GanClsTraining):
    """GAWWN with a box: GAN-CLS whose generator and discriminator are told of each image's box.

    Wrong pairs have another caption and the image's own box, as in the authors' code. They compute
    the generator's loss with the discriminator's activations from before its step; here they are
    new. The arguments are those of ``GANTraining``; batches have boxes.
    """

    NETWORKS = GawwnBoxGenerator, GawwnBoxDiscriminator
    config: GawwnConfig
    settings: GawwnSettings
    D: GawwnBoxDiscriminator

    def step(self, step: int, epoch: int, batch: Batch) -> dict[str, Tensor]:
        """Lower L_D, then L_G on the same images; then average the generator."""
        D, given = self.D, self.encode(step, batch)
        (box,) = self.computation.on_device(batch, "box")
        box = box.to(torch.get_default_dtype())
        s = given.sentence
        noise, _ = self.noises(len(s))
        with self.computation.autocast():
            fakes = self._generate(noise, box, given.words, given.mask, s).images[-1]
        figures = self.train_discriminator(given, fakes.detach(), step, box)
        with self.D_learner.frozen():
            with self.computation.autocast():
                loss_G = believed_loss(D.conditional(D(fakes), s, box))
            self.train_generator(loss_G, step)
        return {**figures, "G": loss_G.detach()}
