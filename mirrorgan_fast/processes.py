"""The processes that ``torchrun`` starts for one run, here only to divide it and to wait."""

import os
from datetime import timedelta

import torch
from torch import distributed

from mirrorgan_fast.errors import InputError

_MOST = 1_000_000  # processes
_TIMEOUT = timedelta(days=365)  # nobody waits for less than the whole of another's share


class Processes:
    """This process and those beside it; without ``torchrun`` it is alone.

    Raises:
        InputError: the environment names processes that cannot be, or that cannot be joined.
    """

    def __init__(self) -> None:
        self.count = _from_environment("WORLD_SIZE", 1, 1, _MOST)
        self.rank = _from_environment("RANK", 0, 0, self.count - 1)
        self._group: distributed.ProcessGroup | None = None  # within one of the caller's own
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
                "start them by torchrun, or unset it"
            ) from error

    def total(self, *numbers: int) -> list[int]:
        """Return each number's sum over all processes; it waits for all."""
        sums = torch.tensor(numbers)
        if self.count > 1:
            distributed.all_reduce(sums, group=self._group)
        return sums.tolist()

    def close(self) -> None:
        """Leave the others."""
        if self.count > 1:
            distributed.destroy_process_group(self._group)


def _from_environment(name: str, default: int, least: int, most: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or len(text) > 9 or not least <= int(text) <= most:
        raise InputError(
            f"{name} is {text!r:.40} in the environment, expected {least} to {most:,}: start the "
            f"processes by torchrun, or unset it"
        )
    return int(text)
