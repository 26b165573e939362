"""The shapes everything is measured on: the bird configuration's, at one image and at a batch."""

from typing import NamedTuple


class AttentionShape(NamedTuple):
    """A call of glam_attention."""

    batch: int  # N
    size: int  # H = W
    channels: int = 32  # C
    words: int = 18  # T


GLAM_ATTENTION = [AttentionShape(batch, size) for batch in (1, 8) for size in (32, 64, 128)]
