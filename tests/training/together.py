"""Trains every stage, alone or with other processes, in float64 or in a narrow precision."""

import dataclasses
import os
import socket
import sys
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.data.painted_birds.data_set import PaintedBirds
from mirrorgan_fast.data.unpaired import Unpaired
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.stackgan import StackGANGenerator
from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.models.stream import STREAM
from mirrorgan_fast.processes import Processes
from mirrorgan_fast.training.captioner import train_stream
from mirrorgan_fast.training.cnn import train_cnn
from mirrorgan_fast.training.cyclegan import train_cyclegan
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.gan import train_gan
from mirrorgan_fast.training.gan_int_cls import GanIntClsTraining
from mirrorgan_fast.training.gawwn import GawwnTraining
from mirrorgan_fast.training.matcher import train_stem
from mirrorgan_fast.training.mirrorgan import train_mirrorgan
from mirrorgan_fast.training.precision import Precision
from mirrorgan_fast.training.run import Run
from mirrorgan_fast.training.settings import (
    CNNSettings,
    CommonSettings,
    CycleGANSettings,
    CycleGANTrainingSettings,
    GanIntClsSettings,
    GanIntClsTrainingSettings,
    GawwnSettings,
    GawwnTrainingSettings,
    MirrorGANSettings,
    MirrorGANTrainingSettings,
    StackGANSettings,
    StackGANTrainingSettings,
    StackGANv2Settings,
    StackGANv2TrainingSettings,
    STEMSettings,
    STREAMSettings,
    TrainingSettings,
)
from mirrorgan_fast.training.stackgan import first_stage_of, train_stackgan
from mirrorgan_fast.training.stackgan_v2 import StackGANv2Training
from mirrorgan_fast.vocabulary import Vocabulary

from .runs import CYCLEGAN, GAWWN, INT_CLS, STACKGAN, STACKGAN_V2, TINY

STEPS, SIZE = 3, 8
SETTINGS = MirrorGANTrainingSettings(
    cnn=CNNSettings(steps=STEPS, batch_size=SIZE, phrases=20),
    stem=STEMSettings(steps=STEPS, batch_size=SIZE),
    stream=STREAMSettings(steps=STEPS, batch_size=SIZE),
    gan=MirrorGANSettings(
        steps=STEPS, batch_size=SIZE, form="authors", damsm_weight=1.0, r1_weight=1.0
    ),
    precision="fp32",
    sync_batch_norm=True,
    log_every=1,
)


@dataclasses.dataclass(frozen=True)
class How:
    """How to train, and which process gets which signal when."""

    steps: int = STEPS
    synced: bool = True
    precision: Precision = "fp32"
    number: int | None = None
    rank: int = 0
    at: int = 1


def main(folder: Path, stages: list[str], settings: MirrorGANTrainingSettings) -> None:
    """Train stages, each in a folder of its name."""
    if settings.precision == "fp32":  # autocast is for float32
        torch.set_default_dtype(torch.float64)
    processes = Processes.join()
    execution = Execution(torch.device("cpu"), workers=0, quiet=True, processes=processes)
    birds = PaintedBirds("train", 2 * SIZE, size=64)
    birds.label = lambda index: index // 2  # type: ignore[method-assign] # some are of one class
    texts = (text for index in range(len(birds)) for text in birds.captions(index))
    words = Vocabulary.build(texts)
    sizes = (TINY.image_size, TINY.caption_length, True)
    examples = TrainingExamples(birds, words, *sizes)
    what = (TINY, settings, examples)
    if "cnn" in stages:
        train_cnn(*what, folder / "cnn", execution)
    if "stem" in stages:
        train_stem(*what, len(words), folder / "stem", execution)
    if "stream" in stages:
        train_stream(*what, len(words), folder / "stream", execution)
    if "frozen" in stages:  # the features of a frozen CNN, in parts
        torch.manual_seed(1)
        cnn = DAMSMImageEncoder(TINY).cnn.state_dict()
        plain = dataclasses.replace(settings, augment=False)
        arguments = (TINY, plain, examples, len(words), folder / "frozen", execution)
        train_stem(*arguments, trained_cnn=cnn)
    torch.manual_seed(2)
    networks = STEM(TINY, len(words)), DAMSMImageEncoder(TINY), STREAM(TINY, len(words))
    if "gan" in stages:
        train_mirrorgan(*what, *networks, folder / "gan", execution)
    if "paper" in stages:
        gan = dataclasses.replace(settings.gan, form="paper", r1_weight=0.0)
        paper = dataclasses.replace(settings, gan=gan)
        train_mirrorgan(TINY, paper, examples, *networks, folder / "paper", execution)
    if "projected" in stages:
        options = {"r1_weight": 0.0, "augment": True, "difference_weight": 1.0}
        gan = dataclasses.replace(settings.gan, **options)
        sees = dataclasses.replace(TINY, discriminator="projected")
        projected = (sees, dataclasses.replace(settings, gan=gan), examples)
        train_mirrorgan(*projected, *networks, folder / "projected", execution)
    _train_others(stages, settings, examples, networks[0], folder, execution)
    if "gawwn" in stages:
        with_boxes = TrainingExamples(birds, words, *sizes, boxes=True)
        gawwn = GawwnTrainingSettings(
            **_common(settings),
            gan=GawwnSettings(steps=settings.gan.steps, batch_size=SIZE, r1_weight=1.0),
        )
        where = ({"stem": networks[0]}, folder / "gawwn", execution)
        train_gan(GawwnTraining, GAWWN, gawwn.gan, gawwn, with_boxes, *where)
    processes.close()


