"""Training of StackGAN, StackGAN++ and GAN-INT-CLS: the chains, and what each step does."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

import mirrorgan_fast
from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.discriminator import Discriminator, Logits, Seen
from mirrorgan_fast.models.stackgan import StackGAN, StackGANGenerator
from mirrorgan_fast.models.stackgan_v2 import StackGANv2
from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.training.chain import stages_of, train
from mirrorgan_fast.training.checkpoint import load_checkpoint
from mirrorgan_fast.training.computation import FP32
from mirrorgan_fast.training.gan import GANTraining
from mirrorgan_fast.training.gan_int_cls import GanIntClsTraining
from mirrorgan_fast.training.gawwn import GawwnTraining
from mirrorgan_fast.training.settings import (
    GanIntClsSettings,
    GanIntClsTrainingSettings,
    GANSettings,
    GawwnSettings,
    MirrorGANTrainingSettings,
    StackGANSettings,
    StackGANTrainingSettings,
    StackGANv2Settings,
    StackGANv2TrainingSettings,
)
from mirrorgan_fast.training.stackgan import StackGANTraining, first_stage_of
from mirrorgan_fast.training.stackgan_v2 import StackGANv2Training
from mirrorgan_fast.vocabulary import END, Vocabulary

from .runs import GAWWN, HERE, INT_CLS, STACKGAN, STACKGAN_V2, curves, kill, stop


@pytest.fixture
def v1(settings: MirrorGANTrainingSettings) -> StackGANTrainingSettings:
    stage = StackGANSettings(steps=4, batch_size=5)
    return StackGANTrainingSettings(
        cnn=settings.cnn, stem=settings.stem, stage1=stage, stage2=stage, precision="fp32"
    )


@pytest.fixture
def v2(settings: MirrorGANTrainingSettings) -> StackGANv2TrainingSettings:
    gan = StackGANv2Settings(steps=4, batch_size=5)
    return StackGANv2TrainingSettings(
        cnn=settings.cnn, stem=settings.stem, gan=gan, precision="fp32"
    )


def test_stages_are_trained_one_after_the_other(
    tmp_path: Path, v1: StackGANTrainingSettings, birds: CaptionedImages
) -> None:
    assert stages_of(STACKGAN) == ("cnn", "stem", "stage1", "stage2")
    with pytest.raises(InputError, match=r"stem/checkpoint\.pt: there is no such checkpoint"):
        train(("stage1",), STACKGAN, v1, birds, tmp_path / "none", HERE)
    with pytest.raises(InputError, match="train gan: this system has no such part"):
        train(("gan",), STACKGAN, v1, birds, tmp_path / "none", HERE)
    train(("cnn", "stem", "stage1"), STACKGAN, v1, birds, tmp_path, HERE)
    assert not (tmp_path / "model.safetensors").exists()
    train(("stage2",), STACKGAN, v1, birds, tmp_path, HERE)
    model = mirrorgan_fast.load(tmp_path)
    assert isinstance(model, StackGAN)
    assert model.sample(["a red bird"])[0].size == (32, 32)
    sheets = sorted(path.name for path in tmp_path.glob("stage*/samples/*.png"))
    assert sheets == ["0000004.png", "0000004.png"]
    first = load_checkpoint(tmp_path / "stage1")["average"]
    for name, tensor in model.G.stage1.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(tensor, first[f"stage1.{name}"]), name


@pytest.mark.parametrize("form", ["paper", "authors"])
def test_the_first_stage_stays_as_it_is(
    tmp_path: Path, v1: StackGANTrainingSettings, birds: CaptionedImages, form: Any
) -> None:
    """Only in the authors' form its running averages change."""
    stage2 = dataclasses.replace(v1.stage2, form=form)
    settings = dataclasses.replace(v1, stage2=stage2)
    train(stages_of(STACKGAN), STACKGAN, settings, birds, tmp_path, HERE)
    before = load_checkpoint(tmp_path / "stage1")["average"]
    after = load_checkpoint(tmp_path / "stage2")["generator"]
    changed = {
        name
        for name, tensor in before.items()
        if not torch.equal(after[name], tensor) and not name.endswith("num_batches_tracked")
    }
    assert all("running" in name for name in changed)
    assert bool(changed) == (form == "authors")
    figures = {name for point in curves(tmp_path / "stage2") for name in point}
    assert {"D", "G", "KL", "D(real)", "D(generated)"} <= figures


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_killed_stage_ends_with_the_same_bits(
    tmp_path: Path,
    v1: StackGANTrainingSettings,
    birds: CaptionedImages,
    monkeypatch: pytest.MonkeyPatch,
    assert_same: Callable[..., None],
    stage: Any,
) -> None:
    settings = dataclasses.replace(v1, save_every=2)
    train(stages_of(STACKGAN), STACKGAN, settings, birds, tmp_path / "whole", HERE)
    with monkeypatch.context() as context:
        before = stages_of(STACKGAN)[: stages_of(STACKGAN).index(stage)]
        train(before, STACKGAN, settings, birds, tmp_path / "killed", HERE)
        stop(context, 3, kill)
        with pytest.raises(RuntimeError, match="killed"):
            train((stage,), STACKGAN, settings, birds, tmp_path / "killed", HERE)
    train(stages_of(STACKGAN), STACKGAN, settings, birds, tmp_path / "killed", HERE)
    whole, killed = (
        mirrorgan_fast.load(tmp_path / name).state_dict() for name in ("whole", "killed")
    )
    assert_same(whole, killed)


