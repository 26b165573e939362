"""Training of the GAN: one loop, top to bottom."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
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
from mirrorgan_fast.pictures import to_signed, to_uint8, write_sheet
from mirrorgan_fast.training.objectives import (
    damsm_loss,
    discriminator_loss,
    generator_loss,
    kl_loss,
    r1_penalty,
    stream_loss,
)
from mirrorgan_fast.training.precision import autocast
from mirrorgan_fast.training.pretraining import begin, dependencies
from mirrorgan_fast.training.run import Unsaid
from mirrorgan_fast.training.settings import GANSettings, TrainingSettings

_SHEET_CAPTIONS, _SHEET_NOISES = 8, 4
_R1_EVERY = 4  # steps; as good as in each of them (Karras et al., "Analyzing StyleGAN", sec. 3.1)


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
    """Train GLAM and its discriminators; STEM, STREAM and the image encoder stay as they are.

    L_G = sum_i L_Gi + lambda L_stream + lambda_damsm L_DAMSM + KL (MirrorGAN, eq. 8). Writes
    checkpoints, curves and sheets of samples into ``folder``, and goes on from the checkpoint
    there is.

    Args:
        config: the sizes of the networks.
        settings: the recipe.
        examples: images and captions.
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
        the moving average of the generator's parameters and buffers.

    Raises:
        InputError: the last stage would never be trained; see also ``Run``.
    """
    options = settings.gan
    check_last_stage(config, options)
    decay_steps = min(options.decay_steps, options.steps)
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
    run = begin(folder, options, settings, needs, quiet=quiet)
    precision = run.settings["precision"]
    torch.manual_seed(settings.seed)
    for frozen in (stem, image_encoder, stream):
        frozen.to(device).eval().requires_grad_(False)
    # The LSTM passes gradients to STREAM's image only in training mode on CUDA.
    stream.lstm.train()
    alike = _alike(image_encoder.cnn, stream.cnn)
    glam = GLAM(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    D = [Discriminator(config, size) for size in config.stage_sizes]
    all_D = nn.ModuleList(D)
    all_D.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(
        glam, multi_avg_fn=_moving_average(options.average_decay), use_buffers=True
    )
    optimizer_G = torch.optim.Adam(glam.parameters(), options.learning_rate, options.betas)
    optimizer_D = torch.optim.Adam(
        all_D.parameters(), options.discriminator_learning_rate, options.betas
    )
    parts = {
        "glam": glam,
        "D": all_D,
        "average": average,
        "G_adam": optimizer_G,
        "D_adam": optimizer_D,
    }
    run.restore(parts)
    average.eval()
    generate = torch.compile(glam) if run.settings["compiled"] else glam
    sheet_batch = _sheet_batch(examples)

    with run:
        for step, _, batch in run.batches(examples, options.batch_size, settings.seed, workers):
            stages = config.stages - (step < options.last_stage_from)
            pace = min(1.0, (options.steps - step) / max(1, decay_steps))
            for group in optimizer_G.param_groups:
                group["lr"] = options.learning_rate * pace
            for group in optimizer_D.param_groups:
                group["lr"] = options.discriminator_learning_rate * pace
            tokens, lengths = batch["tokens"].to(device), batch["length"].to(device)
            labels = batch["label"].to(device)
            mask = word_mask(lengths, tokens.shape[1])
            real = to_signed(batch["image"], device)
            reals = [
                real if size == config.image_size else functional.adaptive_avg_pool2d(real, size)
                for size in config.stage_sizes[:stages]
            ]
            noise = torch.randn(len(real), config.noise_size, device=device)
            condition_noise = torch.randn(len(real), config.condition_size, device=device)
            figures: dict[str, float | Tensor] = {}

            with autocast(device, precision):
                with torch.no_grad():
                    words, sentence = stem(tokens, lengths)
                fakes, mu, log_var = generate(noise, condition_noise, words, mask, sentence, stages)

                # D_i: tell real from generated, and fitting sentences from others
                loss_D = torch.zeros((), device=device)
                for i, (D_i, real_i, fake_i) in enumerate(
                    zip(D[:stages], reals, fakes, strict=True)
                ):
                    loss = discriminator_loss(
                        D_i, real_i, fake_i.detach(), sentence, labels, options.form
                    )
                    loss_D = loss_D + loss
                    figures[f"D_{i}"] = loss.detach()
            if options.r1_weight and step % _R1_EVERY == 0:
                for D_i, real_i in zip(D[:stages], reals, strict=True):
                    # second derivatives in fp32, which costs little in every fourth step
                    penalty = r1_penalty(D_i, real_i.float(), sentence.float())
                    loss_D = loss_D + _R1_EVERY * options.r1_weight * penalty
            optimizer_D.zero_grad()
            loss_D.backward()
            optimizer_D.step()

            # G: be believed by every D_i, be described back as the caption
            all_D.requires_grad_(False)
            with autocast(device, precision):
                loss_G = options.kl_weight * kl_loss(mu, log_var)
                figures["KL"] = loss_G.detach()
                for i, (D_i, fake_i) in enumerate(zip(D[:stages], fakes, strict=True)):
                    loss = generator_loss(D_i, fake_i, sentence, options.form)
                    loss_G = loss_G + loss
                    figures[f"G_{i}"] = loss.detach()
                pooled: Tensor | None = None
                if options.damsm_weight:
                    seen = image_encoder.cnn(fakes[-1])
                    regions, codes = image_encoder.embed(*seen)
                    loss = damsm_loss(words, mask, sentence, regions, codes, labels)
                    loss_G = loss_G + options.damsm_weight * loss
                    figures["damsm"] = loss.detach()
                    pooled = seen[1] if alike else None
                if options.stream_weight:
                    pooled = stream.see(fakes[-1]) if pooled is None else pooled
                    loss = stream_loss(
                        stream.predict(pooled, tokens), tokens, lengths, options.form
                    )
                    loss_G = loss_G + options.stream_weight * loss
                    figures["stream"] = loss.detach()
            optimizer_G.zero_grad()
            loss_G.backward()
            optimizer_G.step()
            all_D.requires_grad_(True)
            average.update_parameters(glam)

            run.log(step, figures)
            if run.saving(step):
                run.save(step, {name: part.state_dict() for name, part in parts.items()})
            if run.due(step, sheet_every):
                with autocast(device, precision):
                    write_sheet(
                        folder / "samples" / f"{step + 1:07d}.png",
                        _samples(average.module, stem, sheet_batch, config, stages, device),
                        columns=_SHEET_CAPTIONS,
                    )
    assert isinstance(average.module, GLAM)
    return average.module


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


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two CNNs see the same, as DAMSM's and STREAM's small ones do."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def _sheet_batch(examples: TrainingExamples) -> dict[str, Tensor]:
    examples.set_epoch(0)
    chosen = [examples[i] for i in range(min(_SHEET_CAPTIONS, len(examples)))]
    return {
        "tokens": torch.stack([example["tokens"] for example in chosen]),
        "length": torch.tensor([example["length"] for example in chosen]),
    }


@torch.no_grad()
def _samples(
    glam: nn.Module,
    stem: STEM,
    batch: dict[str, Tensor],
    config: ModelConfig,
    stages: int,
    device: torch.device,
) -> list[np.ndarray]:
    """Return a row of images of the batch's captions for each of a few fixed noises."""
    tokens, lengths = batch["tokens"].to(device), batch["length"].to(device)
    words, sentence = stem(tokens, lengths)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(_SHEET_NOISES):
        noise = torch.randn(len(tokens), config.noise_size, generator=generator).to(device)
        eps = torch.randn(len(tokens), config.condition_size, generator=generator).to(device)
        mask = word_mask(lengths, tokens.shape[1])
        images = glam(noise, eps, words, mask, sentence, stages).images
        rows.append(to_uint8(images[-1]).cpu().numpy())
    return [image for row in rows for image in row]
