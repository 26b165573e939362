"""The weights that come with the package: they are small, and as good as their recorded figures."""

import dataclasses
import json
import math

import pytest
import torch

from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES
from mirrorgan_fast.data.painted_birds.data_set import PaintedBirds
from mirrorgan_fast.evaluation.images import generate
from mirrorgan_fast.evaluation.redescription import redescription_accuracy
from mirrorgan_fast.evaluation.translation import evaluate_translation
from mirrorgan_fast.metrics.attributes import attribute_accuracy
from mirrorgan_fast.models.attribute_classifier import AttributeClassifier
from mirrorgan_fast.models.cyclegan import CycleGAN
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.pictures import to_signed
from mirrorgan_fast.sampling.sampler import Sampler
from mirrorgan_fast.weights import PRETRAINED

FOLDER = PRETRAINED / "birds-painted"
BIRDS = 60


@pytest.fixture(scope="module")
def model() -> MirrorGAN:
    return MirrorGAN.from_pretrained()


@pytest.fixture(scope="module")
def captions() -> tuple[list[str], list[dict[str, str]]]:
    """One caption per bird of a test split that was not used before, and what it claims."""
    birds = PaintedBirds("test", BIRDS, seed=20)
    chosen = [birds.bird_captions(i)[i % 10] for i in range(BIRDS)]
    return [caption.text for caption in chosen], [caption.named for caption in chosen]


@pytest.fixture(scope="module")
def images(model: MirrorGAN, captions: tuple[list[str], list[dict[str, str]]]) -> torch.Tensor:
    return generate(Sampler(model), captions[0], range(BIRDS), seed=0, title="captions", quiet=True)


def recorded(section: str) -> float:
    figures = json.loads((FOLDER / "figures.json").read_text(encoding="utf-8"))
    return float(figures[section]["generated"]["overall"])


def least(share: float, claims: int) -> float:
    """Return a share minus three of its standard deviations, for this many claims."""
    return share - 3 * math.sqrt(share * (1 - share) / claims)


def test_the_folders_are_at_most_32_megabytes() -> None:
    for folder in PRETRAINED.iterdir():
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 32e6


def test_images_show_what_their_captions_name(
    images: torch.Tensor, captions: tuple[list[str], list[dict[str, str]]]
) -> None:
    readings = AttributeClassifier.from_pretrained().read(images)
    accuracy = attribute_accuracy(readings, captions[1])
    assert accuracy.overall >= least(recorded("attributes"), sum(accuracy.claims.values()))


def test_the_redescription_names_what_the_image_shows(
    model: MirrorGAN, images: torch.Tensor
) -> None:
    described = model.stream.describe(to_signed(images, torch.device("cpu")))
    descriptions = [model.vocabulary.decode(tokens) for tokens in described]
    readings = AttributeClassifier.from_pretrained().read(images)
    accuracy = redescription_accuracy(descriptions, readings)
    assert accuracy.overall >= least(recorded("redescription"), sum(accuracy.claims.values()))
    assert len(set(descriptions)) > BIRDS / 2


def test_the_classifier_reads_unseen_real_birds() -> None:
    birds = PaintedBirds("test", BIRDS, seed=20)
    paintings = torch.stack([torch.from_numpy(birds.painting(i).image) for i in range(BIRDS)])
    readings = AttributeClassifier.from_pretrained().read(paintings.permute(0, 3, 1, 2))
    truth = [dataclasses.asdict(birds.bird(i)) for i in range(BIRDS)]
    assert attribute_accuracy(readings, truth).overall >= 0.99


def test_the_translator_changes_the_background_and_keeps_the_bird() -> None:
    """On birds that were not used before; as good as recorded, and close to the true pictures."""
    figures = json.loads((PRETRAINED / "sky-sunset" / "figures.json").read_text(encoding="utf-8"))
    judge, count = AttributeClassifier.from_pretrained(), 30
    translator = CycleGAN.from_pretrained("sky-sunset")
    measured = evaluate_translation(translator, judge, count=count, seed=20, quiet=True)
    for title in ("sky to sunset", "sunset to sky"):
        found, before = (figures_of[title]["translated"] for figures_of in (measured, figures))
        assert found["l1"] < 0.4 * measured[title]["untranslated"]["l1"]
        assert found["l1"] < 1.2 * before["l1"]
        assert found["background"] >= least(before["background"], count)
        assert found["kept"] >= least(before["kept"], count * (len(ATTRIBUTES) - 1))
