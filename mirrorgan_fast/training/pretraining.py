"""Pretraining: the small CNN by phrases, STREAM as a captioner, STEM with DAMSM's image encoder."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.metrics.r_precision import sentence_similarity
from mirrorgan_fast.models.backbones.small import SmallImageEncoder
from mirrorgan_fast.models.config import ModelConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.stem import STEM, word_mask
from mirrorgan_fast.models.stream import STREAM
from mirrorgan_fast.pictures import to_signed
from mirrorgan_fast.training.batches import Batch, load_batches
from mirrorgan_fast.training.checkpoint import CHECKPOINT, fingerprint
from mirrorgan_fast.training.objectives import damsm_loss, stream_loss
from mirrorgan_fast.training.precision import Precision, autocast, computes_in_bf16
from mirrorgan_fast.training.run import Run, Unsaid
from mirrorgan_fast.training.settings import (
    CNNSettings,
    GANSettings,
    Stage,
    STEMSettings,
    STREAMSettings,
    TrainingSettings,
)

BackboneWeights = Path | Literal["random"]
"""A file of ImageNet weights for a large CNN, or "random" to train it from nothing."""
StageSettings = CNNSettings | STEMSettings | STREAMSettings | GANSettings
_BACKBONE = "weights that the CNN began with"


def train_cnn(
    config: ModelConfig,
    settings: TrainingSettings,
    examples: TrainingExamples,
    folder: Path,
    *,
    device: torch.device,
    workers: int = 1,
    quiet: bool = False,
) -> SmallImageEncoder:
    """Train the small CNN to tell which phrases the captions of an image have.

    The visual n-grams of Li et al. (2017): what ImageNet's weights are to the large CNNs. From
    nothing, neither a captioner nor matching whole captions teaches a CNN to see in reasonable
    time, as both say little of an image at a step; its phrases say nearly all that is known of it.
    Writes checkpoints and curves into ``folder``, and goes on from the checkpoint there is.

    Raises:
        InputError: see ``Run``.
    """
    options = settings.cnn
    needs = dependencies(config, settings, options, examples, device)
    run = begin(folder, options, settings, needs, quiet=quiet)
    precision = run.settings["precision"]
    torch.manual_seed(settings.seed)
    phrases = examples.phrases(options.phrases)
    cnn = SmallImageEncoder().to(device)
    # The grid is asked too: what is seen through the last layer alone comes later and is less
    heads = nn.ModuleDict(
        {
            "grid": nn.Linear(cnn.grid_size, phrases.shape[1]),
            "pooled": nn.Linear(cnn.pooled_size, phrases.shape[1]),
        }
    ).to(device)
    both = nn.ModuleDict({"cnn": cnn, "heads": heads})
    optimizer = torch.optim.Adam(both.parameters(), options.learning_rate)
    run.restore({"model": both, "optimizer": optimizer})
    with run:
        for step, _, batch in run.batches(examples, options.batch_size, settings.seed, workers):
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * (1 - step / options.steps)
            target = phrases[batch["index"]].to(device).float()
            with autocast(device, precision):
                grid = cnn.grid(cnn.regions(to_signed(batch["image"], device)))
                early, logits = heads["grid"](grid), heads["pooled"](cnn.pooled(grid))
            early_loss, loss = (
                functional.binary_cross_entropy_with_logits(each.float(), target, reduction="sum")
                / len(target)
                for each in (early, logits)
            )
            optimizer.zero_grad()
            (early_loss + loss).backward()
            optimizer.step()
            found = ((logits > 0) * target).sum() / target.sum().clamp(min=1)
            run.log(step, {"cross_entropy": loss.detach(), "found": found.detach()})
            if run.saving(step):
                run.save(step, {"model": both.state_dict(), "optimizer": optimizer.state_dict()})
    return cnn.eval()


def train_stem(
    config: ModelConfig,
    settings: TrainingSettings,
    examples: TrainingExamples,
    vocabulary_size: int,
    folder: Path,
    *,
    device: torch.device,
    backbone_weights: BackboneWeights | None = None,
    seeing: Mapping[str, Tensor] | None = None,
    workers: int = 1,
    quiet: bool = False,
) -> tuple[STEM, DAMSMImageEncoder]:
    """Train STEM and DAMSM's image encoder to recognise which caption is which image's.

    Writes checkpoints and curves into ``folder``, and goes on from the checkpoint there is.
    ``seeing`` are weights of the image encoder's CNN, which then stays as it is; a large CNN has
    ``backbone_weights`` instead, which a checkpoint remembers.

    Raises:
        InputError: see ``Run`` and ``check_backbone``.
    """
    options = settings.stem
    check_backbone("stem", config.image_encoder, backbone_weights, folder)
    torch.manual_seed(settings.seed)
    stem = STEM(config, vocabulary_size).to(device)
    encoder = DAMSMImageEncoder(config, _file(backbone_weights)).to(device)
    if seeing is not None:
        _see_with(encoder.cnn, seeing)
    needs = dependencies(config, settings, options, examples, device, cnn=seeing)
    needs |= _backbone(encoder.cnn, backbone_weights)
    run = begin(folder, options, settings, needs, quiet=quiet)
    precision = run.settings["precision"]
    _freeze_backbone(encoder.cnn, run)
    sight = _Sight(
        encoder.cnn,
        examples,
        device,
        precision,
        frozen=seeing is not None and not settings.augment,
        workers=workers,
        quiet=quiet,
    )
    both = nn.ModuleDict({"stem": stem, "image_encoder": encoder})
    optimizer = torch.optim.Adam(
        [p for p in both.parameters() if p.requires_grad], options.learning_rate, betas=(0.5, 0.999)
    )
    run.restore({"model": both, "optimizer": optimizer})
    with run:
        for step, epoch, batch in run.batches(
            sight.examples, options.batch_size, settings.seed, workers
        ):
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * options.decay**epoch
            lengths, labels = batch["length"].to(device), batch["label"].to(device)
            with autocast(device, precision):
                words, sentences = stem(batch["tokens"].to(device), lengths)
                mask = word_mask(lengths, words.shape[1])
                regions, codes = encoder.embed(*sight(batch))
                loss = damsm_loss(words, mask, sentences, regions, codes, labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(both.parameters(), options.gradient_clip)
            optimizer.step()
            found = sentence_similarity(sentences, codes).argmax(dim=1).cpu()
            retrieval = (batch["label"][found] == batch["label"]).float().mean()
            run.log(step, {"damsm": loss.detach(), "retrieval": retrieval})
            if run.saving(step):
                run.save(step, {"model": both.state_dict(), "optimizer": optimizer.state_dict()})
    return stem.eval(), encoder.eval()


def train_stream(
    config: ModelConfig,
    settings: TrainingSettings,
    examples: TrainingExamples,
    vocabulary_size: int,
    folder: Path,
    *,
    device: torch.device,
    backbone_weights: BackboneWeights | None = None,
    seeing: Mapping[str, Tensor] | None = None,
    workers: int = 1,
    quiet: bool = False,
) -> STREAM:
    """Train STREAM to caption real images.

    Writes checkpoints and curves into ``folder``, and goes on from the checkpoint there is.
    ``seeing`` are weights of STREAM's CNN, which then stays as it is; a large CNN has
    ``backbone_weights`` instead, which a checkpoint remembers.

    Raises:
        InputError: see ``Run`` and ``check_backbone``.
    """
    options = settings.stream
    check_backbone("stream", config.stream_encoder, backbone_weights, folder)
    torch.manual_seed(settings.seed)
    stream = STREAM(config, vocabulary_size, _file(backbone_weights)).to(device)
    if seeing is not None:
        _see_with(stream.cnn, seeing)
    needs = dependencies(config, settings, options, examples, device, cnn=seeing)
    needs |= _backbone(stream.cnn, backbone_weights)
    run = begin(folder, options, settings, needs, quiet=quiet)
    precision = run.settings["precision"]
    _freeze_backbone(stream.cnn, run)
    sight = _Sight(
        lambda image: (stream.see(image),),
        examples,
        device,
        precision,
        frozen=seeing is not None and not settings.augment,
        workers=workers,
        quiet=quiet,
    )
    optimizer = torch.optim.Adam(
        [p for p in stream.parameters() if p.requires_grad], options.learning_rate
    )
    run.restore({"model": stream, "optimizer": optimizer})
    with run:
        for step, _, batch in run.batches(
            sight.examples, options.batch_size, settings.seed, workers
        ):
            for group in optimizer.param_groups:
                # to zero in a straight line: the last steps settle the rare words
                group["lr"] = options.learning_rate * (1 - step / options.steps)
            tokens, lengths = batch["tokens"].to(device), batch["length"].to(device)
            with autocast(device, precision):
                logits = stream.predict(sight(batch)[0], tokens)
                loss = stream_loss(logits, tokens, lengths, "authors")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(stream.parameters(), options.gradient_clip)
            optimizer.step()
            run.log(step, {"cross_entropy": loss.detach()})
            if run.saving(step):
                run.save(step, {"model": stream.state_dict(), "optimizer": optimizer.state_dict()})
    return stream.eval()


def begin(
    folder: Path,
    options: StageSettings,
    settings: TrainingSettings,
    needs: dict[str, Any],
    *,
    quiet: bool,
) -> Run:
    """Begin the run of a stage, or go on with it (see ``Run``).

    Args:
        folder: of the stage.
        options: the stage's settings.
        settings: those of all stages.
        needs: what its result depends on.
        quiet: no progress bar.
    """
    return Run(
        folder,
        options.steps,
        needs,
        log_every=settings.log_every,
        save_every=settings.save_every,
        quiet=quiet,
    )


def dependencies(
    config: ModelConfig,
    settings: TrainingSettings,
    options: StageSettings,
    examples: TrainingExamples,
    device: torch.device,
    **networks: Mapping[str, Tensor] | None,
) -> dict[str, Any]:
    """Return what a stage's result depends on, beside the number of its steps.

    Args:
        config: the sizes of the networks.
        settings: those of all stages.
        options: those of this stage.
        examples: their captions, names and classes count.
        device: where it is trained, which decides the precision if that is "auto" and there is no
            checkpoint.
        **networks: weights that were trained before, by name; None: there are none.
    """
    values = asdict(config) | asdict(options)
    del values["steps"]  # a run may be made longer
    values |= {
        "seed": settings.seed,
        "augment": settings.augment,
        "precision": settings.precision,
        "data": examples.digest(),
    }
    if settings.precision == "auto":
        values["precision"] = Unsaid("bf16" if computes_in_bf16(device) else "fp32")
    for name, weights in networks.items():
        values[f"weights of {name}"] = None if weights is None else fingerprint(weights)
    return values


def check_backbone(
    stage: Stage, encoder: str, weights: BackboneWeights | None, folder: Path
) -> None:
    """Check that a large CNN has weights to begin with.

    Args:
        stage: "stem" or "stream", whose CNN it is.
        encoder: its name; "small" needs none.
        weights: what was given for it.
        folder: of the stage's run, whose checkpoint has them if it began already.

    Raises:
        InputError: there are none.
    """
    if encoder != "small" and weights is None and not os.path.lexists(folder / CHECKPOINT):
        raise InputError(
            f"train {stage}: {encoder} has no weights to begin with; give ImageNet's, as "
            f"torchvision has them (--{stage}-weights FILE), or train it from random ones on "
            f"purpose (--{stage}-weights random)"
        )


def _file(weights: BackboneWeights | None) -> Path | None:
    return None if weights == "random" else weights


def _backbone(cnn: nn.Module, weights: BackboneWeights | None) -> dict[str, Any]:
    """Return the setting that says which weights a large CNN began with."""
    if isinstance(cnn, SmallImageEncoder):
        return {}
    if weights is None:
        return {_BACKBONE: Unsaid(None)}
    return {_BACKBONE: weights if weights == "random" else fingerprint(cnn.state_dict())}


def _freeze_backbone(cnn: nn.Module, run: Run) -> None:
    """Have a CNN that began with ImageNet's weights stay as it is, also when a run resumes."""
    if run.settings.get(_BACKBONE, "random") != "random":
        cnn.requires_grad_(False)


