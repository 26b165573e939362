"""Batches of training examples, read by worker processes."""

import multiprocessing
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import reason
from mirrorgan_fast.interrupts import leave_interrupts_to_parent
from mirrorgan_fast.training.execution import Execution

Batch = dict[str, Tensor]
_PART_SEEDS = 0x9E3779B97F4A7C15  # far apart modulo 2**64 (the golden ratio)


class Examples(Protocol):
    """What batches are made of; ``torch.utils.data.Dataset`` says how one is read."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, index: int) -> Any:
        """Return an example, a dictionary of tensors and numbers."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, on which random choices depend."""
        ...

    def described(self) -> str:
        """Return what they are, for the line at the start of a training."""
        ...


class Batches:
    """The batches of a run.

    The batch of a step, and PyTorch's random numbers in it, depend on (seed, step) alone, so that a
    resumed run continues as if it had never stopped. Each epoch goes through all examples in random
    order; the examples that are left over at its end are dropped.

    Several processes share each batch out in equal parts. If a batch is accumulated, each process
    gets its share in several parts, one after the other.

    Args:
        examples: what to train on.
        batch_size: of each batch, in all processes and parts together.
        seed: of the order and of the random numbers.
        execution: how many processes read images, and the device where the batches go. For a GPU
            they are in pinned memory, so that copying them does not block the CPU.
        accumulate: the number of parts of a batch.
        least: the images that a part needs at least.

    Raises:
        InputError: there are fewer than two examples, or fewer than a batch has, or a batch cannot
            be shared out in equal parts.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        seed: int,
        execution: Execution,
        accumulate: int = 1,
        least: int = 2,
    ) -> None:
        self.processes, self.accumulate = execution.processes, accumulate
        check_batch(len(examples), batch_size, self.processes.count, accumulate, least=least)
        self.examples, self.batch_size = examples, batch_size
        self.seed, self.workers = seed, execution.workers
        self.pinned = execution.device.type == "cuda"

    def between(self, first: int, last: int) -> Iterator[tuple[int, int, Batch]]:
        """Yield (step, epoch, part of the batch) of the steps from ``first`` to before ``last``.

        Raises:
            InputError: an image cannot be read, or as ``load_batches``.
        """
        size, count = self.batch_size, len(self.examples)
        per_epoch = count // size
        step = first
        while step < last:
            epoch, done = divmod(step, per_epoch)
            self.examples.set_epoch(epoch)
            order = torch.randperm(count, generator=self._generator(epoch)).tolist()
            steps = min(per_epoch - done, last - step)
            rows = torch.tensor(order[done * size : (done + steps) * size]).view(steps, size)
            shares = self.processes.own(rows, dim=1).tolist()
            options = {"batch_sampler": shares, "pin_memory": self.pinned}
            for batch in load_batches(self.examples, self.workers, **options):
                for number, part in enumerate(self._parts(batch)):
                    seed = self._generator(step).initial_seed() + number * _PART_SEEDS
                    torch.manual_seed(seed % 2**64)
                    yield step, epoch, part
                step += 1

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """Yield the parts of a process's share of a batch, each with the lengths of all captions.

        A loss that is a mean over words divides by the words of all parts.
        """
        parts = [tensor.chunk(self.accumulate) for tensor in batch.values()]
        whole = {"lengths": batch["length"]} if "length" in batch else {}
        for rows in zip(*parts, strict=True):
            yield {**dict(zip(batch, rows, strict=True)), **whole}

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)


def load_batches(examples: Examples, workers: int, **options: Any) -> Iterator[Batch]:
    """Yield the batches of a DataLoader.

    Args:
        examples: what to load.
        workers: processes that read them. They end with this process.
        **options: of the DataLoader.

    Raises:
        InputError: there is too little shared memory for the processes to send what they read.
    """
    try:
        # The DataLoader will create the same queues. If it failed, Python would print an error too.
        trial: list[Any] = [multiprocessing.Queue() for _ in range(workers + 2 if workers else 0)]
        for queue in trial:
            queue.close()
    except OSError as error:
        raise _no_shared_memory(workers, reason(error)) from error
    loader: Iterable[Batch] = DataLoader(
        examples,  # type: ignore[arg-type]  # a Dataset
        num_workers=workers,
        worker_init_fn=leave_interrupts_to_parent,
        **options,
    )
    try:
        yield from loader
    except RuntimeError as error:
        # PyTorch's message mentions shared memory, also from a worker that got a bus error.
        message = str(error).strip()
        if not workers or ("shared memory" not in message and "shm" not in message):
            raise
        raise _no_shared_memory(workers, message.splitlines()[-1]) from error


def _no_shared_memory(workers: int, message: str) -> InputError:
    return InputError(
        f"{workers} worker processes cannot send pictures through shared memory ({message}); make "
        f"/dev/shm larger and writable (docker run --shm-size=1g), or read in this process: "
        f"--workers 0"
    )


def check_batch(
    images: int,
    batch_size: int,
    processes: int = 1,
    accumulate: int = 1,
    setting: str = "batch_size",
    least: int = 2,
) -> None:
    """Check that there are batches, and that each can be shared out.

    Args:
        images: how many there are.
        batch_size: how many a batch has.
        processes: how many share a batch.
        accumulate: in how many parts each of them computes it.
        setting: the name of the batch size in error messages.
        least: the images that a part needs at least.

    Raises:
        InputError: there are fewer images than a batch has, or its parts are not equal, or have
            fewer than ``least`` images.
    """
    if images < least:
        raise InputError(
            f"{images} training image: every image is compared with others; use 2 or more"
        )
    if batch_size > images:
        raise InputError(
            f"{images} training images are fewer than a batch of {batch_size}; use more images or "
            f"smaller batches ({setting}={images})"
        )
    shares = processes * accumulate
    name = setting.removeprefix("--set ")
    if batch_size % shares or batch_size < least * shares:
        raise InputError(
            f"{name} is {batch_size}, expected a multiple of {shares} from {least * shares} up: "
            f"{processes} processes share a batch, each in {accumulate} parts of {least} images or "
            f"more"
        )
