"""How each Triton kernel is launched: blocks, warps and stages by shape, in one place.

Chosen so that nothing spills on an A100, H100 or B200, and two blocks or more fit on one of their
multiprocessors (of the attention's backward one), which `benchmarks/results/triton-resources.json`
records. None has been timed on a GPU yet; `python -m benchmarks.gpu_settings` looks for faster
ones.
"""

from typing import NamedTuple

import torch

FEW = 32
"""Words and channels up to which all gradients of the attention's inputs are one launch."""


class Setting(NamedTuple):
    """A launch of a kernel."""

    rows: int
    """Of a block: pixels, words or samples."""
    columns: int
    """Of a block: channels of the result."""
    depth: int
    """Channels that go into a product at a time."""
    warps: int = 4
    stages: int = 3
    turns: int = 1
    """Blocks that a program has one after the other."""


def power_of_two(n: int, least: int = 16) -> int:
    """Return the smallest power of two from ``least`` on that is not below ``n``."""
    return max(least, 1 << (n - 1).bit_length())


def convolution(channels: int, columns: int, dtype: torch.dtype) -> Setting:
    """Return the setting of a convolution of so many channels in and columns out."""
    depth = min(64, power_of_two(channels))
    if columns <= 16:
        return Setting(rows=128, columns=16, depth=depth)
    wide = min(128, power_of_two(columns))
    if columns % wide and columns % (wide // 2) == 0:
        wide //= 2  # 96 columns are three blocks of 32 or two of 48: no column is empty
    if dtype == torch.float32:  # not on the matrix units, and twice as many registers
        return Setting(rows=64, columns=min(64, wide), depth=32, stages=2)
    return Setting(rows=128, columns=wide, depth=depth, warps=8 if wide == 128 else 4)


def attention_forward(channels: int, columns: int, words: int) -> Setting:
    """Return the setting of GLAM's attention; ``depth`` is how many words go at a time."""
    wide = power_of_two(columns)
    return Setting(128, wide, min(32, power_of_two(words)), warps=8 if wide > 64 else 4, stages=2)


def attention_backward(channels: int, columns: int, words: int) -> Setting:
    """Return the setting of its backward, which has all words at once."""
    wide = power_of_two(columns)
    if channels > FEW or words > FEW:
        return Setting(32, wide, power_of_two(words, least=32), warps=8, stages=1, turns=8)
    return Setting(64, wide, power_of_two(words), warps=8, stages=1, turns=8)


def batch_norm(channels: int) -> Setting:
    """Return the setting of the batch norms."""
    columns = min(64, power_of_two(channels))
    return Setting(rows=32, columns=columns, depth=0, stages=2, turns=16)


def word_similarity(words: int) -> Setting:
    """Return the setting of DAMSM's similarity; ``columns`` is how many regions go at a time.

    ``turns`` are the images that a program of the backward goes over: at batch 48 there are 288
    programs, two a multiprocessor.
    """
    return Setting(rows=power_of_two(words), columns=32, depth=0, warps=8, stages=1, turns=8)


def word_similarity_sum() -> Setting:
    """Return the setting of the sum that ends its backward."""
    return Setting(rows=1, columns=512, depth=0, stages=1)


def lstm() -> Setting:
    """Return the setting of the LSTM; ``rows`` are captions."""
    return Setting(rows=16, columns=0, depth=0, warps=8, stages=1)
