"""What every training loop here needs: batches that resume, checkpoints, curves and progress."""

import hashlib
import json
import os
import signal
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from math import inf, isfinite
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mirrorgan_fast.data.captioned_images import TrainingExamples
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import lock, whole_file

Batch = dict[str, Tensor]

CHECKPOINT = "checkpoint.pt"
CURVES = "curves.jsonl"


class Run:
    """The folder of one training run, and what is written to it while it goes.

    ``checkpoint.pt`` holds the whole state; ``curves.jsonl`` and TensorBoard events the losses.
    Used as a context: inside it Ctrl-C takes effect at the end of a step, after its checkpoint.

    Args:
        folder: made if need be.
        steps: where the run ends.
        settings: what the result depends on; a checkpoint made with others is refused.
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
        self.settings = settings
        self.log_every = log_every
        self.save_every = save_every
        self.checkpoint = self._load_checkpoint()
        self.first_step: int = self.checkpoint["step"] if self.checkpoint else 0
        self._interrupted = False
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
            self._lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error.strerror})") from error
        lock(self._lock, f"{self.folder}: another process trains there; wait for it, or stop it")
        # A DataLoader's forked workers, which outlive a killed run by seconds, must not hold it.
        os.register_at_fork(after_in_child=partial(_close, weakref.ref(self._lock)))
        self._forget_curves_after(self.first_step)
        self._writer = SummaryWriter(str(self.folder), purge_step=self.first_step + 1)
        self._handler = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._handler)
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
            InputError: there are fewer examples than a batch holds.
            KeyboardInterrupt: Ctrl-C was pressed, and the last step is in the checkpoint.
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
            for batch in DataLoader(examples, batch_sampler=batches, num_workers=workers):
                torch.manual_seed(_generator(seed, step).initial_seed())
                yield step, epoch, batch
                if self._interrupted and self._saved_step == step:
                    raise KeyboardInterrupt
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
            raise InputError(f"{curves}: cannot be written ({error.strerror})") from error
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step + 1)

    def due(self, step: int, every: int) -> bool:
        """Return whether what is done ``every`` so many steps, and at the end, is due now."""
        return (step + 1) % every == 0 or step + 1 == self.steps

    def saving(self, step: int) -> bool:
        """Return whether a checkpoint is due after ``step``."""
        return self.due(step, self.save_every) or self._interrupted

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
                torch.save({**about, **state}, unfinished)
            except RuntimeError as error:  # what its writer makes of a full disk
                raise InputError(f"{path}: cannot be written; is the disk full?") from error
        self._saved_step = step

    def _interrupt(self, signal_number: int, frame: FrameType | None) -> None:
        if self._interrupted:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self._interrupted = True

    def _load_checkpoint(self) -> dict[str, Any] | None:
        if not (self.folder / CHECKPOINT).exists():
            return None
        checkpoint = load_checkpoint(self.folder)
        made_with = checkpoint["settings"]
        for name in {**made_with, **self.settings}:
            if made_with.get(name) != self.settings.get(name):
                raise InputError(
                    f"{self.folder / CHECKPOINT}: was made with {name} {made_with.get(name)!r}, "
                    f"now it is {self.settings.get(name)!r}; resume with the same, start again in "
                    f"another folder, or remove it"
                )
        return checkpoint

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Load what ``save`` wrote, if there is a checkpoint, into modules and optimizers.

        Raises:
            InputError: it lacks one of them, or has another.
        """
        if self.checkpoint is None:
            return
        for name, part in parts.items():
            try:
                part.load_state_dict(self.checkpoint[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise InputError(
                    f"{self.folder / CHECKPOINT}: has no fitting {name}; remove it to start again"
                ) from error

    def _forget_curves_after(self, step: int) -> None:
        # What a killed run wrote after its last checkpoint is done again.
        curves = self.folder / CURVES
        if curves.exists():
            rows = curves.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [row for row in rows if row.endswith("\n") and _step_of(row) <= step]
            with whole_file(curves) as unfinished:
                unfinished.write_text("".join(kept), encoding="utf-8")


def check_batch(images: int, batch_size: int, setting: str = "batch_size") -> None:
    """Raise InputError if a batch, of the size that a setting says, takes more images than are."""
    if batch_size > images:
        raise InputError(
            f"{images} training images are fewer than a batch of {batch_size}; use more images or "
            f"smaller batches ({setting}={images})"
        )


def find_checkpoint(folder: Path) -> Path:
    """Return the path of a run's checkpoint.

    Raises:
        InputError: there is none.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise InputError(f"{path}: there is no such checkpoint; train that part first")
    return path


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read the checkpoint of a run.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = find_checkpoint(folder)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["settings"]
    except Exception as error:  # the reader raises a dozen different ones on a damaged file
        raise InputError(
            f"{path}: damaged checkpoint ({type(error).__name__}); remove it to start again"
        ) from error
    return checkpoint


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return what tells weights from others."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().cpu().contiguous()
        digest.update(name.encode() + values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _step_of(row: str) -> float:
    try:
        return float(json.loads(row)["step"])
    except (ValueError, TypeError, KeyError):  # no point of a curve
        return inf


def _close(file: weakref.ref[IO[Any]]) -> None:
    opened = file()
    if opened is not None:
        opened.close()


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + number)