def test_both_stages_are_trained_further(
    tmp_path: Path, v1: StackGANTrainingSettings, birds: CaptionedImages
) -> None:
    torch.manual_seed(4)
    begun = StackGAN(STACKGAN, Vocabulary([END, "bird", "red", "this"])).eval()
    stages = ("stem", "stage1", "stage2")
    train(stages, STACKGAN, v1, birds, tmp_path, HERE, init_from=begun)
    model = mirrorgan_fast.load(tmp_path)
    assert isinstance(model, StackGAN)
    assert len(model.vocabulary) > len(begun.vocabulary)
    first = load_checkpoint(tmp_path / "stage1")["average"]
    state, before = model.G.state_dict(), begun.G.state_dict()
    for name, _ in model.G.named_parameters():
        assert not torch.equal(state[name], before[name]), name
        if name.startswith("stage1."):
            assert torch.equal(state[name], first[name]), name


def test_learning_rates_are_halved(v1: StackGANTrainingSettings) -> None:
    settings = dataclasses.replace(v1.stage1, steps=100, decay_steps=10, halve_every=30)
    first = first_stage_of(STACKGAN)
    task = StackGANTraining(first, settings, STEM(STACKGAN, 5), None, FP32, compiled=False)
    paces = [task.pace(step) for step in (0, 29, 30, 60, 90, 95, 99)]
    assert paces == pytest.approx([1, 1, 0.5, 0.25, 0.125, 0.125 * 0.5, 0.125 * 0.1])


def test_only_a_layer_that_reads_sentences_and_learns_begins_larger(
    v1: StackGANTrainingSettings,
    v2: StackGANv2TrainingSettings,
    int_cls: GanIntClsTrainingSettings,
) -> None:
    def begun(make: Callable[..., GANTraining], settings: GANSettings) -> dict[str, Tensor]:
        torch.manual_seed(2)
        stem = STEM(STACKGAN, 5)
        task = make(settings=settings, stem=stem, computation=FP32, compiled=False)
        weights = task.generator.state_dict()
        for name, tensor in task.average.network.state_dict().items():
            assert torch.equal(tensor, weights[name]), name
        return {**weights, **task.all_D.state_dict(prefix="D.")}

    small = first_stage_of(STACKGAN)
    first = StackGANGenerator(small)
    for make, settings, layers in (
        (partial(StackGANTraining, small, stage1=None), v1.stage1, {"stage1.augment.linear"}),
        (partial(StackGANTraining, STACKGAN, stage1=first), v1.stage2, {"stage2.augment.linear"}),
        (partial(StackGANv2Training, STACKGAN_V2), v2.gan, {"augment.linear"}),
        (partial(GanIntClsTraining, INT_CLS), int_cls.gan, {"project"}),
        (partial(GawwnTraining, GAWWN), GawwnSettings(), {"project", "D.0.project.0"}),
    ):
        plain = begun(make, settings)
        larger = begun(make, dataclasses.replace(settings, sentence_gain=8.0))
        for name, tensor in plain.items():
            factor = 8.0 if name.removesuffix(".weight") in layers else 1.0
            assert torch.equal(larger[name], factor * tensor), name


@pytest.mark.parametrize("form", ["paper", "authors"])
def test_stackgan_v2_is_trained_with_color_consistency(
    tmp_path: Path, v2: StackGANv2TrainingSettings, birds: CaptionedImages, form: Any
) -> None:
    assert stages_of(STACKGAN_V2) == ("cnn", "stem", "gan")
    gan = dataclasses.replace(v2.gan, color_weight=2.0, form=form, r1_weight=0.1, r1_every=2)
    train(
        stages_of(STACKGAN_V2), STACKGAN_V2, dataclasses.replace(v2, gan=gan), birds, tmp_path, HERE
    )
    model = mirrorgan_fast.load(tmp_path)
    assert isinstance(model, StackGANv2)
    figures = {name for point in curves(tmp_path / "gan") for name in point}
    assert {"D_0", "D_1", "G_0", "G_1", "KL", "color"} <= figures


