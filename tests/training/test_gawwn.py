"""Training of GAWWN: the chain, what a step lowers, and what the model keeps of the boxes."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import mirrorgan_fast
from mirrorgan_fast.boxes import Box
from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.gawwn import Gawwn
from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.models.systems import system_of
from mirrorgan_fast.training.chain import stages_of, train
from mirrorgan_fast.training.checkpoint import load_checkpoint
from mirrorgan_fast.training.computation import FP32
from mirrorgan_fast.training.gawwn import GawwnTraining
from mirrorgan_fast.training.precision import Precision
from mirrorgan_fast.training.settings import (
    GawwnSettings,
    GawwnTrainingSettings,
    MirrorGANTrainingSettings,
)
from mirrorgan_fast.training.sheets import SampleSheets
from mirrorgan_fast.vocabulary import END, Vocabulary

from .conftest import KeptBirds
from .runs import GAWWN, HERE, INT_CLS, batch_of, curves, kill, stop

SETTINGS = GawwnSettings(steps=4, batch_size=5)


@pytest.fixture
def chain(settings: MirrorGANTrainingSettings) -> GawwnTrainingSettings:
    return GawwnTrainingSettings(
        cnn=settings.cnn, stem=settings.stem, gan=SETTINGS, precision="fp32"
    )


@pytest.fixture
def placed(birds: KeptBirds, vocabulary: Vocabulary) -> TrainingExamples:
    return TrainingExamples(birds, vocabulary, 32, 9, augment=True, boxes=True)


def test_the_chain_is_trained_and_keeps_the_boxes_of_its_pictures(
    tmp_path: Path, chain: GawwnTrainingSettings, birds: KeptBirds, placed: TrainingExamples
) -> None:
    assert stages_of(GAWWN) == ("cnn", "stem", "gan")
    train(stages_of(GAWWN), GAWWN, chain, birds, tmp_path, HERE)
    model = mirrorgan_fast.load(tmp_path)
    assert isinstance(model, Gawwn)
    assert torch.equal(model.boxes, placed.boxes(20))
    assert model.sample(["a red bird"])[0].size == (32, 32)
    figures = {name for point in curves(tmp_path / "gan") for name in point}
    assert {"D", "G", "D(real)", "D(generated)"} <= figures
    assert [path.name for path in tmp_path.glob("gan/samples/*.png")] == ["0000004.png"]


def test_a_killed_training_ends_with_the_same_bits(
    tmp_path: Path,
    chain: GawwnTrainingSettings,
    birds: KeptBirds,
    monkeypatch: pytest.MonkeyPatch,
    assert_same: Callable[..., None],
) -> None:
    settings = dataclasses.replace(chain, save_every=2)
    train(stages_of(GAWWN), GAWWN, settings, birds, tmp_path / "whole", HERE)
    with monkeypatch.context() as context:
        train(("cnn", "stem"), GAWWN, settings, birds, tmp_path / "killed", HERE)
        stop(context, 3, kill)
        with pytest.raises(RuntimeError, match="killed"):
            train(("gan",), GAWWN, settings, birds, tmp_path / "killed", HERE)
    train(("gan",), GAWWN, settings, birds, tmp_path / "killed", HERE)
    whole, killed = (load_checkpoint(tmp_path / name / "gan") for name in ("whole", "killed"))
    assert_same(killed, whole)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_is_trained_in_narrow_precisions_and_in_parts(
    tmp_path: Path, chain: GawwnTrainingSettings, birds: KeptBirds, precision: Precision
) -> None:
    gan = dataclasses.replace(SETTINGS, batch_size=8, accumulate=2, wrong_weight=0.0)
    settings = dataclasses.replace(chain, gan=gan, precision=precision)
    train(stages_of(GAWWN), GAWWN, settings, birds, tmp_path, HERE)
    state = load_checkpoint(tmp_path / "gan")["average"]
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_it_is_trained_further_on_other_boxes(
    tmp_path: Path, chain: GawwnTrainingSettings, birds: KeptBirds, placed: TrainingExamples
) -> None:
    torch.manual_seed(4)
    begun = Gawwn(GAWWN, Vocabulary([END, "bird", "red", "this"])).eval()
    train(("stem", "gan"), GAWWN, chain, birds, tmp_path, HERE, init_from=begun)
    model = mirrorgan_fast.load(tmp_path)
    assert isinstance(model, Gawwn)
    assert len(model.vocabulary) > len(begun.vocabulary)
    assert torch.equal(model.boxes, placed.boxes(20))
    before = begun.G.state_dict()
    for name, weight in model.G.named_parameters():
        assert not torch.equal(weight, before[name]), name


class Boxes(KeptBirds):
    """Birds of which the last has another box."""

    def __init__(self, last: Box | None) -> None:
        super().__init__("train", 6, size=64)
        self.last = last

    def box(self, index: int) -> Box | None:  # type: ignore[override]
        return super().box(index) if index < 5 else self.last


def test_data_without_boxes_are_refused_before_anything_starts(
    tmp_path: Path, chain: GawwnTrainingSettings
) -> None:
    images: CaptionedImages = Boxes(None)
    with pytest.raises(InputError, match="picture 'train/00005' has no box, which says where"):
        train(("cnn",), GAWWN, chain, images, tmp_path / "run", HERE)
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_boxes(
    tmp_path: Path, chain: GawwnTrainingSettings
) -> None:
    train(stages_of(GAWWN), GAWWN, chain, Boxes((0.1, 0.2, 0.3, 0.4)), tmp_path, HERE)
    longer = dataclasses.replace(chain, gan=dataclasses.replace(SETTINGS, steps=5))
    with pytest.raises(InputError, match="data"):
        train(("gan",), GAWWN, longer, Boxes((0.1, 0.2, 0.3, 0.5)), tmp_path, HERE)
    train(("gan",), GAWWN, longer, Boxes((0.1, 0.2, 0.3, 0.4)), tmp_path, HERE)


# --- a step


def test_a_step_lowers_the_losses_of_the_authors_code(placed: TrainingExamples) -> None:
    """Restated with probabilities, for the real boxes and the captions of other images."""
    torch.manual_seed(0)
    settings = dataclasses.replace(SETTINGS, learning_rate=0.0, discriminator_learning_rate=0.0)
    task = GawwnTraining(GAWWN, settings, STEM(GAWWN, 400), FP32, compiled=False)
    generator, D = copy.deepcopy((task.generator, task.D))
    batch = batch_of(placed, 6)
    state = torch.get_rng_state()
    figures = task.step(0, 0, batch)
    torch.set_rng_state(state)
    noise = torch.randn(6, GAWWN.noise_size)
    given = task.encode(0, batch)
    box, s = batch["box"], given.sentence
    with torch.no_grad():
        fakes = generator(noise, box, given.words, given.mask, s).images[-1]

        def judged(images: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
            return D.conditional(D(images), sentence, box).sigmoid()

        real, fake = judged(given.reals[-1], s), judged(fakes, s)
        wrong = judged(given.reals[-1], torch.cat([s[-1:], s[:-1]]))
        ones, zeros = torch.ones(6), torch.zeros(6)
        bce = functional.binary_cross_entropy
        loss_D = bce(real, ones) + 0.5 * bce(wrong, zeros) + 0.5 * bce(fake, zeros)
        loss_G = bce(judged(fakes, s), ones)
    for name, expected in {
        "D": loss_D,
        "G": loss_G,
        "D(real)": real.mean(),
        "D(generated)": fake.mean(),
    }.items():
        torch.testing.assert_close(figures[name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_each_network_learns_from_its_own_loss(placed: TrainingExamples) -> None:
    torch.manual_seed(0)
    for rates, learns in (((1e-3, 0.0), (True, False)), ((0.0, 1e-3), (False, True))):
        settings = dataclasses.replace(
            SETTINGS, learning_rate=rates[0], discriminator_learning_rate=rates[1]
        )
        task = GawwnTraining(GAWWN, settings, STEM(GAWWN, 400), FP32, compiled=False)
        before = copy.deepcopy((task.generator, task.D))
        task.step(0, 0, batch_of(placed, 6))
        for network, old, changes in zip((task.generator, task.D), before, learns, strict=True):
            olds = dict(old.named_parameters())
            for name, weight in network.named_parameters():
                assert torch.equal(weight, olds[name]) != changes, name


def test_a_compiled_step_does_the_same(placed: TrainingExamples) -> None:
    figures = []
    torch.compiler.reset()
    for compiled in (False, True):
        torch.manual_seed(0)
        task = GawwnTraining(GAWWN, SETTINGS, STEM(GAWWN, 400), FP32, compiled=False)
        if compiled:
            options = {"fullgraph": True, "backend": "aot_eager"}
            task._generate = torch.compile(task.generator, **options)
        torch.manual_seed(1)
        figures.append(task.step(0, 0, batch_of(placed, 4)))
    for name, expected in figures[0].items():
        torch.testing.assert_close(figures[1][name], expected)


# --- sheets


def test_a_sheet_shows_each_box_and_draws_in_it(placed: TrainingExamples, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = system_of(GAWWN)(GAWWN, placed.vocabulary).eval()
    seen: list[torch.Tensor] = []
    model.generator.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    made = (model.generator, model.stem, placed)
    sheets = SampleSheets(*made, GAWWN, tmp_path, torch.device("cpu"))
    path, images = sheets.write(7)
    boxes = torch.stack([placed[i]["box"] for i in range(8)])
    assert len(seen) == 4
    assert all(torch.equal(given, boxes) for given in seen)
    assert images.shape == (8, 4, 32, 32, 3)
    sheet = np.asarray(Image.open(path)).astype(int)
    for column, (x, y, _, height) in enumerate(boxes.tolist()):
        for row in range(5):
            left, top = column * 98, row * 98
            tile = sheet[top : top + 96, left : left + 96]
            first, last = round(y * 95), round((y + height) * 95)
            edge = tile[first : last + 1, round(x * 95)]
            assert (edge == 255).all()  # white


def test_sheets_of_other_systems_have_no_boxes(examples: TrainingExamples, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = system_of(INT_CLS)(INT_CLS, examples.vocabulary).eval()
    made = (model.generator, model.stem, examples)
    sheets = SampleSheets(*made, INT_CLS, tmp_path, torch.device("cpu"), real_row=False)
    path, images = sheets.write(7)
    tile = np.asarray(Image.open(path))[:96, :96]
    assert (tile == images[0, 0].numpy().repeat(3, 0).repeat(3, 1)).all()
