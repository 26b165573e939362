"""Launch settings of the Triton kernels: block sizes, warps and stages for each shape.

They were chosen so that no kernel spills registers on an A100, H100 or B200, and at least two
blocks fit on a multiprocessor (one block for the backward of the attention). The resources are
recorded in `benchmarks/results/triton-resources.json`. No setting has been timed on a GPU yet;
`python -m benchmarks.gpu_settings` searches for faster ones.
"""

from typing import NamedTuple

import torch

FEW = 32
"""Up to this many words and channels, one launch computes all input gradients of the attention."""


class Setting(NamedTuple):
    """The launch setting of a kernel."""

    rows: int
    """Rows of a block: pixels, words or samples."""
    columns: int
    """Columns of a block: channels of the result."""
    depth: int
    """Channels that one product sums over."""
    warps: int = 4
    stages: int = 3
    turns: int = 1
    """Blocks that a program processes one after the other."""


def power_of_two(n: int, minimum: int = 16) -> int:
    """Return the smallest power of two that is at least ``n`` and at least ``minimum``."""
    return max(minimum, 1 << (n - 1).bit_length())


def convolution(channels: int, columns: int, dtype: torch.dtype) -> Setting:
    """Return the setting of a convolution with this many channels in and out."""
    depth = min(64, power_of_two(channels))
    if columns <= 16:
        return Setting(rows=128, columns=16, depth=depth)
    wide = min(128, power_of_two(columns))
    if columns % wide and columns % (wide // 2) == 0:
        wide //= 2  # so that no column is empty, if smaller blocks divide the columns evenly
    if dtype == torch.float32:  # not on the tensor cores, and with twice the registers
        return Setting(rows=64, columns=min(64, wide), depth=32, stages=2)
    return Setting(rows=128, columns=wide, depth=depth, warps=8 if wide == 128 else 4)


def attention_forward(channels: int, columns: int, words: int) -> Setting:
    """Return the setting of GLAM's attention; ``depth`` is the number of words per step."""
    wide = power_of_two(columns)
    return Setting(128, wide, min(32, power_of_two(words)), warps=8 if wide > 64 else 4, stages=2)


def attention_backward(channels: int, columns: int, words: int) -> Setting:
    """Return the setting of the attention's backward, which has all words in one step."""
    wide = power_of_two(columns)
    if channels > FEW or words > FEW:
        return Setting(32, wide, power_of_two(words, minimum=32), warps=8, stages=1, turns=8)
    return Setting(64, wide, power_of_two(words), warps=8, stages=1, turns=8)


def batch_norm(channels: int) -> Setting:
    """Return the setting of the batch norms."""
    columns = min(64, power_of_two(channels))
    return Setting(rows=32, columns=columns, depth=0, stages=2, turns=16)


def word_similarity(words: int) -> Setting:
    """Return the setting of DAMSM's similarity; ``columns`` is the number of regions per step.

    ``turns`` is the number of images that a program of the backward processes. At batch size 48
    there are 288 programs, two per multiprocessor.
    """
    return Setting(rows=power_of_two(words), columns=32, depth=0, warps=8, stages=1, turns=8)


def word_similarity_sum() -> Setting:
    """Return the setting of the sum at the end of the similarity's backward."""
    return Setting(rows=1, columns=512, depth=0, stages=1)


def lstm() -> Setting:
    """Return the setting of the LSTM; ``rows`` is a number of captions."""
    return Setting(rows=16, columns=0, depth=0, warps=8, stages=1)
