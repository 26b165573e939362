"""The training loop. Every network of the package is trained by it."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.training.batches import Batch, Batches
from mirrorgan_fast.training.learner import Learner
from mirrorgan_fast.training.run import Run

Part = nn.Module | torch.optim.Adam


class Task(Protocol):
    """What is trained."""

    def parts(self) -> Mapping[str, Part]:
        """Everything that changes in a step, by the names that it has in a checkpoint."""
        ...

    def learners(self) -> Mapping[str, Learner]:
        """The learners that ``step`` uses, by the names of their networks."""
        ...

    def step(self, step: int, epoch: int, batch: Batch) -> Mapping[str, Tensor]:
        """Train on one batch, or on one part of it.

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
    work: Callable[[int], float] = float,
) -> None:
    """Train from the run's checkpoint, or from the start, to the run's last step.

    Args:
        task: what to train.
        run: the folder of checkpoints and curves, and the number of steps. It must be entered
            already (inside ``with run``).
        batches: what to train on.
        validate: called with the number of steps taken; what it returns, if anything, goes to the
            curves.
        validate_every: steps between two calls; it is also called after the last step.
        sheet: called with the number of steps taken, to draw what the task has learned.
        sheet_every: steps between two calls; it is also called after the last step.
        work: how much the first steps are, given their number, in any unit, to estimate the time
            that is left.

    Raises:
        InputError: a network's gradients were not finite; see also ``Run`` and ``Batches``.
        KeyboardInterrupt: Ctrl-C was pressed or SIGTERM came; the last step is in the checkpoint.
    """
    learners = task.learners()
    scales = {
        f"loss scale of {name}": learner.loss_scale
        for name, learner in learners.items()
        if learner.loss_scale is not None
    }
    parts = {**task.parts(), **scales}
    run.restore(parts)
    for learner in learners.values():
        learner.mend_statistics()
    run.say(_summary(learners, run, batches))

    def now() -> dict[str, float]:
        found: dict[str, float] = {}
        for name, learner in learners.items():
            found[f"gradient norm of {name}"] = float(learner.norm)
            found[f"learning rate of {name}"] = learner.adam.param_groups[0]["lr"]
        return found

    on_cpu = all(learner.parameters[0].device.type == "cpu" for learner in learners.values())
    threads = torch.get_num_threads() if on_cpu else None
    for number, (step, epoch, batch) in enumerate(run.batches(batches, work, threads), start=1):
        figures = task.step(step, epoch, batch)
        if number % batches.accumulate:
            run.add(figures)
            continue
        if run.due(step, run.log_every):
            _check_gradients(learners, run, step)
        run.log(step, figures, now)
        if run.saving(step):
            _check_gradients(learners, run, step)
            for learner in learners.values():  # D also sees images after its step
                learner.mend_statistics()
            run.save(step, {name: part.state_dict() for name, part in parts.items()})
        if validate is not None and run.due(step, validate_every):
            measured = validate(step + 1)
            if measured:
                run.record(step, measured)
        if sheet is not None and run.due(step, sheet_every):
            sheet(step + 1)


def _summary(learners: Mapping[str, Learner], run: Run, batches: Batches) -> str:
    """Return a line on what is trained, on what, and how."""
    sizes = [
        f"{name} {sum(p.numel() for p in learner.parameters) / 1e6:.3g} M"
        for name, learner in learners.items()
    ]
    device = next(iter(learners.values())).parameters[0].device
    count = run.processes.count
    if run.first_step >= run.steps:
        return f"all {run.steps:,} steps are taken"
    return (
        f"{batches.examples.described()}; parameters to train: "
        f"{', '.join(sizes)}; {device.type}, {run.settings.get('precision', 'fp32')}, "
        f"{'1 process' if count == 1 else f'{count} processes'}; steps {run.first_step:,} to "
        f"{run.steps:,} of {batches.batch_size} images"
    )


def _check_gradients(learners: Mapping[str, Learner], run: Run, step: int) -> None:
    """Raise InputError if a learner has failed. On a GPU, this waits for all steps so far."""
    for name, learner in learners.items():
        if failure := learner.failure():
            raise InputError(
                f"{run.folder}: the gradients of {name} {failure} up to step {step + 1}: the "
                f"training has diverged; start it in another folder with a lower learning rate"
            )