def _train_others(
    stages: list[str],
    settings: MirrorGANTrainingSettings,
    examples: TrainingExamples,
    stem: STEM,
    folder: Path,
    execution: Execution,
) -> None:
    """Train the generators of the systems without attention."""
    common = _common(settings)
    length = {"steps": settings.gan.steps, "batch_size": SIZE}
    if "stackgan-v2" in stages:
        v2 = StackGANv2Settings(**length, color_weight=1.0, r1_weight=1.0)
        chain = StackGANv2TrainingSettings(**common, gan=v2)
        where = ({"stem": stem}, folder / "stackgan-v2", execution)
        train_gan(StackGANv2Training, STACKGAN_V2, v2, chain, examples, *where)
    if "stackgan" in stages:
        options = StackGANSettings(**length, r1_weight=1.0)
        of_chain = (StackGANTrainingSettings(**common), examples, stem)
        small, at = first_stage_of(STACKGAN), (folder / "stage1", execution)
        first = train_stackgan(small, options, *of_chain, None, *at)
        assert isinstance(first, StackGANGenerator)
        train_stackgan(STACKGAN, options, *of_chain, first, folder / "stackgan", execution)
    if "gan-int-cls" in stages:
        # A bias before a batch norm has only what rounding leaves as its gradient, and R1 is large.
        gan = GanIntClsSettings(**length, r1_weight=0.1)
        int_cls = GanIntClsTrainingSettings(**common, gan=gan)
        where = ({"stem": stem}, folder / "gan-int-cls", execution)
        train_gan(GanIntClsTraining, INT_CLS, int_cls.gan, int_cls, examples, *where)
    if "cyclegan/gan" in stages:
        domains = (PaintedBirds("train", 2 * SIZE - i, 64, seed=i) for i in (0, 1))
        of_all = {field.name: common[field.name] for field in dataclasses.fields(CommonSettings)}
        gan = CycleGANSettings(**length, pool_size=SIZE + 3)
        cyclegan = CycleGANTrainingSettings(**of_all, gan=gan)
        unpaired = Unpaired(*domains, names=("A", "B"))
        train_cyclegan(CYCLEGAN, cyclegan, unpaired, folder / "cyclegan", execution)


def _common(settings: TrainingSettings) -> dict[str, Any]:
    """Return the settings that all chains have."""
    return {
        field.name: getattr(settings, field.name) for field in dataclasses.fields(TrainingSettings)
    }


def send_at(step: int, number: int) -> None:
    """Have every run send this process a signal after the figures of a step."""
    log = Run.log

    def log_and_send(self: Run, at: int, *figures: Any) -> None:
        log(self, at, *figures)
        if at == step:
            os.kill(os.getpid(), number)

    Run.log = log_and_send  # type: ignore[method-assign]


def _child(
    rank: int, count: int, port: int, folder: Path, stages: tuple[str, ...], how: How
) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)  # OpenMP cannot start threads after a fork
    if how.number is not None and rank == how.rank:
        send_at(how.at, how.number)
    changed: dict[str, Any] = {
        stage: dataclasses.replace(getattr(SETTINGS, stage), steps=how.steps)
        for stage in ("cnn", "stem", "stream", "gan")
    }
    changed |= {"sync_batch_norm": how.synced, "precision": how.precision, "save_every": 2}
    try:
        main(folder, list(stages), dataclasses.replace(SETTINGS, **changed))
    except (InputError, KeyboardInterrupt) as error:
        (folder / f"error_{rank}").write_text(f"{type(error).__name__}: {error}")
        sys.exit(1)


def start(count: int, folder: Path, *stages: str, how: How = How()) -> list[ForkProcess]:
    """Start to train stages in a number of processes. Their errors will be in ``folder``."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        ForkProcess(target=_child, args=(rank, count, port, folder, stages, how))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    return processes


def together(count: int, folder: Path, *stages: str, how: How = How()) -> list[int | None]:
    """Train stages in a number of processes, and return their exit codes."""
    processes = start(count, folder, *stages, how=how)
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]
