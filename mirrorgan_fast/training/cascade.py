"""What the trainings of MirrorGAN and AttnGAN share: a generator cascade against discriminators."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.metrics.diversity import diversity
from mirrorgan_fast.models.config import CascadeConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.discriminator import Discriminator
from mirrorgan_fast.models.glam import GLAM, Generated
from mirrorgan_fast.models.stem import STEM, word_mask
from mirrorgan_fast.ops import use
from mirrorgan_fast.ops.choice import REFERENCE
from mirrorgan_fast.ops.wide import wide
from mirrorgan_fast.pictures import to_signed
from mirrorgan_fast.training.average import MovingAverage
from mirrorgan_fast.training.batches import Batch, Batches
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.learner import Learner
from mirrorgan_fast.training.loop import Part, fit
from mirrorgan_fast.training.objectives import (
    WrongPairs,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)
from mirrorgan_fast.training.run import Unsaid, dependencies, open_run, started_from
from mirrorgan_fast.training.settings import CascadeSettings, TrainingSettings
from mirrorgan_fast.training.sheets import SampleSheets

_COST_BEFORE_LAST = 0.4  # of a step without the last stage (birds-painted)
Validate = Callable[[GLAM, int], Mapping[str, float]]
"""Measures a generator after a number of steps."""


class Captioned(NamedTuple):
    """A batch of captions and their images, on the device."""

    tokens: Tensor
    """int64 (N, T)."""
    lengths: Tensor
    """int64 (N,)."""
    whole_lengths: Tensor
    """int64 (M,), of all captions, if these are one of several parts of a batch."""
    labels: Tensor
    """int64 (N,), the class of each image."""
    mask: Tensor
    """bool (N, T), true at real words."""
    words: Tensor
    """w (N, T, D)."""
    sentence: Tensor
    """s (N, D)."""
    reals: list[Tensor]
    """The images at the size of each stage that trains, (N, 3, S_i, S_i) in [-1, 1]."""


class CascadeTraining(ABC):
    """A generator of m stages, its moving average, and a discriminator D_i for each stage.

    Args:
        config: the sizes of the networks.
        settings: of this training.
        stem: the text encoder, which stays as it is.
        image_encoder: DAMSM's, trained with ``stem``, which stays as it is.
        computation: how a step computes.
        compiled: whether ``torch.compile`` compiles the generator.
    """

    def __init__(
        self,
        config: CascadeConfig,
        settings: CascadeSettings,
        stem: STEM,
        image_encoder: DAMSMImageEncoder,
        computation: Computation,
        *,
        compiled: bool,
    ) -> None:
        self.config, self.settings, self.computation = config, settings, computation
        device = computation.device
        self.stem, self.image_encoder = stem, image_encoder
        for frozen in (stem, image_encoder):
            frozen.to(device).eval().requires_grad_(False)
        glam = GLAM(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        D = [Discriminator(config, size) for size in config.stage_sizes]
        all_D = nn.ModuleList(D)
        all_D.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average: MovingAverage[GLAM] = MovingAverage(glam, settings.average_decay)
        for network in (glam, all_D):
            computation.share(network)
        self.glam, self.D, self.all_D = glam, D, all_D
        self.G_learner, self.D_learner = (
            Learner(network, learning_rate, settings.betas, computation=computation)
            for network, learning_rate in (
                (glam, settings.learning_rate),
                (all_D, settings.discriminator_learning_rate),
            )
        )
        self._generate = torch.compile(glam) if compiled else glam

    def parts(self) -> dict[str, Part]:
        """Return what a checkpoint holds."""
        return {
            "glam": self.glam,
            "D": self.all_D,
            "average": self.average.network,
            "G_adam": self.G_learner.adam,
            "D_adam": self.D_learner.adam,
        }

    def learners(self) -> dict[str, Learner]:
        """Return the learners by their networks."""
        return {"D": self.D_learner, "G": self.G_learner}

    def stages(self, step: int) -> int:
        """Return how many stages train in a step.

        All but the last at first: the meaning of captions is learned at half the image size, where
        a step takes less than half the time.
        """
        return self.config.stages - (step < self.settings.last_stage_from)

    def start_from(self, glam: Mapping[str, Tensor]) -> None:
        """Give the generator and its average the weights of a trained one."""
        for network in (self.glam, self.average.network):
            network.load_state_dict(glam)

    def generator_trains(self, step: int) -> bool:
        """Return whether the generator trains in a step, or the discriminators alone."""
        return step >= self.settings.generator_from

    def pace(self, step: int) -> float:
        """Return the factor on both learning rates in a step."""
        decay_steps = max(1, min(self.settings.decay_steps, self.settings.steps))
        return min(1.0, (self.settings.steps - step) / decay_steps)

    def encode(self, step: int, batch: Batch) -> Captioned:
        """Encode the captions of a batch, and scale its images to the size of each stage."""
        tokens, lengths, whole_lengths, labels = self.computation.on_device(
            batch, "tokens", "length", "lengths", "label"
        )
        real = to_signed(batch["image"], self.computation.device)
        reals = [
            real if size == self.config.image_size else functional.adaptive_avg_pool2d(real, size)
            for size in self.config.stage_sizes[: self.stages(step)]
        ]
        with torch.no_grad(), self.computation.autocast():
            words, sentence = self.stem(tokens, batch["length"])
        mask = word_mask(lengths, tokens.shape[1])
        return Captioned(tokens, lengths, whole_lengths, labels, mask, words, sentence, reals)

    def generate(self, step: int, given: Captioned) -> Generated:
        """Generate images of captions, at every size that ``given`` has real images of."""
        count, config = len(given.tokens), self.config
        drawn, device = self.computation.processes.drawn, self.computation.device
        z = drawn(torch.randn, count, config.noise_size, device=device)
        eps = drawn(torch.randn, count, config.condition_size, device=device)
        with torch.set_grad_enabled(self.generator_trains(step)), self.computation.autocast():
            generated: Generated = self._generate(
                z, eps, given.words, given.mask, given.sentence, len(given.reals)
            )
        return generated

    def discriminator_losses(
        self, given: Captioned, fakes: list[Tensor]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return L_Di of each stage: tell real from generated, matching from wrong sentences.

        Only the form of the authors' code has wrong sentences (see ``discriminator_loss``). While
        the last stage does not train yet, there are fewer images than discriminators.

        Returns:
            the losses, and how real D_i finds real and generated images, from 0 to 1, as figures.
        """
        losses, found = [], {}
        processes, other_sentence = self.computation.processes, None
        if self.settings.form == "authors":  # each image with another caption of the batch
            other_sentence, other_label = (
                processes.own(processes.gathered(part).roll(1, dims=0))
                for part in (given.sentence, given.labels)
            )
            is_wrong = given.labels != other_label
        with self.computation.autocast():
            for D_i, real_i, fake_i in zip(self.D, given.reals, fakes, strict=False):
                both = torch.cat([real_i, fake_i.detach()])
                real, fake = D_i(both, parts=2).chunk(2)
                real_logits = D_i.judge(real, given.sentence)
                fake_logits = D_i.judge(fake, given.sentence)
                wrong = None
                if other_sentence is not None:
                    wrong = WrongPairs(D_i.conditional(real, other_sentence), is_wrong)
                losses.append(discriminator_loss(real_logits, fake_logits, wrong, processes))
                for name, logits in (("real", real_logits), ("generated", fake_logits)):
                    share = wide(logits.unconditional.detach()).sigmoid().mean()
                    found[f"D_{len(losses) - 1}({name})"] = share
        return losses, found

    def r1_penalties(self, step: int, given: Captioned) -> list[Tensor]:
        """Return the weighted R1 penalty of each stage, in the steps that have it."""
        weight, every = self.settings.r1_weight, self.settings.r1_every
        if not weight or step % every:
            return []
        penalties = []
        # The convolutions are PyTorch's here: they skip gradients that are not asked for, and ours
        # cannot see that the first backward pass does not need those of the weights.
        with use(REFERENCE):
            for D_i, real_i in zip(self.D, given.reals, strict=False):
                # second derivatives in float32, which costs little, because few steps have them
                x = wide(real_i).detach().requires_grad_()
                penalty = r1_penalty(D_i.judge(D_i(x), wide(given.sentence)), x)
                penalties.append(every * weight * penalty)
        return penalties

    @abstractmethod
    def step(self, step: int, epoch: int, batch: Batch) -> dict[str, Tensor]:
        """Train on one batch (see ``loop.Task``)."""

    def generator_losses(self, given: Captioned, fakes: list[Tensor]) -> list[Tensor]:
        """Return L_Gi of each stage: be believed by D_i."""
        return [
            generator_loss(D_i.judge(D_i(fake_i), given.sentence), self.settings.form)
            for D_i, fake_i in zip(self.D, fakes, strict=False)
        ]


