"""Large batches in parts."""

from collections.abc import Iterable, Sequence

from torch import Tensor


def in_parts(tensors: Sequence[Tensor], most: int) -> Iterable[Sequence[Tensor]]:
    """Cut tensors with a row for each image into parts of at most ``most`` rows; none if empty."""
    batch = len(tensors[0])
    if batch <= most:  # cutting takes longer than one would think
        return [tensors] if batch else []
    return zip(*(tensor.split(most) for tensor in tensors), strict=True)
