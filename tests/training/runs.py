"""What the tests of trainings do with a run: stop it, read its curves; and batches for a step."""

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.models.config import (
    CycleGANConfig,
    GanIntClsConfig,
    GawwnConfig,
    MirrorGANConfig,
    StackGANConfig,
    StackGANv2Config,
)
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.models.stream import STREAM
from mirrorgan_fast.training.computation import FP32
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.mirrorgan import MirrorGANTraining
from mirrorgan_fast.training.run import Run
from mirrorgan_fast.training.settings import MirrorGANSettings
from mirrorgan_fast.vocabulary import Vocabulary
from tests.small import SMALL

HERE = Execution(torch.device("cpu"), workers=0, quiet=True)
"""In this process, on the CPU."""
TINY = dataclasses.replace(
    SMALL, discriminator_channels=4, noise_size=6, condition_size=5, caption_length=9
)
"""A step of training takes a fraction of a second on one core."""
_SHARED: dict[str, Any] = {
    name: getattr(TINY, name)
    for name in (
        *("embedding_size", "word_embedding_size", "caption_length", "condition_size"),
        *("noise_size", "discriminator_channels", "image_encoder"),
    )
}
STACKGAN = StackGANConfig(
    image_size=32, first_size=16, generator_channels=8, residual_blocks=1, **_SHARED
)
STACKGAN_V2 = StackGANv2Config(
    image_size=32, stages=2, generator_channels=8, residual_blocks=1, **_SHARED
)
INT_CLS = GanIntClsConfig(image_size=32, generator_channels=4, **_SHARED)
CYCLEGAN = CycleGANConfig(
    image_size=32, generator_channels=4, discriminator_channels=4, residual_blocks=1
)
GAWWN = GawwnConfig(image_size=32, generator_channels=4, kept_boxes=20, **_SHARED)
LEARNING = MirrorGANConfig(
    image_size=64,
    stages=2,
    embedding_size=64,
    word_embedding_size=64,
    text_dropout=0.0,
    image_encoder="small",
    stream_encoder="small",
    stream_hidden_size=128,
)
"""Large enough to learn within a few hundred steps."""


def stop(monkeypatch: pytest.MonkeyPatch, step: int, how: Callable[[], Any]) -> None:
    """Make every run stop in ``step``."""
    log = Run.log

    def log_and_stop(self: Run, at: int, *figures: Any) -> None:
        log(self, at, *figures)
        if at == step:
            how()

    monkeypatch.setattr(Run, "log", log_and_stop)


def interrupt() -> None:
    """Press Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


def kill() -> None:
    """End at once, without a checkpoint."""
    raise RuntimeError("killed")


def curves(folder: Path) -> list[dict[str, float]]:
    """Return the points of a run's curves."""
    return [json.loads(row) for row in (folder / "curves.jsonl").read_text().splitlines()]


def batch_of(examples: TrainingExamples, count: int) -> dict[str, torch.Tensor]:
    """Return the first examples, in one batch."""
    chosen = [examples[i] for i in range(count)]
    batch = {
        name: torch.stack([torch.as_tensor(each[name]) for each in chosen])  # type: ignore[literal-required]
        for name in chosen[0]
    }
    return {**batch, "lengths": batch["length"]}


def mirrorgan_task(
    config: MirrorGANConfig, settings: MirrorGANSettings, vocabulary: Vocabulary
) -> MirrorGANTraining:
    """Return a training of MirrorGAN with untrained networks, always the same."""
    torch.manual_seed(3)
    networks = (
        STEM(config, len(vocabulary)),
        DAMSMImageEncoder(config),
        STREAM(config, len(vocabulary)),
    )
    return MirrorGANTraining(config, settings, *networks, FP32, compiled=False)
