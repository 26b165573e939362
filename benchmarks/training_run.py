"""What a run of the generator's training takes beside its steps: loader, files, sheets, validation.

python -m benchmarks.training_run [--steps 60] [--json FILE]

Trains the generator of `birds-painted` on 600 painted birds, with the networks of the package, and
measures the time between the steps. At the end, the same step is measured alone, on a batch that is
in memory, without a process that loads pictures.
"""

import argparse
import copy
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.painted_birds.data_set import export_image_folder
from mirrorgan_fast.data.prepared_pictures import check_pictures
from mirrorgan_fast.evaluation.validation import Validation
from mirrorgan_fast.memory import keep_memory
from mirrorgan_fast.models.attribute_classifier import AttributeClassifier
from mirrorgan_fast.models.glam import GLAM
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.recipes import find_recipe
from mirrorgan_fast.training.batches import Batch
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.mirrorgan import MirrorGANTraining, train_mirrorgan
from mirrorgan_fast.training.run import Run
from mirrorgan_fast.training.settings import MirrorGANTrainingSettings
from mirrorgan_fast.training.sheets import SampleSheets

_ALONE = 20  # steps
_WARM_UP = 5


class Times:
    """Seconds of every call of the functions that it is told to watch."""

    def __init__(self) -> None:
        self.spans: dict[str, list[tuple[float, float]]] = {}
        self.task: MirrorGANTraining
        self.batch: Batch

    def watch(self, owner: type, method: str, name: str) -> "mock._patch":
        """Return a patch that records the start and the end of every call of a method."""
        original = getattr(owner, method)

        def recorded(*arguments: object, **named: object) -> object:
            if name == "step":
                self.task, self.batch = arguments[0], arguments[3]  # type: ignore[assignment]
            start = time.perf_counter()
            result = original(*arguments, **named)
            self.spans.setdefault(name, []).append((start, time.perf_counter()))
            return result

        return mock.patch.object(owner, method, recorded)

    def seconds(self, name: str) -> list[float]:
        """Return the seconds of every call."""
        return [end - start for start, end in self.spans.get(name, [])]


def measure(steps: int, folder: Path) -> dict[str, float]:
    """Return the figures of a run: seconds, and shares of the steps' time."""
    model = MirrorGAN.from_pretrained()
    recipe = find_recipe("birds-painted")
    settings = recipe.settings
    assert isinstance(settings, MirrorGANTrainingSettings)
    gan = dataclasses.replace(settings.gan, steps=steps, last_stage_from=0)
    settings = dataclasses.replace(settings, gan=gan, log_every=10)
    export_image_folder(folder / "birds", train=600, test=200, progress=False)
    execution = Execution(torch.device("cpu"), quiet=True, cache=folder / "cache")
    images, prepared = check_pictures(
        ImageFolder(folder / "birds", "train"), 128, augment=False, cache=folder / "cache"
    )
    examples = TrainingExamples(images, model.vocabulary, 128, prepared=prepared)
    validation = Validation(
        ImageFolder(folder / "birds", "test"), AttributeClassifier.from_pretrained()
    )

    def validate(glam: GLAM, _: int) -> dict[str, float]:
        measured = copy.copy(model)
        measured.glam = glam
        return validation(measured)

    times = Times()
    with (
        times.watch(MirrorGANTraining, "step", "step"),
        times.watch(Run, "save", "save"),
        times.watch(SampleSheets, "write", "sheet"),
        times.watch(Validation, "__call__", "validation"),
    ):
        train_mirrorgan(
            model.config,
            settings,
            examples,
            model.stem,
            model.image_encoder,
            model.stream,
            folder / "run",
            execution,
            validate=validate,
        )
    spans = times.spans["step"][_WARM_UP:]
    stepping = sum(end - start for start, end in spans)
    alone = step_alone(times.task, times.batch)
    between = spans[-1][1] - spans[0][0] - stepping
    whole = 1000 * stepping / len(spans)  # seconds of 1,000 steps in the run
    rest = 1000 * between / len(spans)
    files = 2 * statistics.median(times.seconds("save"))
    shown = statistics.median(times.seconds("sheet"))
    measured = statistics.median(times.seconds("validation"))
    return {
        "step in the run, ms": whole,
        "step alone, ms": 1e3 * alone,
        "loader and curves, share of the steps": rest / whole,
        "two checkpoints, s": files,
        "a sheet, s": shown,
        "a validation, s": measured,
        "speed of 1,000 steps in a run, of steps alone": 1e3
        * alone
        / (whole + rest + files + shown + measured),
    }


def step_alone(task: MirrorGANTraining, batch: Batch) -> float:
    """Return the mean seconds of a step on one batch, without a loader."""
    kept: dict[str, Tensor] = {name: tensor.clone() for name, tensor in batch.items()}
    for step in range(_WARM_UP):
        task.step(step, 0, kept)
    start = time.perf_counter()
    for step in range(_ALONE):
        task.step(step, 0, kept)
    return (time.perf_counter() - start) / _ALONE


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="What a run takes beside its steps.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.steps, Path(folder))
    for name, value in found.items():
        print(f"{name}: {value:.3g}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
