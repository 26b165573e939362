"""What CycleGAN learns in minutes at 32 pixels: sky behind painted birds becomes sunset, and back.

``python -m tests.training.test_translations_are_learned SEED`` prints the figures of a seed.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mirrorgan_fast.data.painted_birds.data_set import export_image_folder
from mirrorgan_fast.data.unpaired import open_unpaired
from mirrorgan_fast.evaluation.translation import evaluate_translation, translation_table
from mirrorgan_fast.models.attribute_classifier import AttributeClassifier
from mirrorgan_fast.models.config import CycleGANConfig
from mirrorgan_fast.training.cyclegan import train_cyclegan
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.settings import CycleGANSettings, CycleGANTrainingSettings

PICTURES = 2000
MOST = 0.7
"""Of the distance of the untranslated picture to the true one."""


def figures_of(seed: int, folder: Path, **changed: Any) -> dict[str, Any]:
    """Train on unpaired birds of both backgrounds; return the figures of 100 held-out birds."""
    export_image_folder(folder / "birds", train=PICTURES, test=0, size=64, progress=False)
    unpaired = open_unpaired(folder / "birds", domains="attributes.background=sky,sunset")
    config = CycleGANConfig(
        image_size=32,
        generator_channels=16,
        discriminator_channels=16,
        residual_blocks=2,
        x="sky",
        y="sunset",
    )
    gan = {"steps": 800, "decay_steps": 400, "batch_size": 4, "learning_rate": 1e-3}
    settings = CycleGANTrainingSettings(
        gan=CycleGANSettings(**{**gan, "average_decay": 0.99, **changed}), augment=False, seed=seed
    )
    run = Execution(torch.device("cpu"), quiet=True)
    model = train_cyclegan(config, settings, unpaired, folder / "run", run)
    judge = AttributeClassifier.from_pretrained()
    return evaluate_translation(model, judge, count=100, quiet=True)


@pytest.mark.slow
def test_it_learns_to_change_the_background(tmp_path: Path) -> None:
    figures = figures_of(0, tmp_path)
    print(translation_table(figures))
    for title in ("sky to sunset", "sunset to sky"):
        measured = figures[title]
        assert measured["translated"]["l1"] < MOST * measured["untranslated"]["l1"]
        assert measured["translated"]["background"] > 0.7


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        print(translation_table(figures_of(int(sys.argv[1]), Path(made))))
