"""The R1 penalty of the systems whose discriminators judge pairs, as their steps add it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.models.stackgan import StackGANGenerator
from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.training.computation import FP32
from mirrorgan_fast.training.gan import GANTraining
from mirrorgan_fast.training.gan_int_cls import GanIntClsTraining
from mirrorgan_fast.training.gawwn import GawwnTraining
from mirrorgan_fast.training.settings import GanIntClsSettings, GawwnSettings, StackGANSettings
from mirrorgan_fast.training.stackgan import StackGANTraining, first_stage_of
from mirrorgan_fast.vocabulary import Vocabulary

from .conftest import KeptBirds
from .runs import GAWWN, INT_CLS, STACKGAN, batch_of

LENGTH = {"steps": 4, "batch_size": 5, "learning_rate": 0.0, "discriminator_learning_rate": 0.0}


def first_stage(**r1: Any) -> GANTraining:
    config = first_stage_of(STACKGAN)
    settings = StackGANSettings(**LENGTH, **r1)
    return StackGANTraining(config, settings, STEM(config, 400), None, FP32, compiled=False)


def second_stage(**r1: Any) -> GANTraining:
    settings, first = StackGANSettings(**LENGTH, **r1), StackGANGenerator(first_stage_of(STACKGAN))
    return StackGANTraining(STACKGAN, settings, STEM(STACKGAN, 400), first, FP32, compiled=False)


def int_cls(**r1: Any) -> GANTraining:
    settings = GanIntClsSettings(**LENGTH, **r1)
    return GanIntClsTraining(INT_CLS, settings, STEM(INT_CLS, 400), FP32, compiled=False)


def gawwn(**r1: Any) -> GANTraining:
    settings = GawwnSettings(**LENGTH, **r1)
    return GawwnTraining(GAWWN, settings, STEM(GAWWN, 400), FP32, compiled=False)


@pytest.mark.parametrize("make", [first_stage, second_stage, int_cls, gawwn])
def test_the_squared_slope_of_the_logits_is_added_in_its_steps(
    make: Callable[..., GANTraining], birds: KeptBirds, vocabulary: Vocabulary
) -> None:
    """And D learns from it. StackGAN's second stage judges images alone, too."""
    examples = TrainingExamples(birds, vocabulary, 32, 9, boxes=make is gawwn)
    batch = batch_of(examples, 5)

    def gradients(step: int, **r1: Any) -> tuple[Tensor, GANTraining]:
        """Adam's first moment is the gradient in its first step where betas[0] is 0."""
        torch.manual_seed(0)
        task = make(betas=(0.0, 0.999), **r1)
        task.step(step, 0, batch)
        state = task.D_learner.adam.state
        (D,) = task.all_D
        return torch.cat([state[p]["exp_avg"].flatten() for p in D.parameters()]), task

    without, task = gradients(6)
    torch.testing.assert_close(gradients(5, r1_weight=0.5, r1_every=3)[0], without)
    added = gradients(6, r1_weight=0.5, r1_every=3)[0] - without

    (D,), given = task.all_D, task.encode(0, batch)
    x = given.reals[-1].requires_grad_()
    if isinstance(task, StackGANTraining):
        mu = (task.generator.stage2 or task.generator.stage1).augment.statistics(given.sentence)[0]
        seen = D(x)
        logits = D.conditional(seen, mu.detach())
        if make is second_stage:
            logits = logits + D.unconditional(seen)
    elif make is gawwn:
        logits = D.conditional(D(x), given.sentence, batch["box"])
    else:
        logits = D.conditional(D(x), given.sentence)
    (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    penalty = 3 * 0.5 / 2 * (slope**2).sum() / len(x)
    expected = torch.autograd.grad(penalty, [*D.parameters()], allow_unused=True)
    flat = [
        (torch.zeros_like(p) if g is None else g).flatten()
        for p, g in zip(D.parameters(), expected, strict=True)
    ]
    largest = float(torch.cat(flat).abs().max())
    assert largest > 0
    torch.testing.assert_close(added, torch.cat(flat), rtol=1e-3, atol=1e-3 * largest)
