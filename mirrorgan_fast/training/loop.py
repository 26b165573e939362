"""The training loop. Every network of the package is trained by it."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from mirrorgan_fast.training.batches import Batch, Batches
from mirrorgan_fast.training.run import Run

Part = nn.Module | torch.optim.Adam


class Task(Protocol):
    """What is trained."""

    def parts(self) -> Mapping[str, Part]:
        """Everything that changes in a step, by the names that it has in a checkpoint."""
        ...

    def step(self, step: int, epoch: int, batch: Batch) -> Mapping[str, Tensor]:
        """Train on one batch.

        Args:
            step: counted from 0 over the whole run.
            epoch: counted from 0; an epoch uses every example once.
            batch: of ``TrainingExamples``.

        Returns:
            figures for the curves, each a scalar without a gradient.
        """
        ...


def fit(
    task: Task,
    run: Run,
    batches: Batches,
    *,
    validate: Callable[[int], Mapping[str, float]] | None = None,
    validate_every: int = 1000,
    sheet: Callable[[int], None] | None = None,
    sheet_every: int = 1000,
) -> None:
    """Train from the run's checkpoint, or from the start, to the run's last step.

    Args:
        task: what to train.
        run: the folder of checkpoints and curves, and the number of steps; it was entered.
        batches: what to train on.
        validate: called with the number of steps taken; what it returns goes to the curves.
        validate_every: steps between two calls; it is also called after the last step.
        sheet: called with the number of steps taken, to draw what the task has learned.
        sheet_every: steps between two calls; it is also called after the last step.

    Raises:
        InputError: see ``Run`` and ``Batches``.
        KeyboardInterrupt: Ctrl-C was pressed or SIGTERM came; the last step is in the checkpoint.
    """
    parts = task.parts()
    run.restore(parts)
    for step, epoch, batch in run.batches(batches):
        run.log(step, task.step(step, epoch, batch))
        if run.saving(step):
            run.save(step, {name: part.state_dict() for name, part in parts.items()})
        if validate is not None and run.due(step, validate_every):
            run.record(step, validate(step + 1))
        if sheet is not None and run.due(step, sheet_every):
            sheet(step + 1)
