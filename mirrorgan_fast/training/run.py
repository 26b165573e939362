"""The folder of a training run: lock, checkpoint, curves and progress bar."""

import io
import json
import logging
import os
import sys
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from itertools import takewhile
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mirrorgan_fast.errors import InputError, printable
from mirrorgan_fast.fields import changed_fields
from mirrorgan_fast.files import open_file, open_lock, parse_json, reason, whole_file
from mirrorgan_fast.interrupts import Interrupts
from mirrorgan_fast.models.config import SystemConfig
from mirrorgan_fast.processes import ALONE, Processes
from mirrorgan_fast.training.batches import Batch, Batches
from mirrorgan_fast.training.checkpoint import (
    ADVICE,
    CHECKPOINT,
    fingerprint,
    load_checkpoint,
    restore,
    seal,
)
from mirrorgan_fast.training.computation import Computation
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.precision import COMPUTED, fastest_precision
from mirrorgan_fast.training.settings import (
    CNNSettings,
    CommonSettings,
    StageSettings,
    STEMSettings,
    STREAMSettings,
)
from mirrorgan_fast.training.watch import Watch

_LOG = logging.getLogger("mirrorgan_fast")
CURVES = "curves.jsonl"
VERSION = 5
"""Of the training, in every checkpoint; raised with each change of its numbers.

2: Sums that were rounded to bfloat16 under autocast are in float32.
3: A fused Adam, which can skip a step.
4: The moving average copies integer buffers.
5: With augmentation, an image is cut from the scaled picture at whole pixels. The noise that the
judge is trained with is drawn for the batch of all processes. ImageNet's CNNs are in evaluation
mode. R1 is in every sixteenth step. D sees real and generated images at once, and computes its
joint convolution in two parts. Attention and convolutions have gradients of their own.
"""
_WARM_UP, _TIMED = 2, 10  # steps before the time that is left is estimated, and for it
_WORTH_SAYING = 60  # seconds
_LEAST_SHARE = 0.7  # of the cores' time, with which the threads do not wait for other programs
_LONGEST_POINT = 2**16  # bytes
_LARGEST_CURVES = 2**28  # bytes; 710,000 steps of a GAN make 4 MB


# The sizes that the first stages depend on; the GAN depends on all.
_OF_EXAMPLES = {"image_size", "caption_length"}
_OF_TEXT = {"embedding_size", "word_embedding_size", "text_dropout"}
_SIZES: dict[type, set[str]] = {
    CNNSettings: _OF_EXAMPLES,
    STEMSettings: {*_OF_EXAMPLES, *_OF_TEXT, "image_encoder"},
    STREAMSettings: {*_OF_EXAMPLES, "embedding_size", "stream_encoder", "stream_hidden_size"},
}


class Unsaid(NamedTuple):
    """A setting that was not given: the checkpoint's value is used, or else the default."""

    default: Any
    choices: Collection[Any] = ()
    """The values that a checkpoint can have; none: any text, or None."""

    def allows(self, value: Any) -> bool:
        """Return whether a checkpoint can have a value, which may be anything."""
        if not self.choices:
            return value is None or isinstance(value, str)
        return any(type(value) is type(choice) and value == choice for choice in self.choices)


