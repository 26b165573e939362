"""Memory for the maps between ops, kept from call to call."""

import threading
from typing import Self

import torch
from torch import Tensor

from mirrorgan_fast.ops.checks import at_hand


def new_map(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return an empty channels_last map (N, C, H, W) of the data type and device of ``like``.

    As a view of rows: ``torch.empty`` with a memory format is what Inductor fails at where an op
    writes a map of a single pixel.
    """
    batch, channels, height, width = shape
    rows = torch.empty((batch, height, width, channels), dtype=like.dtype, device=like.device)
    return rows.permute(0, 3, 1, 2)


class KeptMemory(threading.local):
    """Memory of one owner, in each thread another; a copy, in another process too, begins anew."""

    def __init__(self) -> None:
        self._of_name: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        # or torch.multiprocessing would have all processes write to the same
        return type(self), ()

    def map(self, name: str, most: int, like: Tensor, channels: int, scale: int) -> Tensor:
        """Return a channels_last map (N, channels, scale H, scale W) that lies there.

        Args:
            name: the same memory for the same name; what was there is lost.
            most: images that there must be room for.
            like: a map (N, *, H, W) of the same data type and device.
            channels: of the map.
            scale: how many times larger than ``like`` it is.
        """
        batch, _, height, width = like.shape
        shape = (batch, channels, height * scale, width * scale)
        # PyTorch keeps a GPU's, and a CUDA graph its own; what is traced has no memory.
        if not at_hand(like):
            return new_map(shape, like)
        last = self._last.get(name)
        if last is not None and last.shape == shape:
            return last
        size = channels * height * width * scale * scale
        kept = self._of_name.get(name)
        if kept is None or kept.numel() < most * size:
            kept = torch.empty(most * size, dtype=like.dtype, device=like.device)
            self._of_name[name] = kept
        rows = kept[: batch * size].view(batch, height * scale, width * scale, channels)
        last = self._last[name] = rows.permute(0, 3, 1, 2)
        return last

    def bytes(self) -> int:
        """Return how much is kept for this thread."""
        return sum(kept.nbytes for kept in self._of_name.values())
