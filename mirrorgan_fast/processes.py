"""The processes that ``torchrun`` starts for one run, to share its work."""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, distributed

from mirrorgan_fast.errors import InputError

_MAX_PROCESSES = 1_000_000
_TIMEOUT = timedelta(days=365)  # a process may wait until another has finished its whole share
_MAX_BUCKET_BYTES = 2**26
Result = TypeVar("Result")


class OtherProcessError(InputError):
    """Another process of the run has ended or failed; that one says why."""


class Processes:
    """This process and the other processes of the run.

    A batch is shared out in equal parts: process ``rank`` of ``count`` has that part of its rows.
    All processes must call the same methods in the same order, because most of them wait for all.

    Args:
        rank: the number of this process, from 0.
        count: the number of processes.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count
        self._group: distributed.ProcessGroup | None = None  # if the caller has its own group

    @classmethod
    def join(cls) -> Self:
        """Join the processes that ``torchrun`` started; without it there are no others.

        Tensors on a GPU are exchanged by NCCL, others by gloo.

        Raises:
            InputError: the environment variables are invalid, or the other processes cannot be
                reached.
        """
        count = _from_environment("WORLD_SIZE", 1, 1, _MAX_PROCESSES)
        processes = cls(_from_environment("RANK", 0, 0, count - 1), count)
        if count == 1:
            return processes
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            if distributed.is_initialized():
                processes._group = distributed.new_group(backend=backend, timeout=_TIMEOUT)
            else:
                distributed.init_process_group(backend, timeout=_TIMEOUT)
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"WORLD_SIZE is {count}, but the other processes cannot be joined ({error}); "
                "start them with torchrun, or unset WORLD_SIZE"
            ) from error
        return processes

    def close(self) -> None:
        """Leave the process group."""
        if self.count > 1:
            distributed.destroy_process_group(self._group)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # networks that know it are copied; the processes stay the same

    # --- numbers and decisions --------------------------------------------------------------------

    def total(self, *numbers: int) -> list[int]:
        """Return each number's sum over all processes."""
        sums = torch.tensor(numbers)
        self.add_up([sums])
        return sums.tolist()

    def means(self, *numbers: float) -> list[float]:
        """Return each number's mean over all processes."""
        if self.count == 1 or not numbers:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64)
        self.add_up([sums])
        return (sums / self.count).tolist()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in any process."""
        return flag if self.count == 1 else self.total(int(flag)) != [0]

    def once(self, function: Callable[[], Result]) -> Result | None:
        """Call a function in process 0 while the others wait.

        Returns:
            its result in process 0, None in the others.

        Raises:
            OtherProcessError: it raised an exception in process 0, where that exception is raised.
        """
        result = None
        failed = True
        try:
            if self.rank == 0:
                result = function()
            failed = False
        finally:
            # also after Ctrl-C, so that the others do not wait for ever
            if self.any(failed) and self.rank > 0:
                raise OtherProcessError(f"process {self.rank}: stops because process 0 has stopped")
        return result

    # --- tensors ----------------------------------------------------------------------------------

    @torch.no_grad()
    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in a few large messages.

        Raises:
            OtherProcessError: another process has ended.
        """
        if self.count == 1:
            return
        bucket: list[Tensor] = []
        size = 0
        for i, tensor in enumerate(tensors):
            bucket.append(tensor)
            size += tensor.numel() * tensor.element_size()
            following = tensors[i + 1] if i + 1 < len(tensors) else None
            if following is None or size >= _MAX_BUCKET_BYTES or following.dtype != tensor.dtype:
                # autocast to bfloat16 would refuse to join tensors of float16
                with torch.autocast(tensor.device.type, enabled=False):
                    whole = torch.cat([part.flatten() for part in bucket])
                _all_reduce(whole, self._group)
                sizes = [part.numel() for part in bucket]
                parts = [
                    part.view(t.shape) for part, t in zip(whole.split(sizes), bucket, strict=True)
                ]
                torch._foreach_copy_(bucket, parts)
                bucket, size = [], 0

    @torch.no_grad()
    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by that of process 0."""
        if self.rank > 0:
            for tensor in tensors:
                tensor.zero_()
        self.add_up(tensors)

    def summed(self, x: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes. Gradients of any order exist."""
        if self.count == 1:
            return x
        total: Tensor = _sum_over_processes(x)
        return total

    def gathered(self, x: Tensor, dim: int = 0) -> Tensor:
        """Return the rows of all processes, in order. Gradients of any order exist.

        Args:
            x: this process's rows; the other processes have as many.
            dim: the dimension of the rows.
        """
        if self.count == 1:
            return x
        before, after = self.rank, self.count - 1 - self.rank
        parts = [torch.zeros_like(x)] * before + [x] + [torch.zeros_like(x)] * after
        return self.summed(torch.cat(parts, dim))

    def own(self, whole: Tensor, dim: int = 0) -> Tensor:
        """Return this process's rows of a tensor of the whole batch."""
        rows = whole.shape[dim] // self.count
        return whole.narrow(dim, self.rank * rows, rows)

    def drawn(self, draw: Callable[..., Tensor], rows: int, *shape: int, **options: Any) -> Tensor:
        """Return this process's rows of random numbers that are drawn for the whole batch.

        All processes have the same random state, so together they have the numbers that one
        process would draw.

        Args:
            draw: such as ``torch.randn``.
            rows: how many this process has.
            *shape: of a row.
            **options: of ``draw``.
        """
        return self.own(draw(rows * self.count, *shape, **options))


ALONE = Processes()
"""This process without others."""


def _all_reduce(x: Tensor, group: distributed.ProcessGroup | None = None) -> None:
    try:
        distributed.all_reduce(x, group=group)
    except RuntimeError as error:  # a broken connection
        raise OtherProcessError("another process of the run has ended") from error


# The group is the default one: an op cannot have a process group as its argument.
@torch.library.custom_op("mirrorgan::sum_over_processes", mutates_args=())
def _sum_over_processes(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    _all_reduce(total)
    return total


@_sum_over_processes.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _backward(ctx: Any, grad_total: Tensor) -> Tensor:
    # each process's x is in the total of every process
    grad_x: Tensor = _sum_over_processes(grad_total)
    return grad_x


_sum_over_processes.register_autograd(_backward)


def _from_environment(name: str, default: int, minimum: int, maximum: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or len(text) > 9 or not minimum <= int(text) <= maximum:
        raise InputError(
            f"{name} is {text!r:.40} in the environment, expected {minimum} to {maximum:,}; start "
            f"the processes with torchrun, or unset {name}"
        )
    return int(text)
