"""Training of STREAM: it learns to describe images."""

import dataclasses
from pathlib import Path

import torch

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.stream import STREAM
from mirrorgan_fast.training.batches import Batches
from mirrorgan_fast.training.captioner import CaptionerTraining, train_stream
from mirrorgan_fast.training.computation import FP32
from mirrorgan_fast.training.features import ImageFeatures
from mirrorgan_fast.training.settings import MirrorGANTrainingSettings, STREAMSettings
from mirrorgan_fast.vocabulary import Vocabulary

from .runs import HERE, LEARNING, curves


def test_stream_learns_to_describe(
    tmp_path: Path, two_hundred: tuple[TrainingExamples, int]
) -> None:
    options = STREAMSettings(steps=200, batch_size=16)
    settings = MirrorGANTrainingSettings(stream=options, precision="fp32", augment=False)
    train_stream(LEARNING, settings, *two_hundred, tmp_path, HERE)
    first, *_, last = curves(tmp_path)
    assert last["cross_entropy"] < first["cross_entropy"] - 1


def test_parts_of_a_batch_are_trained_on_as_the_whole(
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    examples: TrainingExamples,
    vocabulary: Vocabulary,
) -> None:
    """With a frozen CNN, and with the running statistics in the norm of the image."""
    states = []
    for accumulate in (1, 4):
        torch.manual_seed(0)
        stream = STREAM(config, len(vocabulary))
        stream.cnn.eval().requires_grad_(False)
        stream.image_norm.eval()
        computation = dataclasses.replace(FP32, accumulate=accumulate)
        features = ImageFeatures(
            lambda image, stream=stream: (stream.see(image),), examples, HERE, FP32, crops=0
        )
        task = CaptionerTraining(settings.stream, stream, features, computation)
        batches = Batches(examples, 8, 0, HERE, accumulate)
        for step, epoch, part in batches.between(0, 3):
            task.step(step, epoch, part)
        states.append(stream.state_dict())
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-6)
    assert not torch.equal(states[0]["word_linear.weight"], stream_weight(config, vocabulary))


def stream_weight(config: MirrorGANConfig, vocabulary: Vocabulary) -> torch.Tensor:
    """Return the weight of the last layer before the training."""
    torch.manual_seed(0)
    return STREAM(config, len(vocabulary)).word_linear.weight
