"""What the trainings of all text-to-image systems share: a generator against discriminators."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypedDict, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.metrics.diversity import diversity
from mirrorgan_fast.models.config import TextToImageConfig
from mirrorgan_fast.models.glam import Generated
from mirrorgan_fast.models.layers import SentenceLinear
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
from mirrorgan_fast.training.objectives import r1_penalty
from mirrorgan_fast.training.run import Unsaid, dependencies, open_run, started_from
from mirrorgan_fast.training.settings import (
    CaptionedGANSettings,
    CascadeSettings,
    TrainingSettings,
)
from mirrorgan_fast.training.sheets import SampleSheets

Network = TypeVar("Network", bound=nn.Module)
Validate = Callable[[nn.Module, int], Mapping[str, float]]
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
    """s (N, D), the mean over several captions of each image if the batch has them."""
    judged: Tensor
    """What discriminators are told of the captions, (N, D'): the sentence, or what the system makes
    of it."""
    reals: list[Tensor]
    """The images at the size of each stage that trains, (N, 3, S_i, S_i) in [-1, 1]."""


class GANTraining(ABC):
    """A generator, its moving average, and discriminators, for captions that STEM encodes.

    Args:
        config: the sizes of the networks.
        settings: of this training.
        stem: the text encoder, which stays as it is.
        generator: takes the random vectors of ``config.noises``, then STEM's words, their mask and
            the sentence.
        D: the discriminators.
        computation: how a step computes.
        compiled: whether ``torch.compile`` compiles the generator.
    """

    PART: ClassVar[str] = "generator"
    """The name of the generator in a checkpoint."""

    def __init__(
        self,
        config: TextToImageConfig,
        settings: CaptionedGANSettings,
        stem: STEM,
        generator: nn.Module,
        D: Sequence[nn.Module],  # noqa: N803
        computation: Computation,
        *,
        compiled: bool,
    ) -> None:
        self.config, self.settings, self.computation = config, settings, computation
        device = computation.device
        self.stem = frozen(stem, device)
        all_D = nn.ModuleList(D)
        for network in (generator, all_D):
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for network in (generator, all_D):
            amplify(network, settings.sentence_gain)
        self.average: MovingAverage[nn.Module] = MovingAverage(generator, settings.average_decay)
        for network in (generator, all_D):
            computation.share(network)
        self.generator, self.all_D = generator, all_D
        self.G_learner, self.D_learner = (
            Learner(network, learning_rate, settings.betas, computation=computation)
            for network, learning_rate in (
                (generator, settings.learning_rate),
                (all_D, settings.discriminator_learning_rate),
            )
        )
        self._generate = torch.compile(generator) if compiled else generator

    def parts(self) -> dict[str, Part]:
        """Return what a checkpoint holds."""
        return {
            self.PART: self.generator,
            "D": self.all_D,
            "average": self.average.network,
            "G_adam": self.G_learner.adam,
            "D_adam": self.D_learner.adam,
        }

    def learners(self) -> dict[str, Learner]:
        """Return the learners by their networks."""
        return {"D": self.D_learner, "G": self.G_learner}

    def start_from(self, generator: Mapping[str, Tensor]) -> None:
        """Give the generator and its average the weights of a trained one."""
        for network in (self.generator, self.average.network):
            network.load_state_dict(generator)

    @abstractmethod
    def step(self, step: int, epoch: int, batch: Batch) -> dict[str, Tensor]:
        """Train on one batch (see ``loop.Task``)."""

    def sizes(self, step: int) -> tuple[int, ...]:
        """Return the sizes in pixels of the real images of a step."""
        return self.config.stage_sizes

    def generator_trains(self, step: int) -> bool:
        """Return whether the generator trains in a step, or the discriminators alone."""
        return True

    def of_same_noise(self, step: int) -> int:
        """Return how many images, one after the other, have the same random vectors in a step."""
        return 1

    def work(self, steps: int) -> float:
        """Return how much the first steps are, in any unit."""
        return steps

    def options(self, step: int) -> tuple[Any, ...]:
        """Return what else the generator is called with in a step."""
        return ()

    def pace(self, step: int) -> float:
        """Return the factor on both learning rates in a step."""
        return self.settings.pace(step)

    def encode(self, step: int, batch: Batch) -> Captioned:
        """Encode the captions of a batch, and scale its images to the sizes of the step."""
        tokens, lengths, whole_lengths, labels = self.computation.on_device(
            batch, "tokens", "length", "lengths", "label"
        )
        real = to_signed(batch["image"], self.computation.device)
        reals = [
            real if size == real.shape[2] else functional.adaptive_avg_pool2d(real, size)
            for size in self.sizes(step)
        ]
        with torch.no_grad(), self.computation.autocast():
            words, sentence = self.stem(tokens, batch["length"])
            if "more_tokens" in batch:
                more, more_lengths = batch["more_tokens"], batch["more_lengths"].flatten()
                read = self.stem(more.flatten(0, 1).to(tokens.device), more_lengths)[1]
                of_image = read.unflatten(0, more.shape[:2])
                sentence = torch.cat([sentence[:, None], of_image], dim=1).mean(dim=1)
        mask = word_mask(lengths, tokens.shape[1])
        return Captioned(
            tokens, lengths, whole_lengths, labels, mask, words, sentence, sentence, reals
        )

    def noises(self, count: int) -> list[Tensor]:
        """Draw new random vectors for so many images."""
        drawn, device = self.computation.processes.drawn, self.computation.device
        return [drawn(torch.randn, count, n, device=device) for n in self.config.noises.values()]

    def generate(self, step: int, given: Captioned) -> Generated:
        """Generate images of captions, with new random vectors."""
        of_same_noise = self.of_same_noise(step)
        noises = [
            noise.repeat_interleave(of_same_noise, dim=0)
            for noise in self.noises(len(given.tokens) // of_same_noise)
        ]
        text = (given.words, given.mask, given.sentence)
        with torch.set_grad_enabled(self.generator_trains(step)), self.computation.autocast():
            generated: Generated = self._generate(*noises, *text, *self.options(step))
        return generated

    def r1_penalty(
        self, step: int, real: Tensor, judge: Callable[[Tensor], Sequence[Tensor]]
    ) -> list[Tensor]:
        """Return the weighted R1 penalty of a discriminator, in the steps that have it.

        Args:
            step: from 0.
            real: images of the data set, (N, 3, S, S).
            judge: returns the discriminator's logits (N,) for these images, one or more.

        Returns:
            the penalty, or nothing.
        """
        weight, every = self.settings.r1_weight, self.settings.r1_every
        if not weight or step % every:
            return []
        # The convolutions are PyTorch's here: they skip gradients that are not asked for, and ours
        # cannot see that the first backward pass does not need those of the weights.
        with use(REFERENCE):
            # second derivatives in float32, which costs little, because few steps have them
            x = wide(real).detach().requires_grad_()
            return [every * weight * r1_penalty(judge(x), x)]

    def train_generator(self, loss: Tensor, step: int) -> None:
        """Take a step of the generator down its loss; then average it."""
        if self.G_learner.lower(loss, self.pace(step)):
            self.average.update(self.generator, step)


def frozen(network: Network, device: torch.device) -> Network:
    """Put a trained network that stays as it is on the device, and return it."""
    network.to(device).eval().requires_grad_(False)
    return network


def other_captions(given: Captioned, computation: Computation) -> tuple[Tensor, Tensor]:
    """Return what discriminators are told of another caption of the whole batch, (N, D').

    Also returned is whether it is wrong for the image, bool (N,): captions of images of its class
    are not.
    """
    processes = computation.processes
    other, label = (
        processes.own(processes.gathered(part).roll(1, dims=0))
        for part in (given.judged, given.labels)
    )
    return other, given.labels != label


def judgments(real: Tensor, fake: Tensor, name: str = "D") -> dict[str, Tensor]:
    """Return how real a discriminator finds images in the mean, given its logits (N,)."""
    logits = {f"{name}(real)": real, f"{name}(generated)": fake}
    return {name: wide(it.detach()).sigmoid().mean() for name, it in logits.items()}


@torch.no_grad()
def amplify(network: nn.Module, gain: float) -> None:
    """Multiply the weights that read the sentence and that will be trained by a factor."""
    for layer in network.modules():
        if isinstance(layer, SentenceLinear) and layer.weight.requires_grad:
            layer.weight.mul_(gain)


def sum_of(losses: Iterable[Tensor]) -> Tensor:
    """Return the sum of scalar losses."""
    return torch.stack([*losses]).sum()


def detached(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return losses as figures, without their graphs."""
    return {name: loss.detach() for name, loss in losses.items()}


class MoreOfGAN(TypedDict, total=False):
    """What ``train_gan`` can be given by name."""

    start: Mapping[str, Tensor] | None
    """Weights that the generator starts from; None: random ones."""
    validate: Validate | None
    """Measures the moving average of the generator after a number of steps."""


def train_gan(
    training: Callable[..., GANTraining],
    config: TextToImageConfig,
    options: CaptionedGANSettings,
    settings: TrainingSettings,
    examples: TrainingExamples,
    networks: Mapping[str, nn.Module | None],
    folder: Path,
    execution: Execution,
    *,
    also: Mapping[str, Any] | None = None,
    start: Mapping[str, Tensor] | None = None,
    validate: Validate | None = None,
) -> nn.Module:
    """Train a generator against discriminators.

    Writes checkpoints, curves and sheets of samples; resumes from the folder's checkpoint.

    Args:
        training: the class of the task.
        config: the sizes of the networks.
        options: the settings of this stage of the chain.
        settings: of the whole chain.
        examples: what to train on.
        networks: those that were trained before, by their names as arguments of ``training``; None:
            there is none. A checkpoint made with others is refused.
        folder: of the run.
        execution: where and how to train.
        also: what else the result depends on.
        start: weights that the generator starts from; None: random ones.
        validate: measures the moving average of the generator after a number of steps.

    Returns:
        the moving average of the generator.

    Raises:
        InputError: see ``Run``, ``Batches`` and ``fit``.
    """
    device = execution.device
    drawn = examples.with_captions(options.captions)
    if isinstance(options, CascadeSettings) and options.edit_weight:
        drawn = drawn.with_edits(options.edit_words)
    batches = Batches(
        drawn,
        options.batch_size,
        settings.seed,
        execution,
        options.accumulate,
    )
    states = {name: each.state_dict() for name, each in networks.items() if each is not None}
    needs = dependencies(config, settings, options, examples.digest(), device, **states)
    needs |= {**(also or {}), **started_from(start)}
    compiled = execution.compiled
    needs["compiled"] = Unsaid(False, (False, True)) if compiled is None else compiled
    with open_run(folder, options, settings, needs, execution) as run:
        torch.manual_seed(settings.seed)
        task = training(
            config,
            options,
            **networks,
            computation=run.computation(execution),
            compiled=run.settings["compiled"],
        )
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
            with task.computation.autocast():
                path, images = sheets.write(steps, task.options(steps - 1))
                if (maps := sheets.attention(task.options(steps - 1))) is not None:
                    run.show(steps - 1, "attention", maps)
            run.show_file(steps - 1, "samples", path)
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
            work=task.work,
        )
    return average
