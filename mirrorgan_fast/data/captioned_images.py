"""The protocol of a data set: anything with these five methods is a set of captioned images.

`layouts.py` opens those on disk; `examples.py` turns any of them into training examples.
"""

from typing import Protocol

from PIL import Image


class CaptionedImages(Protocol):
    """A set of pictures, each with one or more captions."""

    def __len__(self) -> int:
        """How many pictures there are."""
        ...

    def image(self, index: int) -> Image.Image:
        """The picture, mode "RGB", of any size."""
        ...

    def captions(self, index: int) -> list[str]:
        """The picture's captions, at least one."""
        ...

    def name(self, index: int) -> str:
        """A name no other picture of the set has and that stays the same, such as "train/00012"."""
        ...

    def label(self, index: int) -> int:
        """The picture's class; without classes, a number of its own.

        Pictures of one class are not negatives of each other.
        """
        ...
