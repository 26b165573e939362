"""Training against a projected discriminator: its losses, who learns, and that it resumes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import (
    AttnGANConfig,
    CascadeConfig,
    MirrorGANConfig,
    StackGANv2Config,
)
from mirrorgan_fast.training.cascade import check_cascade
from mirrorgan_fast.training.checkpoint import load_checkpoint
from mirrorgan_fast.training.computation import FP32
from mirrorgan_fast.training.gan import Captioned
from mirrorgan_fast.training.mirrorgan import train_mirrorgan
from mirrorgan_fast.training.objectives import (
    WrongPairs,
    difference_loss,
    hinge_discriminator_loss,
    stages_alike_loss,
)
from mirrorgan_fast.training.projected import ProjectedJudge
from mirrorgan_fast.training.settings import MirrorGANSettings, MirrorGANTrainingSettings
from mirrorgan_fast.vocabulary import Vocabulary

from .runs import HERE, TINY, batch_of, mirrorgan_task

PROJECTED = dataclasses.replace(TINY, discriminator="projected", text_dropout=0.0)
SETTINGS = MirrorGANSettings(
    steps=4,
    batch_size=4,
    form="authors",
    augment=True,
    difference_weight=1.0,
    betas=(0.0, 0.99),
    sentence_gain=10.0,
)


def test_the_hinge_loss_is_its_formula() -> None:
    torch.manual_seed(0)
    real, fake, wrong = torch.randn(3, 5, 6, dtype=torch.float64) * 2
    is_wrong = torch.tensor([True, False, True, True, False])
    wanted = 0.0
    for i in range(5):
        for j in range(6):
            wanted += max(0, 1 - float(real[i, j])) / 30 + max(0, 1 + float(fake[i, j])) / 60
            wanted += max(0, 1 + float(wrong[i, j])) / 36 if is_wrong[i] else 0
    found = hinge_discriminator_loss(real, fake, WrongPairs(wrong, is_wrong))
    assert float(found) == pytest.approx(wanted, rel=1e-12)
    none = WrongPairs(wrong, torch.zeros(5, dtype=torch.bool))
    assert bool(hinge_discriminator_loss(real, fake, none).isfinite())


def test_the_difference_loss_is_its_formula() -> None:
    torch.manual_seed(0)
    fake, real = (
        [torch.randn(4, 3, size, size, dtype=torch.float64) for size in (4, 2)] for _ in range(2)
    )
    wanted = 0.0
    for generated, given in zip(fake, real, strict=True):
        usual = ((given[0] - given[1]).abs().mean() + (given[2] - given[3]).abs().mean()) / 2
        for k in (0, 2):
            distance = (generated[k] - generated[k + 1]).abs().mean()
            wanted += max(0.0, 1.1 - float(distance / usual)) / 2
    assert wanted > 0
    assert float(difference_loss(fake, real, 1.1)) == pytest.approx(wanted, rel=1e-12)
    assert float(difference_loss(fake, real, 0.0)) == 0


def test_stages_are_compared_with_the_last_one_scaled_down() -> None:
    torch.manual_seed(0)
    small, middle, large = (
        torch.randn(2, 3, size, size, dtype=torch.float64) for size in (2, 4, 8)
    )
    wanted = (small - functional.avg_pool2d(large, 4)).square().mean()
    wanted += (middle - functional.avg_pool2d(large, 2)).square().mean()
    torch.testing.assert_close(stages_alike_loss([small, middle, large]), wanted)
    assert float(stages_alike_loss([large])) == 0


def test_each_two_images_are_of_one_caption(
    examples: TrainingExamples, vocabulary: Vocabulary
) -> None:
    task, batch = mirrorgan_task(PROJECTED, SETTINGS, vocabulary), batch_of(examples, 4)
    given = task.encode(0, batch)
    asked = task.asked(0, given, batch)
    for name in Captioned._fields:
        ours, theirs = getattr(given, name), getattr(asked, name)
        if name == "reals":
            assert theirs is ours
        else:
            assert torch.equal(theirs, ours[[0, 0, 2, 2]]), name
    plain = mirrorgan_task(
        PROJECTED, dataclasses.replace(SETTINGS, difference_weight=0.0), vocabulary
    )
    assert plain.asked(0, given, batch) is given


def test_both_sides_have_the_losses_of_their_formulas(
    examples: TrainingExamples, vocabulary: Vocabulary
) -> None:
    settings = dataclasses.replace(SETTINGS, augment=False, least_difference=2.0)
    task, batch = mirrorgan_task(PROJECTED, settings, vocabulary), batch_of(examples, 4)
    judge = task.projected
    assert judge is not None
    judge.D.eval()  # spectral norms as they are
    given = task.encode(0, batch)
    asked = task.asked(0, given, batch)
    fakes = task.generate(0, asked).images
    loss, found = judge.discriminator_loss(given, asked, fakes)
    losses = judge.generator_losses(asked, fakes, different=True)

    def conditional(images: Tensor, told: Tensor) -> Tensor:
        return judge.D.conditional(judge.D(judge.D.look(images)), told)

    with torch.no_grad():
        real = conditional(given.reals[-1], given.judged)
        fake = conditional(fakes[-1], asked.judged)
        wrong = conditional(given.reals[-1], given.judged.roll(1, dims=0))
        relu = functional.relu
        wanted = relu(1 - real).mean() + (relu(1 + fake).mean() + relu(1 + wrong).mean()) / 2
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(losses["G"], -fake.mean())
        torch.testing.assert_close(losses["stages"], stages_alike_loss(fakes))
        maps = (judge.D.look(images)[-2:] for images in (fakes[-1], given.reals[-1]))
        torch.testing.assert_close(losses["difference"], difference_loss(*maps, 2.0))
    assert float(losses["difference"].detach()) > 0
    assert found["D(real)"] == pytest.approx(float(real.sigmoid().mean()))


def test_the_heads_and_the_generator_learn_and_nothing_else(
    examples: TrainingExamples, vocabulary: Vocabulary
) -> None:
    task, batch = mirrorgan_task(PROJECTED, SETTINGS, vocabulary), batch_of(examples, 4)
    before = {
        name: {k: v.clone() for k, v in part.state_dict().items()}
        for name, part in (("D", task.all_D), ("G", task.generator))
    }
    figures = task.step(0, 0, batch)
    assert all(bool(value.isfinite()) for value in figures.values())
    for name, part in (("D", task.all_D), ("G", task.generator)):
        parameters = dict(part.named_parameters())
        for key, value in before[name].items():
            if key in parameters:
                changed = not torch.equal(value, parameters[key])
                assert changed == parameters[key].requires_grad, key
    assert any(not p.requires_grad for p in task.all_D.parameters())


def test_a_run_resumes_to_the_same_bits(
    examples: TrainingExamples, vocabulary: Vocabulary, tmp_path: Path, assert_same: Any
) -> None:
    task = mirrorgan_task(PROJECTED, SETTINGS, vocabulary)
    networks = (task.stem, task.image_encoder, task.stream)
    for folder, lengths in (("whole", (4,)), ("resumed", (2, 4))):
        for steps in lengths:
            gan = dataclasses.replace(SETTINGS, steps=steps, decay_steps=0)
            settings = MirrorGANTrainingSettings(gan=gan, precision="fp32")
            train_mirrorgan(PROJECTED, settings, examples, *networks, tmp_path / folder, HERE)
    whole, resumed = (load_checkpoint(tmp_path / folder) for folder in ("whole", "resumed"))
    assert_same(resumed, whole)
    assert [name for name in whole["D"] if name.startswith("0.across.")]
    assert not [name for name in whole["D"] if "eyes" in name]


@pytest.mark.parametrize(
    ("config", "changed", "parts", "fault"),
    [
        (TINY, {"augment": True, "difference_weight": 0.0}, 1, "augment is True, which only"),
        (TINY, {"augment": False}, 1, "difference_weight is 1.0, which only"),
        (PROJECTED, {"r1_weight": 0.1}, 1, "has no R1"),
        (PROJECTED, {"batch_size": 6}, 2, "batch_size is 6, computed in 2 parts.*multiple of 4"),
        (
            StackGANv2Config(image_size=32, stages=2, discriminator="projected"),
            {},
            1,
            "StackGAN\\+\\+ cannot have it",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    config: CascadeConfig, changed: dict[str, Any], parts: int, fault: str
) -> None:
    with pytest.raises(InputError, match=fault):
        check_cascade(config, dataclasses.replace(SETTINGS, **changed), parts)


@pytest.mark.parametrize("kind", [AttnGANConfig, MirrorGANConfig])
def test_images_of_any_size_are_judged(kind: type[CascadeConfig]) -> None:
    config = kind(image_size=64, stages=2, embedding_size=16, discriminator="projected")
    judge = ProjectedJudge(config, SETTINGS, FP32)
    for size in (32, 64, 128, 200):
        seen = judge.D(judge.D.look(torch.rand(2, 3, size, size)))
        assert judge.D.judge(seen, torch.randn(2, 16)).conditional.shape == (2, 64)