def sum_of(losses: list[Tensor]) -> Tensor:
    """Return the sum of scalar losses."""
    return torch.stack(losses).sum()


def figures_of(name: str, losses: list[Tensor]) -> dict[str, Tensor]:
    """Return the losses of the stages as figures, by names such as "D_0"."""
    return {f"{name}_{i}": loss.detach() for i, loss in enumerate(losses)}


def train_cascade(
    make: Callable[[Computation, bool], CascadeTraining],
    config: CascadeConfig,
    settings: TrainingSettings,
    examples: TrainingExamples,
    networks: Mapping[str, nn.Module],
    folder: Path,
    execution: Execution,
    *,
    also: Mapping[str, Any] | None = None,
    start: Mapping[str, Tensor] | None = None,
    validate: Validate | None = None,
) -> GLAM:
    """Train a generator cascade against its discriminators.

    Writes checkpoints, curves and sheets of samples; resumes from the folder's checkpoint.

    Args:
        make: the task, given how a step computes and whether the generator is compiled.
        config: the sizes of the networks.
        settings: of the whole chain.
        examples: what to train on.
        networks: those that were trained before, by name. A checkpoint made with others is refused.
        folder: of the run.
        execution: where and how to train.
        also: what else the result depends on.
        start: weights that the generator starts from; None: random ones.
        validate: measures the moving average of the generator after a number of steps.

    Returns:
        the moving average of the generator.

    Raises:
        InputError: see ``check_cascade``, ``Run``, ``Batches`` and ``fit``.
    """
    options, device = settings.gan, execution.device
    check_cascade(config, options)
    batches = Batches(examples, options.batch_size, settings.seed, execution, options.accumulate)
    states = {name: network.state_dict() for name, network in networks.items()}
    needs = dependencies(config, settings, options, examples, device, **states)
    needs |= {**(also or {}), **started_from(start)}
    compiled = execution.compiled
    needs["compiled"] = Unsaid(False, (False, True)) if compiled is None else compiled
    with open_run(folder, options, settings, needs, execution) as run:
        torch.manual_seed(settings.seed)
        task = make(run.computation(execution), run.settings["compiled"])
        if start is not None:
            task.start_from(start)
        average = task.average.network
        sheets = SampleSheets(
            average,
            task.stem,
            examples,
            config,
            folder / "samples",
            device,
            real_row=execution.real_row,
        )

        def draw(steps: int) -> None:
            if execution.processes.rank > 0:
                return
            stages = task.stages(steps - 1)
            with task.computation.autocast():
                path, images = sheets.write(steps, stages)
                if stages > 1:
                    run.show(steps - 1, "attention", sheets.attention())
            run.show(steps - 1, "samples", np.asarray(Image.open(path)))
            run.watch(steps - 1, {"diversity": diversity(images)})

        def measure(steps: int) -> Mapping[str, float]:
            if not task.generator_trains(steps - 1):  # the figures are those of the last time
                return {}
            figures = execution.processes.once(lambda: validate(average, steps))  # type: ignore[misc]
            return figures or {}

        fit(
            task,
            run,
            batches,
            validate=None if validate is None else measure,
            validate_every=settings.validate_every,
            sheet=draw,
            sheet_every=settings.sheet_every,
            cost=lambda step: 1.0 if task.stages(step) == config.stages else _COST_BEFORE_LAST,
        )
    return average


def check_cascade(config: CascadeConfig, options: CascadeSettings) -> None:
    """Check that every network of a cascade will be trained.

    Raises:
        InputError: the generator or its last stage would never train, or the last stage is the only
            one and would wait.
    """
    for name, what in (("last_stage_from", "last stage"), ("generator_from", "generator")):
        if getattr(options, name) >= options.steps:
            raise InputError(
                f"gan.{name} is {getattr(options, name)} of {options.steps} steps: the {what} "
                f"would never be trained; set it lower (0: it trains from the start)"
            )
    first = options.last_stage_from
    if first and config.stages == 1:
        raise InputError(
            f"gan.last_stage_from is {first}, but the model has only one stage, so nothing would "
            f"train before it; set it to 0"
        )
