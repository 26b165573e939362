"""Training of STREAM: it learns to describe images."""

from pathlib import Path

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.training.captioner import train_stream
from mirrorgan_fast.training.settings import MirrorGANTrainingSettings, STREAMSettings

from .runs import HERE, LEARNING, curves


def test_stream_learns_to_describe(
    tmp_path: Path, two_hundred: tuple[TrainingExamples, int]
) -> None:
    options = STREAMSettings(steps=200, batch_size=16)
    settings = MirrorGANTrainingSettings(stream=options, precision="fp32", augment=False)
    train_stream(LEARNING, settings, *two_hundred, tmp_path, HERE)
    first, *_, last = curves(tmp_path)
    assert last["cross_entropy"] < first["cross_entropy"] - 1
