"""Training of MirrorGAN's generator against its discriminators."""

from functools import partial
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor, nn

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.models.stream import STREAM
from mirrorgan_fast.training.batches import Batch
from mirrorgan_fast.training.cascade import CascadeTraining
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.gan import MoreOfGAN, detached, frozen, sum_of, train_gan
from mirrorgan_fast.training.objectives import damsm_loss, kl_loss, stream_loss
from mirrorgan_fast.training.settings import MirrorGANSettings, MirrorGANTrainingSettings


class MirrorGANTraining(CascadeTraining):
    """L_G = sum_i L_Gi + lambda L_stream, with the KL of the authors' code.

    AttnGAN's L_DAMSM is an option. STREAM is pretrained and stays as it is. The other arguments are
    those of ``CascadeTraining``.

    Args:
        image_encoder: DAMSM's, trained with ``stem``, which stays as it is.
        stream: the captioner.
        ends: see ``stream_loss``.
    """

    settings: MirrorGANSettings

    def __init__(
        self,
        config: MirrorGANConfig,
        settings: MirrorGANSettings,
        stem: STEM,
        image_encoder: DAMSMImageEncoder,
        stream: STREAM,
        computation: Computation,
        *,
        ends: bool = True,
        compiled: bool,
    ) -> None:
        super().__init__(config, settings, stem, computation, compiled=compiled)
        self.image_encoder = frozen(image_encoder, computation.device)
        self.stream = frozen(stream, computation.device)
        self.ends = ends
        # On CUDA, an LSTM must be in training mode for gradients to reach the image.
        stream.lstm.train()
        # If both have the same frozen CNN, its features of an image are computed once.
        self._same_cnn = _same(image_encoder.cnn, stream.cnn)

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

        # G: be believed by every D_i, be described back as the caption
        with self.D_learner.frozen():
            with self.computation.autocast():
                KL = kl_loss(mu, log_var)
                G_losses = self.generator_losses(step, asked, fakes, settings.form)
                loss_G = sum_of([settings.kl_weight * KL, *G_losses.values()])
                figures |= {"KL": KL.detach(), **detached(G_losses)}
                pooled: Tensor | None = None
                if settings.damsm_weight:
                    regions, seen = self.image_encoder.cnn(fakes[-1])
                    v = self.image_encoder.embed(regions, seen)
                    words = (asked.words, asked.mask, asked.sentence)
                    loss = damsm_loss(*words, *v, asked.labels, processes=processes)
                    loss_G = loss_G + settings.damsm_weight * loss
                    figures["damsm"] = loss.detach()
                    pooled = seen if self._same_cnn else None
                if settings.stream_weight:
                    pooled = self.stream.see(fakes[-1]) if pooled is None else pooled
                    logits = self.stream.predict(pooled, asked.tokens)
                    loss = stream_loss(
                        logits,
                        asked.tokens,
                        asked.lengths,
                        settings.form,
                        self.ends,
                        asked.whole_lengths,
                        processes,
                    )
                    loss_G = loss_G + settings.stream_weight * loss
                    figures["stream"] = loss.detach()
            self.train_generator(loss_G, step)
        return figures


def train_mirrorgan(
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    examples: TrainingExamples,
    stem: STEM,
    image_encoder: DAMSMImageEncoder,
    stream: STREAM,
    folder: Path,
    execution: Execution,
    **more: Unpack[MoreOfGAN],
) -> nn.Module:
    """Train MirrorGAN's generator with a pretrained text encoder, image encoder and captioner.

    The other arguments, the result and the errors are those of ``train_gan``.
    """
    networks = {"stem": stem, "image_encoder": image_encoder, "stream": stream}
    training = partial(MirrorGANTraining, ends=settings.stream.ends)
    also = {} if settings.stream.ends else {"stream.ends": False}
    where = (networks, folder, execution)
    return train_gan(training, config, settings.gan, settings, examples, *where, also=also, **more)


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two CNNs have the same weights, as DAMSM's and STREAM's small ones do."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )
