"""Splits large batches."""

from collections.abc import Iterable, Sequence

from torch import Tensor


def in_parts(tensors: Sequence[Tensor], max_rows: int) -> Iterable[Sequence[Tensor]]:
    """Split tensors that have one row per image into parts of at most ``max_rows`` rows.

    An empty batch has no parts.
    """
    batch = len(tensors[0])
    if batch <= max_rows:  # the general case below would be slow for such a small result
        return [tensors] if batch else []
    return zip(*(tensor.split(max_rows) for tensor in tensors), strict=True)
