"""The processes that ``torchrun`` starts for one run, to share its work."""

import os
from datetime import timedelta

import torch
from torch import distributed

from mirrorgan_fast.errors import InputError

_MAX_PROCESSES = 1_000_000
_TIMEOUT = timedelta(days=365)  # a process may wait until another has finished its whole share


class Processes:
    """This process and the other processes of the run; without ``torchrun`` there are no others.

    Raises:
        InputError: the environment variables are invalid, or the other processes cannot be reached.
    """

    def __init__(self) -> None:
        self.count = _from_environment("WORLD_SIZE", 1, 1, _MAX_PROCESSES)
        self.rank = _from_environment("RANK", 0, 0, self.count - 1)
        self._group: distributed.ProcessGroup | None = None  # if the caller has its own group
        if self.count == 1:
            return
        try:
            if distributed.is_initialized():
                self._group = distributed.new_group(backend="gloo", timeout=_TIMEOUT)
            else:
                distributed.init_process_group("gloo", timeout=_TIMEOUT)
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"WORLD_SIZE is {self.count}, but the other processes cannot be joined ({error}); "
                "start them with torchrun, or unset WORLD_SIZE"
            ) from error

    def total(self, *numbers: int) -> list[int]:
        """Return each number's sum over all processes; this waits for all of them."""
        sums = torch.tensor(numbers)
        if self.count > 1:
            distributed.all_reduce(sums, group=self._group)
        return sums.tolist()

    def close(self) -> None:
        """Leave the process group."""
        if self.count > 1:
            distributed.destroy_process_group(self._group)


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
