"""Training of MirrorGAN's generator against its discriminators."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import ModelConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.discriminator import Discriminator
from mirrorgan_fast.models.glam import GLAM
from mirrorgan_fast.models.stem import STEM, word_mask
from mirrorgan_fast.models.stream import STREAM
from mirrorgan_fast.pictures import to_signed
from mirrorgan_fast.training.batches import Batch, Batches
from mirrorgan_fast.training.learner import Learner
from mirrorgan_fast.training.loop import Part, fit
from mirrorgan_fast.training.objectives import (
    WrongPairs,
    damsm_loss,
    discriminator_loss,
    generator_loss,
    kl_loss,
    r1_penalty,
    stream_loss,
)
from mirrorgan_fast.training.precision import Precision, autocast
from mirrorgan_fast.training.run import Unsaid, dependencies, open_run
from mirrorgan_fast.training.settings import GANSettings, TrainingSettings
from mirrorgan_fast.training.sheets import SampleSheets

_R1_EVERY = 4  # steps; as good as in each of them (Karras et al., "Analyzing StyleGAN", sec. 3.1)


class MirrorGANTraining:
    """L_G = sum_i L_Gi + lambda L_stream + lambda_damsm L_DAMSM + KL (MirrorGAN, eq. 8).

    STEM, STREAM and DAMSM's image encoder are pretrained and stay as they are.

    Args:
        config: the sizes of the networks.
        settings: of this training.
        stem: the text encoder.
        image_encoder: trained with ``stem``.
        stream: the captioner.
        device: where to train.
        precision: of the steps.
        compiled: whether ``torch.compile`` compiles the generator.
    """

    def __init__(
        self,
        config: ModelConfig,
        settings: GANSettings,
        stem: STEM,
        image_encoder: DAMSMImageEncoder,
        stream: STREAM,
        device: torch.device,
        precision: Precision,
        *,
        compiled: bool,
    ) -> None:
        self.config, self.settings = config, settings
        self.device, self.precision = device, precision
        self.stem, self.image_encoder, self.stream = stem, image_encoder, stream
        for frozen in (stem, image_encoder, stream):
            frozen.to(device).eval().requires_grad_(False)
        # The LSTM passes gradients to STREAM's image only in training mode on CUDA.
        stream.lstm.train()
        self._same_cnn = _same(image_encoder.cnn, stream.cnn)
        glam = GLAM(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        D = [Discriminator(config, size) for size in config.stage_sizes]
        all_D = nn.ModuleList(D)
        all_D.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = AveragedModel(
            glam, multi_avg_fn=_moving_average(settings.average_decay), use_buffers=True
        ).eval()
        self.glam, self.D, self.all_D = glam, D, all_D
        self.G_learner = Learner(glam, settings.learning_rate, settings.betas)
        self.D_learner = Learner(all_D, settings.discriminator_learning_rate, settings.betas)
        self.generate = torch.compile(glam) if compiled else glam

    def parts(self) -> dict[str, Part]:
        """Return what a checkpoint holds."""
        return {
            "glam": self.glam,
            "D": self.all_D,
            "average": self.average,
            "G_adam": self.G_learner.adam,
            "D_adam": self.D_learner.adam,
        }

    def stages(self, step: int) -> int:
        """Return how many stages train in a step."""
        return self.config.stages - (step < self.settings.last_stage_from)

    def step(self, step: int, epoch: int, batch: Batch) -> dict[str, Tensor]:
        """Lower L_Di of every stage, then L_G; average the generator."""
        settings, device = self.settings, self.device
        figures: dict[str, Tensor] = {}
        decay_steps = max(1, min(settings.decay_steps, settings.steps))
        pace = min(1.0, (settings.steps - step) / decay_steps)

        tokens, lengths = batch["tokens"].to(device), batch["length"].to(device)
        labels = batch["label"].to(device)
        mask = word_mask(lengths, tokens.shape[1])
        real = to_signed(batch["image"], device)
        sizes = self.config.stage_sizes[: self.stages(step)]
        D = self.D[: len(sizes)]
        reals = [
            real if size == self.config.image_size else functional.adaptive_avg_pool2d(real, size)
            for size in sizes
        ]
        z = torch.randn(len(real), self.config.noise_size, device=device)
        eps = torch.randn(len(real), self.config.condition_size, device=device)

        with autocast(device, self.precision):
            with torch.no_grad():
                words, sentence = self.stem(tokens, lengths)
            fakes, mu, log_var = self.generate(z, eps, words, mask, sentence, len(sizes))

            # D_i: tell real from generated, and fitting sentences from others
            loss_D = torch.zeros((), device=device)
            for i, (D_i, real_i, fake_i) in enumerate(zip(D, reals, fakes, strict=True)):
                real_features, fake_features = D_i(real_i), D_i(fake_i.detach())
                real_logits = D_i.judge(real_features, sentence)
                fake_logits = D_i.judge(fake_features, sentence)
                wrong = None
                if settings.form == "authors":
                    logits = D_i.conditional(real_features, sentence.roll(1, dims=0))
                    wrong = WrongPairs(logits, labels != labels.roll(1))
                loss = discriminator_loss(real_logits, fake_logits, wrong)
                loss_D = loss_D + loss
                figures[f"D_{i}"] = loss.detach()
        if settings.r1_weight and step % _R1_EVERY == 0:
            for D_i, real_i in zip(D, reals, strict=True):
                # second derivatives in float32, which costs little in every fourth step
                x = real_i.float().detach().requires_grad_()
                penalty = r1_penalty(D_i.judge(D_i(x), sentence.float()), x)
                loss_D = loss_D + _R1_EVERY * settings.r1_weight * penalty
        self.D_learner.lower(loss_D, pace)

        # G: be believed by every D_i, be described back as the caption
        with self.D_learner.frozen():
            with autocast(device, self.precision):
                loss_G = settings.kl_weight * kl_loss(mu, log_var)
                figures["KL"] = loss_G.detach()
                for i, (D_i, fake_i) in enumerate(zip(D, fakes, strict=True)):
                    loss = generator_loss(D_i.judge(D_i(fake_i), sentence), settings.form)
                    loss_G = loss_G + loss
                    figures[f"G_{i}"] = loss.detach()
                pooled: Tensor | None = None
                if settings.damsm_weight:
                    regions, seen = self.image_encoder.cnn(fakes[-1])
                    embedded = self.image_encoder.embed(regions, seen)
                    loss = damsm_loss(words, mask, sentence, *embedded, labels)
                    loss_G = loss_G + settings.damsm_weight * loss
                    figures["damsm"] = loss.detach()
                    pooled = seen if self._same_cnn else None
                if settings.stream_weight:
                    pooled = self.stream.see(fakes[-1]) if pooled is None else pooled
                    predicted = self.stream.predict(pooled, tokens)
                    loss = stream_loss(predicted, tokens, lengths, settings.form)
                    loss_G = loss_G + settings.stream_weight * loss
                    figures["stream"] = loss.detach()
            self.G_learner.lower(loss_G, pace)
        self.average.update_parameters(self.glam)
        return figures


def train_gan(
    config: ModelConfig,
    settings: TrainingSettings,
    examples: TrainingExamples,
    stem: STEM,
    image_encoder: DAMSMImageEncoder,
    stream: STREAM,
    folder: Path,
    *,
    device: torch.device,
    workers: int = 1,
    sheet_every: int = 1000,
    compiled: bool | None = None,
    quiet: bool = False,
) -> GLAM:
    """Train GLAM against its discriminators.

    Writes checkpoints, curves and sheets of samples; resumes from the folder's checkpoint.

    Args:
        config: the sizes of the networks.
        settings: of the whole chain.
        examples: what to train on.
        stem: pretrained text encoder.
        image_encoder: pretrained with ``stem``.
        stream: pretrained captioner.
        folder: of the run.
        device: where to train.
        workers: processes that read images.
        sheet_every: steps between two sheets of samples.
        compiled: use ``torch.compile`` on the generator: a minute or two at the start. None: as
            the run began, which is without.
        quiet: no progress bar.

    Returns:
        the moving average of the generator.

    Raises:
        InputError: the last stage would never be trained; see also ``Run`` and ``Batches``.
    """
    options = settings.gan
    check_last_stage(config, options)
    batches = Batches(examples, options.batch_size, settings.seed, workers)
    needs = dependencies(
        config,
        settings,
        options,
        examples,
        device,
        stem=stem.state_dict(),
        image_encoder=image_encoder.state_dict(),
        stream=stream.state_dict(),
    )
    needs["compiled"] = Unsaid(False) if compiled is None else compiled
    with open_run(folder, options, settings, needs, quiet=quiet) as run:
        precision = run.settings["precision"]
        torch.manual_seed(settings.seed)
        task = MirrorGANTraining(
            config,
            options,
            stem,
            image_encoder,
            stream,
            device,
            precision,
            compiled=run.settings["compiled"],
        )
        average = task.average.module
        assert isinstance(average, GLAM)
        sheets = SampleSheets(average, stem, examples, config, folder / "samples", device)

        def draw(steps: int) -> None:
            with autocast(device, precision):
                sheets.write(steps, task.stages(steps - 1))

        fit(task, run, batches, sheet=draw, sheet_every=sheet_every)
    return average


def check_last_stage(config: ModelConfig, options: GANSettings) -> None:
    """Raise InputError if the last stage would never be trained."""
    if options.last_stage_from >= options.steps or (options.last_stage_from and config.stages == 1):
        raise InputError(
            f"gan.last_stage_from is {options.last_stage_from} of {options.steps} steps with "
            f"{config.stages} stages: the last stage would never be trained, or is the only one; "
            f"set it lower (0: all stages from the start)"
        )


_Tensors = tuple[Tensor, ...] | list[Tensor]


def _moving_average(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """Return the average's update, which at the start of training forgets its beginning sooner."""

    def update(averages: _Tensors, currents: _Tensors, count: Tensor | int) -> None:
        early = (1 + int(count)) / (10 + int(count))
        get_ema_multi_avg_fn(min(decay, early))(averages, currents, count)

    return update


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two CNNs have the same weights, as DAMSM's and STREAM's small ones do."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )
