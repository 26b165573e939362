"""A training step of a cascade without the frozen networks, in parts: ours and in plain PyTorch.

What the step learns from, the words and images, is random: no time depends on it.
"""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mirrorgan_fast.models.discriminator import Discriminator, Logits
from mirrorgan_fast.models.glam import GLAM
from mirrorgan_fast.models.layers import UpConv2d
from mirrorgan_fast.ops import use
from mirrorgan_fast.recipes import Recipe
from mirrorgan_fast.training.attngan import AttnGANTraining
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.gan import Captioned, sum_of
from mirrorgan_fast.training.objectives import (
    WrongPairs,
    discriminator_loss,
    generator_loss,
    kl_loss,
    r1_penalty,
)
from mirrorgan_fast.training.precision import Precision, autocast

CPU = torch.device("cpu")
See = Callable[[Tensor], Tensor]
Judge = Callable[[Tensor, Tensor], Logits]


class Clock:
    """The seconds of the parts of one step.

    Args:
        r1_every: steps from one R1 penalty to the next, of which the whole step has its share.
    """

    def __init__(self, r1_every: int) -> None:
        self.parts: dict[str, float] = {}
        self.r1_every = r1_every

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the block's seconds to a part."""
        start = time.perf_counter()
        yield
        self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - start

    def move(self, of: str, to: str, seconds: float) -> None:
        """Count seconds of one part as those of another."""
        self.parts[of] -= seconds
        self.parts[to] = self.parts.get(to, 0.0) + seconds

    def result(self) -> dict[str, float]:
        """Return the seconds of each part, and of the whole as ``step``."""
        step = sum(self.parts.values()) - self.parts.get("R1", 0.0) * (1 - 1 / self.r1_every)
        return {**self.parts, "step": step}


class Ours:
    """The step as the library trains, in parts.

    Args:
        recipe: whose networks and settings it has.
        batch: images in a step.
        precision: of the step.
    """

    def __init__(self, recipe: Recipe, batch: int, precision: Precision) -> None:
        torch.manual_seed(0)
        # What is measured is the same for all cascades. The frozen networks are left out: nothing
        # here asks for them.
        self.task = AttnGANTraining(
            recipe.config,
            recipe.settings.gan,
            nn.Identity(),  # type: ignore[arg-type]
            nn.Identity(),  # type: ignore[arg-type]
            Computation(CPU, precision),
            compiled=False,
        )
        self.given = given(recipe, batch)
        self._adam_seconds = self._adam_start = 0.0
        for learner in self.task.learners().values():
            learner.adam.register_step_pre_hook(lambda *_: self._adam_starts())
            learner.adam.register_step_post_hook(lambda *_: self._adam_ends())

    def __call__(self) -> dict[str, float]:
        """Take a step, and return the seconds of its parts."""
        task, given = self.task, self.given
        clock = Clock(task.settings.r1_every)
        with clock.time("G forward"):
            fakes, mu, log_var = task.generate(0, given)
        if task.settings.r1_weight:
            with clock.time("R1"):
                sum_of(task.r1_penalties(0, given)).backward()
        with clock.time("D forward"):
            losses, _ = task.discriminator_losses(0, given, given, fakes)
            loss_D = sum_of(losses.values())
        with clock.time("D backward"):
            task.D_learner.lower(loss_D)
        clock.move("D backward", "Adam", self._adam_seconds)
        with task.D_learner.frozen():
            with clock.time("G's loss"), task.computation.autocast():
                KL = task.settings.kl_weight * kl_loss(mu, log_var)
                believed = task.generator_losses(0, given, fakes, task.settings.form)
                loss_G = sum_of([KL, *believed.values()])
            with clock.time("G backward"):
                task.G_learner.lower(loss_G)
            clock.move("G backward", "Adam", self._adam_seconds)
        with clock.time("EMA"):
            task.average.update(task.generator, 1000)
        return clock.result()

    def _adam_starts(self) -> None:
        self._adam_start = time.perf_counter()

    def _adam_ends(self) -> None:
        self._adam_seconds = time.perf_counter() - self._adam_start


class Plain:
    """The same step in plain PyTorch, without any op of this package.

    Args:
        recipe: whose networks and settings it has.
        batch: images in a step.
        precision: of the step; ``bf16`` by autocast.
        compiled: whether ``torch.compile`` compiles the networks; then they are channels_last.
    """

    def __init__(
        self, recipe: Recipe, batch: int, precision: Precision, *, compiled: bool = False
    ) -> None:
        torch.manual_seed(0)
        config, self.settings, self.precision = recipe.config, recipe.settings.gan, precision
        self.given, self.noise_sizes = (
            given(recipe, batch),
            (config.noise_size, config.condition_size),
        )
        self.glam = GLAM(config)
        self.D = nn.ModuleList([Discriminator(config, size) for size in config.stage_sizes])
        for layer in self.glam.modules():
            if isinstance(layer, UpConv2d):
                layer._SUB_PIXEL_FROM = 1 << 30  # the plain form everywhere
        last = torch.channels_last if compiled or precision == "bf16" else torch.contiguous_format
        for network in (self.glam, self.D):
            network.to(memory_format=last)  # type: ignore[call-overload]
        self.average = {n: t.detach().clone() for n, t in self.glam.named_parameters()}
        self.adams = [
            torch.optim.AdamW(network.parameters(), 1e-4, self.settings.betas, fused=True)
            for network in (self.D, self.glam)
        ]
        self.run_glam: nn.Module = self.glam
        # R1 needs second derivatives, which compiled code has none of
        self.plain_see: list[See] = [D_i.features for D_i in self.D]
        self.plain_judge: list[Judge] = [functools.partial(judge, D_i) for D_i in self.D]
        self.see, self.judge = self.plain_see, self.plain_judge
        if compiled:
            self.run_glam = torch.compile(self.glam)  # type: ignore[assignment]
            self.see = [torch.compile(see) for see in self.see]
            self.judge = [torch.compile(judge) for judge in self.judge]

    def __call__(self, *, penalized: bool = True) -> dict[str, float]:
        """Take a step, and return the seconds of its parts."""
        with use("reference"):
            return self._step(penalized)

    def _step(self, penalized: bool) -> dict[str, float]:
        given, settings = self.given, self.settings
        clock = Clock(settings.r1_every)
        adam_D, adam_G = self.adams
        noise = [torch.randn(len(given.mask), size) for size in self.noise_sizes]
        wide = (given.words, given.mask, given.sentence)
        with clock.time("G forward"), self._autocast():
            fakes, mu, log_var = self.run_glam(*noise, *wide)
        if settings.r1_weight and penalized:
            with clock.time("R1"):
                self._penalize()
        with clock.time("D forward"), self._autocast():
            losses = []
            for see, judge, real_i, fake_i in zip(
                self.see, self.judge, given.reals, fakes, strict=True
            ):
                real, fake = see(real_i), see(fake_i.detach())
                wrong = None
                if settings.form == "authors":
                    _, logits = judge(real, given.sentence.roll(1, dims=0))
                    wrong = WrongPairs(logits, given.labels != given.labels.roll(1))
                pairs = judge(real, given.sentence), judge(fake, given.sentence)
                losses.append(discriminator_loss(*pairs, wrong))
            loss_D = sum_of(losses)
        with clock.time("D backward"):
            adam_D.zero_grad()
            loss_D.backward()
        with clock.time("Adam"):
            adam_D.step()
        self.D.requires_grad_(False)
        with clock.time("G's loss"), self._autocast():
            losses = [settings.kl_weight * kl_loss(mu, log_var)]
            for see, judge, fake_i in zip(self.see, self.judge, fakes, strict=True):
                losses.append(generator_loss(judge(see(fake_i), given.sentence), settings.form))
            loss_G = sum_of(losses)
        with clock.time("G backward"):
            adam_G.zero_grad()
            loss_G.backward()
        with clock.time("Adam"):
            adam_G.step()
        self.D.requires_grad_(True)
        with clock.time("EMA"), torch.no_grad():
            for name, weight in self.glam.named_parameters():
                self.average[name].lerp_(weight, 0.001)
        return clock.result()

    def _penalize(self) -> None:
        """Add the gradients of the R1 penalty."""
        penalties = []
        for see, judge, real_i in zip(
            self.plain_see, self.plain_judge, self.given.reals, strict=True
        ):
            x = real_i.detach().requires_grad_()
            penalties.append(r1_penalty(judge(see(x), self.given.sentence), x))
        (self.settings.r1_every * self.settings.r1_weight * sum_of(penalties)).backward()

    def parameters(self) -> list[Tensor]:
        """Return the parameters of all networks."""
        return [*self.glam.parameters(), *self.D.parameters()]

    def _autocast(self) -> torch.autocast:
        return autocast(CPU, self.precision)


def judge(discriminator: Discriminator, features: Tensor, sentence: Tensor) -> Logits:
    """Do what ``Discriminator.judge`` does, but concatenate the sentence to every pixel."""
    everywhere = sentence[:, :, None, None].expand(-1, -1, *features.shape[2:])
    joint = discriminator.joint(torch.cat([features, everywhere], dim=1))
    unconditional = discriminator.unconditional_logit(features)
    return Logits(unconditional.flatten(), discriminator.conditional_logit(joint).flatten())


def given(recipe: Recipe, batch: int) -> Captioned:
    """Return random captions and images of a recipe's sizes."""
    config, rng = recipe.config, torch.Generator().manual_seed(0)
    count, depth = config.caption_length, config.embedding_size
    lengths = torch.randint(count // 3, count + 1, (batch,), generator=rng)
    reals = [torch.rand(batch, 3, size, size, generator=rng) * 2 - 1 for size in config.stage_sizes]
    return Captioned(
        torch.zeros(batch, count, dtype=torch.int64),
        lengths,
        lengths,
        torch.arange(batch),
        torch.arange(count) < lengths[:, None],
        torch.randn(batch, count, depth, generator=rng),
        *[torch.randn(batch, depth, generator=rng)] * 2,
        [real.contiguous(memory_format=torch.channels_last) for real in reals],
    )
