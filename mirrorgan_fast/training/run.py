"""What every training loop here needs: batches that resume, checkpoints, curves and progress."""

import io
import json
import os
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import takewhile
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import open_file, open_lock, parse_json, reason, whole_file
from mirrorgan_fast.interrupts import Interrupts
from mirrorgan_fast.training.batches import Batch, check_batch, load_batches
from mirrorgan_fast.training.checkpoint import CHECKPOINT, load_checkpoint, restore, seal

CURVES = "curves.jsonl"
_LONGEST_POINT = 2**16  # bytes
_LARGEST_CURVES = 2**28  # bytes; 710,000 steps of a GAN make 4 MB


class Unsaid(NamedTuple):
    """A setting that nobody has said: it is that of the checkpoint, or else the default."""

    default: Any


class Run:
    """The folder of one training run, and what is written to it while it goes.

    ``checkpoint.pt`` holds the whole state; ``curves.jsonl`` and TensorBoard events the losses.
    Used as a context: inside it Ctrl-C and SIGTERM take effect at the end of a step, after its
    checkpoint; a second one comes at once.

    Args:
        folder: made if need be.
        steps: where the run ends.
        settings: what the result depends on; a checkpoint made with others is refused. Those that
            are ``Unsaid`` are taken from the checkpoint.
        log_every: steps between two points of the curves, each the mean of the steps since.
        save_every: steps between two checkpoints.
        quiet: no progress bar.

    Raises:
        InputError: the folder's checkpoint is damaged or was made with other settings, or (when it
            is entered) another process trains there.
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
    ) -> None:
        self.folder = folder
        self.steps = steps
        self.settings = dict(settings)
        self.log_every = log_every
        self.save_every = save_every
        self.checkpoint = self._load_checkpoint()
        self.first_step: int = self.checkpoint["step"] if self.checkpoint else 0
        self._interrupts = Interrupts(insisting=True)
        self._saved_step = -1
        not_logged = (self.checkpoint or {}).get("not_logged", ({}, 0))
        self._sums: dict[str, float] = not_logged[0]
        self._summed_steps: int = not_logged[1]
        self._bar = tqdm(
            total=steps, initial=self.first_step, desc=folder.name, unit="step", disable=quiet
        )

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({reason(error)})") from error
        refusal = f"{self.folder}: another process trains there; wait for it, or stop it"
        self._lock = open_lock(self.folder / "lock", refusal)
        # A DataLoader's forked workers, which outlive a killed run by seconds, must not hold it.
        os.register_at_fork(after_in_child=partial(_close, weakref.ref(self._lock)))
        self._forget_curves_after(self.first_step)
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
        self._writer.close()
        self._bar.close()
        self._lock.close()

    def batches(
        self, examples: TrainingExamples, batch_size: int, seed: int, workers: int
    ) -> Iterator[tuple[int, int, Batch]]:
        """Yield (step, epoch, batch) from the first step that is missing to the last.

        The batch of a step, and torch's random numbers in it, depend on (seed, step) alone, so that
        a resumed run goes on as if it had never stopped. Each epoch is a random order of all
        examples; what is left over at its end is dropped.

        Raises:
            InputError: there are fewer examples than a batch holds, or as ``load_batches``.
            KeyboardInterrupt: Ctrl-C was pressed or SIGTERM came, and the last step is in the
                checkpoint.
        """
        check_batch(len(examples), batch_size)
        per_epoch = len(examples) // batch_size
        step = self.first_step
        while step < self.steps:
            epoch, done = divmod(step, per_epoch)
            examples.set_epoch(epoch)
            order = torch.randperm(len(examples), generator=_generator(seed, epoch)).tolist()
            batches = [
                order[i * batch_size : (i + 1) * batch_size]
                for i in range(done, min(per_epoch, done + self.steps - step))
            ]
            for batch in load_batches(examples, workers, batch_sampler=batches):
                torch.manual_seed(_generator(seed, step).initial_seed())
                yield step, epoch, batch
                if self._saved_step == step:
                    self._interrupts.release()
                    self._interrupts.hold()
                step += 1
                self._bar.update()

    def log(self, step: int, figures: dict[str, float | Tensor]) -> None:
        """Add a step's figures to the curves.

        Raises:
            InputError: one of them is no number any more; the last checkpoint stays.
        """
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
            if not isfinite(self._sums[name]):
                raise InputError(
                    f"{self.folder}: {name} is {float(value)} at step {step + 1}: the training has "
                    f"diverged; start it in another folder with a lower learning rate"
                )
        self._summed_steps += 1
        if self.due(step, self.log_every):
            means = {name: total / self._summed_steps for name, total in self._sums.items()}
            self._sums, self._summed_steps = {}, 0
            self._bar.set_postfix({name: f"{mean:.3f}" for name, mean in means.items()})
            self.record(step, means)

    def record(self, step: int, figures: dict[str, float]) -> None:
        """Write a point of the curves: figures that hold after ``step``.

        Raises:
            InputError: it cannot be written.
        """
        rounded = {name: round(value, 5) for name, value in figures.items()}
        curves = self.folder / CURVES
        try:
            with curves.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step + 1, **rounded}) + "\n")
        except OSError as error:
            raise InputError(f"{curves}: cannot be written ({reason(error)})") from error
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step + 1)

    def due(self, step: int, every: int) -> bool:
        """Return whether what is done ``every`` so many steps, and at the end, is due now."""
        return (step + 1) % every == 0 or step + 1 == self.steps

    def saving(self, step: int) -> bool:
        """Return whether a checkpoint is due after ``step``."""
        return self.due(step, self.save_every) or self._interrupts.waiting

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after ``step`` as the checkpoint.

        Raises:
            InputError: it cannot be written.
        """
        path = self.folder / CHECKPOINT
        about = {
            "step": step + 1,
            "settings": self.settings,
            "not_logged": (self._sums, self._summed_steps),
        }
        with whole_file(path, of_process=False) as unfinished:  # of the one who has the lock
            try:
                torch.save(seal({**about, **state}), unfinished)
            except RuntimeError as error:  # what its writer makes of a full disk
                raise InputError(f"{path}: cannot be written; is the disk full?") from error
        self._saved_step = step

    def _load_checkpoint(self) -> dict[str, Any] | None:
        """Return the checkpoint, if there is one, and take from it what nobody has said."""
        there = os.path.lexists(self.folder / CHECKPOINT)
        checkpoint = load_checkpoint(self.folder) if there else None
        made_with = checkpoint["settings"] if checkpoint else {}
        for name, value in self.settings.items():
            if isinstance(value, Unsaid):
                self.settings[name] = made_with.get(name, value.default)
        if checkpoint is None:
            return None
        for name in {**made_with, **self.settings}:
            if made_with.get(name) != self.settings.get(name):
                raise InputError(
                    f"{self.folder / CHECKPOINT}: was made with {name:.80} "
                    f"{made_with.get(name)!r:.200}, now it is {self.settings.get(name)!r:.200}; "
                    f"resume with the same, or start again in another folder"
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
        # What a killed run wrote after its last checkpoint is done again.
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
    """Return whether a row of the curves is a point of a step up to ``last``."""
    try:
        point = parse_json(row)
    except ValueError:  # not UTF-8, too
        return False
    return isinstance(point, dict) and type(point.get("step")) is int and point["step"] <= last


def _close(file: "weakref.ref[io.FileIO]") -> None:
    opened = file()
    if opened is not None:
        opened.close()


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + number)
