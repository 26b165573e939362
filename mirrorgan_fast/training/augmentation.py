"""DiffAugment (Zhao et al., 2020): what discriminators see is augmented, real or generated."""

from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.ops.wide import wide
from mirrorgan_fast.processes import Processes

_SHIFT = 1 / 8  # of the image's side, at most, to each side
_HOLE = 1 / 3  # the side of the gray square, of the image's side


class Augmentation(NamedTuple):
    """A shift and a gray square for each image: what captions do not speak of.

    Colors stay as they are, and nothing is mirrored. Gradients flow through to the images.
    """

    shifts: Tensor
    """(N, 2), down and to the right, from 0 to 1: from one end to the other."""
    holes: Tensor
    """(N, 2), where the middle of the square is, in shares of the image's side."""

    @classmethod
    def drawn(cls, rows: int, processes: Processes, device: torch.device, alike: int = 1) -> Self:
        """Draw augmentations.

        Args:
            rows: of this process.
            processes: that share the batch.
            device: of the images.
            alike: how many images one after the other have the same; a divisor of ``rows``.
        """
        numbers = processes.drawn(torch.rand, rows // alike, 4, device=device)
        shifts, holes = numbers.repeat_interleave(alike, dim=0).split(2, dim=1)
        return cls(shifts, holes)

    def __call__(self, images: Tensor) -> Tensor:
        """Augment images (N, 3, S, S). What a shift leaves open is filled by reflection."""
        size = images.shape[2]
        most = round(size * _SHIFT)
        steps = torch.arange(size, device=images.device)
        shifts = (self.shifts * (2 * most + 1)).long().clamp(max=2 * most) - most  # (N, 2)
        # at whole pixels, so the nearest pixel is the one that is meant
        places = (steps + shifts[:, :, None]) * (2 / (size - 1)) - 1  # (N, 2, S)
        rows, columns = places[:, 0, :, None], places[:, 1, None, :]
        grid = torch.stack(torch.broadcast_tensors(columns, rows), dim=3)
        x = wide(images)
        moved = functional.grid_sample(
            x, grid.to(x.dtype), mode="nearest", padding_mode="reflection", align_corners=True
        )

        away = (steps - (self.holes * size)[:, :, None]).abs() < size * _HOLE / 2  # (N, 2, S)
        hole = away[:, None, 0, :, None] & away[:, None, 1, None, :]
        return moved.masked_fill(hole, 0).to(images.dtype)
