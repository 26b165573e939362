"""The figures of translated birds, with translators whose figures are known."""

from typing import Any

import numpy as np
import pytest
import torch

from mirrorgan_fast.cli.main import main
from mirrorgan_fast.data.painted_birds.data_set import PaintedBirds
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.evaluation.translation import evaluate_translation, translation_table
from mirrorgan_fast.inference.translator import Translator
from mirrorgan_fast.models.attribute_classifier import AttributeClassifier
from mirrorgan_fast.models.config import CycleGANConfig
from mirrorgan_fast.models.cyclegan import CycleGAN

COUNT = 6


def model(x: str = "sky", y: str = "sunset") -> CycleGAN:
    torch.manual_seed(0)
    config = CycleGANConfig(image_size=64, generator_channels=2, residual_blocks=1, x=x, y=y)
    return CycleGAN(config)


@pytest.fixture(scope="module")
def judge() -> AttributeClassifier:
    return AttributeClassifier.from_pretrained()


def test_the_truth_is_the_same_bird_with_another_background() -> None:
    birds = PaintedBirds("test", COUNT, 64)
    for index in range(COUNT):
        sky, sunset = (birds.painting(index, background=name) for name in ("sky", "sunset"))
        own = birds.painting(index, background=birds.bird(index).background)
        assert np.array_equal(own.image, birds.painting(index).image)
        for part, mask in sky.masks.items():
            if part != "background":
                assert np.array_equal(mask, sunset.masks[part])
        changed = np.abs(sky.image.astype(int) - sunset.image).max(axis=2)
        assert np.median(changed[sky.masks["wing"]]) == 0
        assert changed[sky.masks["background"]].mean() > 10


def test_a_translator_that_paints_the_truth_is_perfect(
    judge: AttributeClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    birds = PaintedBirds("test", COUNT, 64, seed=3)
    painted = {
        birds.painting(index, background=source).image.tobytes(): birds.painting(
            index, background=wanted
        ).image
        for index in range(COUNT)
        for source, wanted in (("sky", "sunset"), ("sunset", "sky"))
    }

    def translate(self: Translator, images: Any) -> list[Any]:
        return [painted[image.tobytes()] for image in images]

    monkeypatch.setattr(Translator, "translate", translate)
    figures = evaluate_translation(model(), judge, count=COUNT, seed=3, quiet=True)
    assert (figures["count"], figures["image_size"]) == (COUNT, 64)
    for title in ("sky to sunset", "sunset to sky"):
        assert figures[title]["translated"] == figures[title]["true"]
        assert figures[title]["true"]["l1"] == 0
        assert figures[title]["true"]["ssim"] == pytest.approx(1)
        assert figures[title]["true"]["background"] > 0.8
        assert figures[title]["untranslated"]["background"] < 0.2
        assert figures[title]["untranslated"]["kept"] > 0.8
    table = translation_table(figures)
    assert "sunset to sky" in table
    assert len({len(line) for line in table.splitlines()}) == 1


def test_a_translator_that_changes_nothing(
    judge: AttributeClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Translator, "translate", lambda self, images: list(images))
    figures = evaluate_translation(model(), judge, count=COUNT, quiet=True)
    birds = PaintedBirds("test", COUNT, 64)
    distances = [
        np.abs(
            birds.painting(index, background="sky").image.astype(float)
            - birds.painting(index, background="sunset").image
        ).mean()
        for index in range(COUNT)
    ]
    for title in ("sky to sunset", "sunset to sky"):
        assert figures[title]["translated"] == figures[title]["untranslated"]
        assert figures[title]["translated"]["l1"] == pytest.approx(np.mean(distances), rel=1e-5)


def test_what_has_no_truth_is_refused(
    judge: AttributeClassifier, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="'apples' is no background of painted birds"):
        evaluate_translation(model(x="apples"), judge, count=1)
    with pytest.raises(InputError, match="count is 0"):
        evaluate_translation(model(), judge, count=0)
    model().save_pretrained(tmp_path)
    command = ["evaluate", "--model", str(tmp_path), "--quiet"]
    assert main([*command, "--data", "x"]) == 2
    assert "leave out --data" in capsys.readouterr().err
    assert main([*command, "--count", "2"]) == 0
    assert "sky to sunset" in capsys.readouterr().out
    assert main(["evaluate", "--quiet"]) == 2
    assert "needs --data FOLDER" in capsys.readouterr().err
