"""Memory for the maps between ops, kept from call to call."""

import torch
from torch import Tensor


class KeptMemory:
    """Memory of one owner; not to be used by two threads at once."""

    def __init__(self) -> None:
        self._of_name: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}

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
        last = self._last.get(name)
        shape = (batch, channels, height * scale, width * scale)
        if last is not None and last.shape == shape and last.device == like.device:
            return last
        # PyTorch keeps a GPU's, and a CUDA graph its own; what is traced has no memory.
        if like.device.type != "cpu" or torch.compiler.is_compiling():
            return torch.empty(
                shape,
                dtype=like.dtype,
                device=like.device,
                memory_format=torch.channels_last,
            )
        size = channels * height * width * scale * scale
        kept = self._of_name.get(name)
        if kept is None or kept.numel() < most * size:
            kept = torch.empty(most * size, dtype=like.dtype)
            self._of_name[name] = kept
        rows = kept[: batch * size].view(batch, height * scale, width * scale, channels)
        last = self._last[name] = rows.permute(0, 3, 1, 2)
        return last

    def bytes(self) -> int:
        """Return how much is kept."""
        return sum(kept.nbytes for kept in self._of_name.values())