class _Sight:
    """What a frozen or learning CNN sees in the images of a batch.

    A frozen one sees the same in the same image: where nothing augments the images, it looks at
    each of them once, before the first step, and steps take a fraction of the time.
    """

    def __init__(
        self,
        see: Callable[[Tensor], tuple[Tensor, ...]],
        examples: TrainingExamples,
        device: torch.device,
        precision: Precision,
        *,
        frozen: bool,
        workers: int,
        quiet: bool,
    ) -> None:
        self._see = see
        self._all_examples = examples
        self._device = device
        self._precision = precision
        self._workers = workers
        self._quiet = quiet
        self._remembers = frozen
        self._seen: list[Tensor] = []
        self.examples = examples.without_images() if self._remembers else examples
        """Those to make batches of."""

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        if not self._remembers:
            return self._see(to_signed(batch["image"], self._device))
        if not self._seen:
            self._look_at_all()
        return tuple(part[batch["index"]].to(self._device).float() for part in self._seen)

    @torch.no_grad()
    def _look_at_all(self) -> None:
        loader = load_batches(
            self._all_examples,
            self._workers,
            batch_size=64,
            generator=torch.Generator(),  # of its own: a step's random numbers stay the same
        )
        total = -(-len(self._all_examples) // 64)
        for batch in tqdm(loader, total=total, desc="looking", disable=self._quiet):
            with autocast(self._device, self._precision):
                seen = self._see(to_signed(batch["image"], self._device))
            if not self._seen:
                count = len(self._all_examples)
                # half of float32's memory: 0.7 GB for 20,000 images of the small CNN
                self._seen = [torch.empty(count, *part.shape[1:]).half() for part in seen]
            for whole, part in zip(self._seen, seen, strict=True):
                whole[batch["index"]] = part.half().cpu()


def _see_with(cnn: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a CNN its final weights, as the large ones have those of ImageNet.

    Trained on with all else that is new at the start, it is undone: STREAM's cross-entropy on
    painted birds was 1.30 after 1,750 steps, and after 1,000 with a CNN that stays.
    """
    cnn.load_state_dict(weights)
    cnn.eval().requires_grad_(False)
