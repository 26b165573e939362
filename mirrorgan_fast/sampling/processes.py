"""The processes that ``torchrun`` starts for one run, here only to divide it and to wait."""

import os
from datetime import timedelta

import torch
from torch import distributed

from mirrorgan_fast.errors import InputError

_TIMEOUT = timedelta(days=365)  # nobody waits for less than the whole of another's share


class Processes:
    """This process and those beside it; without ``torchrun`` it is alone."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
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