@pytest.mark.parametrize("detached", [False, True])
def test_mu_learns_by_what_discriminators_are_told_unless_detached(
    v2: StackGANv2TrainingSettings, monkeypatch: pytest.MonkeyPatch, detached: bool
) -> None:
    settings = dataclasses.replace(v2.gan, detach_mu=detached)
    torch.manual_seed(3)
    task = StackGANv2Training(STACKGAN_V2, settings, STEM(STACKGAN_V2, 5), FP32, compiled=False)
    told: list[tuple[bool, Tensor]] = []
    judge = Discriminator.judge

    def noted(self: Discriminator, seen: Seen, sentence: Tensor) -> Logits:
        told.append((sentence.requires_grad, sentence.detach().clone()))
        return judge(self, seen, sentence)

    monkeypatch.setattr(Discriminator, "judge", noted)
    lengths = torch.tensor([1, 3, 2, 3])
    batch = {"tokens": torch.randint(1, 5, (4, 3)), "length": lengths, "lengths": lengths}
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    task.step(0, 0, {**batch, "label": torch.arange(4), "image": images})
    by_D, by_G = told[:4], told[4:]  # real and generated images of two stages, then generated ones
    assert len(by_G) == 2
    assert not any(learns for learns, _ in by_D)
    assert [learns for learns, _ in by_G] == [not detached] * 2
    assert all(torch.equal(mu, told[0][1]) for _, mu in told)


def test_a_step_without_the_last_stage_is_less_work(v2: StackGANv2TrainingSettings) -> None:
    gan = dataclasses.replace(v2.gan, last_stage_from=3)
    task = StackGANv2Training(STACKGAN_V2, gan, STEM(STACKGAN_V2, 5), FP32, compiled=False)
    assert [task.work(steps) for steps in (0, 2, 3, 4)] == pytest.approx([0, 0.8, 1.2, 2.2])


# --- GAN-INT-CLS ----------------------------------------------------------------------------------


@pytest.fixture
def int_cls(settings: MirrorGANTrainingSettings) -> GanIntClsTrainingSettings:
    return GanIntClsTrainingSettings(
        cnn=settings.cnn,
        stem=settings.stem,
        gan=GanIntClsSettings(steps=4, batch_size=5),
        precision="fp32",
    )


@pytest.mark.parametrize("wrong_weight", [0.0, 0.5])
@pytest.mark.parametrize("interpolation_weight", [0.0, 1.0])
def test_the_four_systems_of_gan_int_cls_are_trained(
    tmp_path: Path,
    int_cls: GanIntClsTrainingSettings,
    birds: CaptionedImages,
    wrong_weight: float,
    interpolation_weight: float,
) -> None:
    assert stages_of(INT_CLS) == ("cnn", "stem", "gan")
    gan = dataclasses.replace(
        int_cls.gan, wrong_weight=wrong_weight, interpolation_weight=interpolation_weight
    )
    settings = dataclasses.replace(int_cls, gan=gan)
    train(stages_of(INT_CLS), INT_CLS, settings, birds, tmp_path, HERE)
    assert mirrorgan_fast.load(tmp_path).sample(["a red bird"])[0].size == (32, 32)
    figures = {name for point in curves(tmp_path / "gan") for name in point}
    assert {"D", "G", "D(real)", "D(generated)"} <= figures


def test_sentences_of_several_captions_are_averaged(
    int_cls: GanIntClsTrainingSettings, birds: CaptionedImages
) -> None:
    """Each caption is read alone, whatever the lengths of the others."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.build(c for i in range(len(birds)) for c in birds.captions(i))
    stem = STEM(INT_CLS, len(vocabulary)).eval()
    task = GanIntClsTraining(INT_CLS, int_cls.gan, stem, FP32, compiled=False)
    examples = TrainingExamples(birds, vocabulary, 32, 9, seed=1).with_captions(4)
    chosen = [examples[i] for i in range(3)]
    given = task.encode(0, {**default_collate(chosen), "lengths": torch.ones(3)})
    for i, example in enumerate(chosen):
        rows = [example["tokens"], *example["more_tokens"]]
        lengths = [example["length"], *example["more_lengths"].tolist()]
        alone = [
            stem(row[None, :length], torch.tensor([length]))[1]
            for row, length in zip(rows, lengths, strict=True)
        ]
        mean = torch.stack(alone).mean(dim=0)[0]
        torch.testing.assert_close(given.sentence[i], mean, rtol=1e-5, atol=1e-6)
    assert given.words.shape[:2] == given.mask.shape == (3, 9)


def test_sentences_are_mixed_by_halves_of_the_batch(int_cls: GanIntClsTrainingSettings) -> None:
    settings = dataclasses.replace(int_cls.gan, beta=0.25)
    task = GanIntClsTraining(INT_CLS, settings, STEM(INT_CLS, 5), FP32, compiled=False)
    s = torch.randn(5, 16)
    expected = torch.stack([0.25 * s[0] + 0.75 * s[2], 0.25 * s[1] + 0.75 * s[3]])
    torch.testing.assert_close(task.mixed(s), expected)
    without = dataclasses.replace(settings, interpolation_weight=0.0)
    task = GanIntClsTraining(INT_CLS, without, STEM(INT_CLS, 5), FP32, compiled=False)
    assert task.mixed(s).shape == (0, 16)
