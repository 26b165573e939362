"""Memory for the feature maps between ops, kept from call to call."""

import threading
from typing import Self

import torch
from torch import Tensor

from mirrorgan_fast.ops.checks import at_hand


def new_map(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return an empty channels_last map (N, C, H, W) with data type and device of ``like``.

    It is a view of (N, H, W, C): Inductor fails on ``torch.empty`` with a memory format where an op
    writes a map of a single pixel.
    """
    batch, channels, height, width = shape
    rows = torch.empty((batch, height, width, channels), dtype=like.dtype, device=like.device)
    return rows.permute(0, 3, 1, 2)


class KeptMemory(threading.local):
    """Memory of one owner. Each thread has its own, and a copy or a pickle of it starts empty."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}
        self._last_map: dict[str, Tensor] = {}

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        # Otherwise torch.multiprocessing would let all processes write to the same memory.
        return type(self), ()

    def map(self, name: str, max_batch: int, like: Tensor, channels: int, scale: int) -> Tensor:
        """Return a channels_last map (N, channels, scale H, scale W) in the kept memory.

        Args:
            name: The same name gives the same memory; its former content is lost.
            max_batch: Images to reserve memory for.
            like: A map (N, *, H, W) whose data type and device the result has.
            channels: Channels of the result.
            scale: How many times larger than ``like`` the result is.
        """
        batch, _, height, width = like.shape
        shape = (batch, channels, height * scale, width * scale)
        # On a GPU, PyTorch's allocator or a CUDA graph keeps the memory. A traced tensor has none.
        if not at_hand(like):
            return new_map(shape, like)
        last = self._last_map.get(name)
        if last is not None and last.shape == shape:
            return last
        size = channels * height * width * scale * scale
        memory = self._memory.get(name)
        if memory is None or memory.numel() < max_batch * size:
            memory = torch.empty(max_batch * size, dtype=like.dtype, device=like.device)
            self._memory[name] = memory
        rows = memory[: batch * size].view(batch, height * scale, width * scale, channels)
        last = self._last_map[name] = rows.permute(0, 3, 1, 2)
        return last

    def bytes(self) -> int:
        """Return how many bytes are kept for this thread."""
        return sum(memory.nbytes for memory in self._memory.values())
