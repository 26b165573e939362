"""A training step reads nothing back to the host, for which a GPU would have to be waited for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.models.stream import STREAM
from mirrorgan_fast.training.batches import Batches
from mirrorgan_fast.training.cnn import CNNTraining
from mirrorgan_fast.training.computation import FP32
from mirrorgan_fast.training.loop import Task
from mirrorgan_fast.training.mirrorgan import MirrorGANTraining
from mirrorgan_fast.training.run import Run
from mirrorgan_fast.training.settings import MirrorGANTrainingSettings
from mirrorgan_fast.vocabulary import Vocabulary

from .runs import HERE


class Reads(TorchDispatchMode):
    """Counts how often a number is read from a tensor, as by ``float()``, ``item()`` or ``if``."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            # PyTorch's LSTM reads batch sizes, which are int64 and always on the CPU.
            self.count += arguments[0].dtype != torch.int64
        return function(*arguments, **(named or {}))


@pytest.fixture(params=["cnn", "gan"])
def task(
    request: pytest.FixtureRequest,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    examples: TrainingExamples,
    vocabulary: Vocabulary,
    device: torch.device,
) -> Task:
    torch.manual_seed(0)
    if request.param == "cnn":
        return CNNTraining(settings.cnn, examples.phrases(20), FP32)
    words = len(vocabulary)
    networks = STEM(config, words), DAMSMImageEncoder(config), STREAM(config, words)
    return MirrorGANTraining(config, settings.gan, *networks, FP32, compiled=False)


def test_only_steps_that_write_a_point_are_waited_for(
    tmp_path: Path, task: Task, examples: TrainingExamples
) -> None:
    batches = Batches(examples, 5, 0, HERE)
    with Run(tmp_path, 3, {}, log_every=3, save_every=100, quiet=True) as run:
        for step, epoch, batch in batches.between(0, 3):
            with Reads() as reads:
                figures = task.step(step, epoch, batch)
                run.log(step, figures)
            assert (reads.count > 0) == (step == 2), step


def test_reads_are_counted() -> None:
    with Reads() as reads:
        x: Tensor = torch.ones(2)
        float(x[0])
        x[1].item()
        bool((x > 0).all())
    assert reads.count == 3