class Run:
    """The folder of one training run, and what is written to it.

    ``checkpoint.pt`` holds the whole state; ``curves.jsonl`` and TensorBoard event files hold the
    losses. Use it as a context manager: inside, Ctrl-C and SIGTERM take effect at the end of a
    step, after its checkpoint. A second signal takes effect at once.

    Args:
        folder: created if it does not exist.
        steps: the number of steps of the whole run.
        settings: everything that the result depends on. A checkpoint with other settings is
            refused. Settings that are ``Unsaid`` are taken from the checkpoint.
        log_every: steps between two points of the curves; a point is the mean over these steps.
        save_every: steps between two checkpoints.
        quiet: no progress bar.
        processes: that train together. Only process 0 writes.
        changeable: names of settings that may differ from the checkpoint's. Such a change is
            logged, and recorded in ``changes.jsonl``.

    Raises:
        InputError: (when it is entered) another process trains in the folder, or its checkpoint is
            damaged or was made with other settings.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        settings: dict[str, Any],
        *,
        log_every: int = 50,
        save_every: int = 500,
        quiet: bool = False,
        processes: Processes = ALONE,
        changeable: Collection[str] = (),
    ) -> None:
        self.folder = folder
        self.steps = steps
        self.settings = dict(settings)
        self.log_every = log_every
        self.save_every = save_every
        self.checkpoint: dict[str, Any] | None = None
        self.first_step = 0
        self.processes = processes
        self._watch = Watch()
        self._shown = ""  # behind the progress bar
        self._batch_size = self._compared = 1
        self._last_point = (0, 0.0)  # step and time
        self._changeable = changeable
        self._changes: list[dict[str, Any]] = []
        self._quiet = quiet or processes.rank > 0
        self._lock: io.FileIO | None = None
        self._writer: SummaryWriter | None = None
        self._stopping = False
        self._interrupts = Interrupts(insisting=True)
        self._saved_step = -1
        self._sums: dict[str, float | Tensor] = {}
        self._counts: dict[str, int] = {}  # of the values in each sum

    def __enter__(self) -> Self:
        self.processes.once(self._lock_folder)
        try:
            self._resume()
            self.processes.once(self._begin)
        except BaseException:
            self._unlock()
            raise
        self._bar = tqdm(
            total=self.steps,
            initial=self.first_step,
            desc=self.folder.name,
            unit="step",
            disable=self._quiet,
            bar_format="{desc}: {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}",
        )
        if self.processes.rank == 0:
            self._writer = SummaryWriter(str(self.folder), purge_step=self.first_step + 1)
        self._interrupts.__enter__()
        self._interrupts.hold()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._interrupts.__exit__()
        if self._writer is not None:
            self._writer.close()
        self._bar.close()
        self._unlock()
        if error is None:  # the others may read the checkpoint from now on
            self.processes.total(0)

    def _lock_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({reason(error)})") from error
        refusal = f"{self.folder}: another process trains there; wait for it, or stop it"
        self._lock = open_lock(self.folder / "lock", refusal)
        # Forked DataLoader workers outlive a killed run by seconds, and must not hold the lock.
        os.register_at_fork(after_in_child=partial(_close, weakref.ref(self._lock)))

    def _begin(self) -> None:
        """Write what a run has changed, and forget curves of steps that are taken again."""
        self._forget_curves_after(self.first_step)
        if self.steps < self.first_step:
            _LOG.warning(
                "%s: has %s steps already, more than the %s that are asked for: it stays as it is",
                printable(str(self.folder)),
                f"{self.first_step:,}",
                f"{self.steps:,}",
            )
        for change in self._changes:
            _LOG.warning(
                "%s: %s was %r, from step %s on it is %r",
                *(printable(str(self.folder)), change["name"], change["from"]),
                *(f"{change['step']:,}", change["to"]),
            )
        if self._changes:
            path = self.folder / "changes.jsonl"
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(change) + "\n" for change in self._changes)
            except OSError as error:
                raise InputError(f"{path}: cannot be written ({reason(error)})") from error

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def computation(self, execution: Execution) -> Computation:
        """Return how the steps compute, by the run's settings; it must be entered already."""
        return Computation(
            execution.device,
            self.settings["precision"],
            execution.processes,
            sync_batch_norm=self.settings.get("sync_batch_norm", False),
            accumulate=self.settings.get("accumulate", 1),
        )

    def say(self, text: str) -> None:
        """Print a line above the progress bar, if there is one."""
        if not self._quiet:
            self._bar.write(f"{self.folder.name}: {text}", file=sys.stderr)

    def batches(
        self,
        batches: Batches,
        work: Callable[[int], float] = float,
        threads: int | None = None,
    ) -> Iterator[tuple[int, int, Batch]]:
        """Yield (step, epoch, batch) from the first step that is missing to the last.

        Args:
            batches: what to yield.
            work: how much the first steps are, given their number, in any unit; the time that is
                left is estimated by it.
            threads: of the CPU that compute a step; None: a step is not computed there.

        Raises:
            InputError: as ``Batches.between``.
            KeyboardInterrupt: Ctrl-C was pressed or SIGTERM came, and the last step is in the
                checkpoint.
        """
        self._batch_size = batches.batch_size
        self._compared = batches.batch_size // batches.accumulate
        self._last_point = (self.first_step, time.perf_counter())
        # Steps from before count neither as taken now nor as taken back: the rate is of new ones.
        self._bar.initial = 0
        self._bar.reset(work(self.steps))
        self._bar.initial = self._bar.n = self._bar.last_print_n = work(self.first_step)
        self._bar.refresh()
        parts = batches.between(self.first_step, self.steps)
        started = computed = 0.0
        for number, (step, epoch, batch) in enumerate(parts, start=1):
            yield step, epoch, batch
            if number % batches.accumulate:
                continue
            if self._saved_step == step:
                self._interrupts.release()
                if self._stopping:  # another process was interrupted
                    raise KeyboardInterrupt
                self._interrupts.hold()
            place = f"step {step + 1:,} of {self.steps:,}"
            self._bar.set_postfix_str(place + self._shown, refresh=False)
            self._bar.update(work(step + 1) - work(step))
            taken = step + 1 - self.first_step
            if taken == _WARM_UP:
                started, computed = time.perf_counter(), time.process_time()
            elif taken == _WARM_UP + _TIMED:
                passed = time.perf_counter() - started
                if threads is not None and threads > 1:
                    self._say_if_cores_are_shared(threads, time.process_time() - computed, passed)
                left = (work(self.steps) - work(step + 1)) / (work(step + 1) - work(step))
                seconds = passed / _TIMED * left
                if seconds > _WORTH_SAYING:
                    hours, minutes = divmod(round(seconds / 60), 60)
                    self.say(f"about {f'{hours} h ' * (hours > 0)}{minutes} min left")

    def _say_if_cores_are_shared(self, threads: int, computed: float, passed: float) -> None:
        """Say it if other programs need the cores too: spinning threads then wait for each other.

        Two trainings at once with two threads each took 6.9 times as long as with one thread each.

        Args:
            threads: that compute a step.
            computed: seconds that they computed, together.
            passed: seconds that passed meanwhile.
        """
        share = computed / (threads * passed)
        if share < _LEAST_SHARE:
            self.say(
                f"other programs use the cores too: the {threads} threads of this one get "
                f"{share:.0%} of their time, and wait for each other; a run with "
                f"OMP_NUM_THREADS={max(1, int(threads * share))} is probably faster"
            )

    def add(self, figures: Mapping[str, float | Tensor]) -> None:
        """Add figures to the next point of the curves, which has the mean of each.

        They are summed on their device: only a step that writes a point waits for a GPU.
        """
        for name, value in figures.items():
            if isinstance(value, Tensor):
                value = value.detach().double()
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def log(
        self,
        step: int,
        figures: Mapping[str, float | Tensor],
        now: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        """Add a step's figures to the curves.

        Args:
            step: counted from 0.
            figures: a point is their mean.
            now: returns what is added to a point as it is then.

        Raises:
            InputError: (in a step that writes a point) one is NaN or infinite; the last checkpoint
                stays.
        """
        self.add(figures)
        if self.due(step, self.log_every):
            sums = self._read_sums(step)
            means = {name: total / self._counts[name] for name, total in sums.items()}
            self._sums, self._counts = {}, {}
            last_step, last_time = self._last_point
            self._last_point = (step + 1, time.perf_counter())
            images = (step + 1 - last_step) * self._batch_size
            rate = images / (self._last_point[1] - last_time)
            shown = ", ".join(f"{name} {mean:.3g}" for name, mean in means.items())
            self._shown = f", {rate:.3g} images/s, {shown}"
            if self._writer is not None:  # not in the curves, which depend on the seed alone
                self._writer.add_scalar("images per second", rate, step + 1)
            self.record(step, {**means, **now()})

    def _read_sums(self, step: int) -> dict[str, float]:
        """Return the sums of the figures since the last point, as means over the processes.

        Raises:
            InputError: one is NaN or infinite.
        """
        totals = self.processes.means(*map(float, self._sums.values()))
        sums = dict(zip(self._sums, totals, strict=True))
        for name, total in sums.items():
            if not isfinite(total):
                raise InputError(
                    f"{self.folder}: {name} is {total} in the {self._counts[name]} steps to step "
                    f"{step + 1}: the training has diverged; start it in another folder with a "
                    f"lower learning rate"
                )
        return sums

    def record(self, step: int, figures: Mapping[str, float]) -> None:
        """Write a point of the curves, in process 0: the figures after ``step``.

        Raises:
            InputError: it cannot be written.
        """
        if self._writer is None:
            return
        rounded = {name: round(value, 5) for name, value in figures.items()}
        curves = self.folder / CURVES
        try:
            with curves.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step + 1, **rounded}) + "\n")
        except OSError as error:
            raise InputError(f"{curves}: cannot be written ({reason(error)})") from error
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step + 1)
        self.watch(step, figures)

    def watch(self, step: int, figures: Mapping[str, float]) -> None:
        """Warn, once each, of what the figures after ``step`` show to go wrong."""
        for warning in self._watch.look(step + 1, figures, self._compared):
            self._bar.clear()
            _LOG.warning("%s, step %s: %s", printable(str(self.folder)), f"{step + 1:,}", warning)
            self._bar.refresh()

    def show(self, step: int, name: str, picture: np.ndarray) -> None:
        """Add a picture, uint8 (H, W, 3), to TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(name, picture, step + 1, dataformats="HWC")

    def show_file(self, step: int, name: str, path: Path) -> None:
        """Add the picture in a file of our own to TensorBoard."""
        with Image.open(path) as picture:
            self.show(step, name, np.asarray(picture))

    def due(self, step: int, every: int) -> bool:
        """Return whether something done every so many steps, and after the last, is due now."""
        return (step + 1) % every == 0 or step + 1 == self.steps

    def saving(self, step: int) -> bool:
        """Return whether a checkpoint is due after ``step``, also because one was interrupted.

        All processes get the same answer, so call it once in a step.
        """
        self._stopping = self.processes.any(self._interrupts.waiting)
        return self.due(step, self.save_every) or self._stopping

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after ``step`` as the checkpoint, in process 0.

        Raises:
            InputError: it cannot be written.
        """
        not_logged = (self._read_sums(step), self._counts)
        self._saved_step = step
        if self.processes.rank > 0:
            return
        path = self.folder / CHECKPOINT
        about = {"step": step + 1, "settings": self.settings, "not_logged": not_logged}
        with whole_file(path, of_process=False) as unfinished:  # only the lock's owner writes it
            try:
                torch.save(seal({**about, **state}), unfinished)
            except RuntimeError as error:  # torch.save raises it when the disk is full
                raise InputError(f"{path}: cannot be written; is the disk full?") from error

    def _resume(self) -> None:
        """Resume from the checkpoint, if there is one."""
        self.checkpoint = self._load_checkpoint()
        if self.checkpoint is not None:
            self.first_step = self.checkpoint["step"]
            self._sums, self._counts = self.checkpoint["not_logged"]

    def _load_checkpoint(self) -> dict[str, Any] | None:
        """Return the checkpoint, if there is one, and take the ``Unsaid`` settings from it."""
        there = os.path.lexists(self.folder / CHECKPOINT)
        checkpoint = load_checkpoint(self.folder) if there else None
        made_with = checkpoint["settings"] if checkpoint else {}
        for name, value in self.settings.items():
            if isinstance(value, Unsaid):
                self.settings[name] = made_with.get(name, value.default)
                if name in made_with and not value.allows(made_with[name]):
                    raise InputError(
                        f"{self.folder / CHECKPOINT}: its {name} is {made_with[name]!r:.80}, which "
                        f"no run has; {ADVICE}"
                    )
        if checkpoint is None:
            return None
        older, newer = made_with.get("version", 1), self.settings.get("version", 1)
        if older != newer:
            raise InputError(
                f"{self.folder / CHECKPOINT}: is of version {older!r:.20} of the training, this is "
                f"version {newer}, whose numbers differ; finish that run with the release that "
                f"began it, or start again in another folder"
            )
        for name in {**made_with, **self.settings}:
            if made_with.get(name) != self.settings.get(name) and name in self._changeable:
                before, now = (
                    settings.get(name, "its default") for settings in (made_with, self.settings)
                )
                step = checkpoint["step"]
                self._changes.append({"step": step, "name": name, "from": before, "to": now})
            elif made_with.get(name) != self.settings.get(name):
                before, now = (
                    f"{settings[name]!r:.200}" if name in settings else "its default"
                    for settings in (made_with, self.settings)
                )
                raise InputError(
                    f"{self.folder / CHECKPOINT}: was made with {name:.80} {before}, now it is "
                    f"{now}; resume with the same, or start again in another folder"
                )
        return checkpoint

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Load what ``save`` wrote, if there is a checkpoint, into modules and Adam optimizers.

        Raises:
            InputError: it lacks one of them, or has another.
        """
        if self.checkpoint is not None:
            for name, part in parts.items():
                restore(part, self.checkpoint.get(name), f"{self.folder / CHECKPOINT}: its {name}")

    def _forget_curves_after(self, step: int) -> None:
        # The steps that a killed run took after its last checkpoint are taken again.
        curves = self.folder / CURVES
        if not os.path.lexists(curves):
            return
        with open_file(curves) as file:
            try:
                rows = iter(partial(file.readline, _LONGEST_POINT), b"")
                rows = takewhile(lambda _: file.tell() <= _LARGEST_CURVES, rows)
                kept = [row for row in rows if row.endswith(b"\n") and _is_point(row, step)]
            except OSError as error:
                raise InputError(f"{curves}: cannot be read ({reason(error)})") from error
        with whole_file(curves) as unfinished:
            unfinished.write_bytes(b"".join(kept))


def _is_point(row: bytes, last: int) -> bool:
    """Return whether a line of the curves is a valid point of a step up to ``last``."""
    try:
        point = parse_json(row)
    except ValueError:  # also if it is not UTF-8
        return False
    return isinstance(point, dict) and type(point.get("step")) is int and point["step"] <= last


def _close(file: "weakref.ref[io.FileIO]") -> None:
    opened = file()
    if opened is not None:
        opened.close()


def open_run(
    folder: Path,
    options: StageSettings,
    settings: CommonSettings,
    needs: dict[str, Any],
    execution: Execution,
) -> Run:
    """Return the run of a stage. It starts or resumes when it is entered.

    Args:
        folder: of the stage.
        options: the stage's settings.
        settings: those of all stages.
        needs: everything that its result depends on.
        execution: whether to show a progress bar, and the processes that train together.
    """
    return Run(
        folder,
        options.steps,
        needs,
        log_every=settings.log_every,
        save_every=settings.save_every,
        quiet=execution.quiet,
        processes=execution.processes,
        changeable={
            name
            for stage, _, name in (c.partition(".") for c in execution.changes)
            if stage == folder.name
        },
    )


def dependencies(
    config: SystemConfig,
    settings: CommonSettings,
    options: StageSettings,
    data: str,
    device: torch.device,
    **networks: Mapping[str, Tensor] | None,
) -> dict[str, Any]:
    """Return everything that a stage's result depends on, except its number of steps.

    Args:
        config: the sizes of the networks. A stage depends on those of its own networks alone, so
            models that differ in others can share what it has trained.
        settings: those of all stages.
        options: those of this stage.
        data: a digest of the training examples.
        device: where it is trained. It decides the precision if that is "auto" and there is no
            checkpoint.
        **networks: weights that were trained before, by name, or None.
    """
    sizes = changed_fields(config)
    if (names := _SIZES.get(type(options))) is not None:
        sizes = {name: value for name, value in sizes.items() if name in names}
    values = sizes | changed_fields(options)
    values.pop("steps", None)  # a run may be made longer
    values |= {
        "version": VERSION,
        "seed": settings.seed,
        "augment": settings.augment,
        "precision": settings.precision,
        "data": data,
    }
    if settings.precision == "auto":
        values["precision"] = Unsaid(fastest_precision(device), COMPUTED)
    if settings.sync_batch_norm:
        values["sync_batch_norm"] = True
    for name, weights in networks.items():
        values[f"weights of {name}"] = None if weights is None else fingerprint(weights)
    return values


def started_from(weights: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """Return what a stage's result depends on if it started from trained weights."""
    return {} if weights is None else {"weights that it started from": fingerprint(weights)}
