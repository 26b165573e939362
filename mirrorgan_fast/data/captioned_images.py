"""The protocol of a data set: any object with these methods is a set of captioned images.

`layouts.py` opens data sets on disk, and `examples.py` turns any data set into training examples.
"""

from typing import Protocol

from PIL import Image

from mirrorgan_fast.boxes import Box


class CaptionedImages(Protocol):
    """A set of pictures, each with one or more captions."""

    def __len__(self) -> int:
        """Return the number of pictures."""
        ...

    def image(self, index: int) -> Image.Image:
        """Return the picture, mode "RGB", of any size.

        Raises:
            InputError: it cannot be read.
        """
        ...

    def captions(self, index: int) -> list[str]:
        """Return the picture's captions, at least one."""
        ...

    def name(self, index: int) -> str:
        """Return the picture's name, which is unique in the set and never changes.

        For example "train/00012".
        """
        ...

    def label(self, index: int) -> int:
        """Return the picture's class; if there are no classes, a unique number.

        Pictures of the same class are not used as negatives of each other.
        """
        ...

    def box(self, index: int) -> Box | None:
        """Return where in the picture the thing is that the captions describe; None: not known.

        Raises:
            InputError: what the data set says is not a box.
        """
        return None

    def size(self, index: int) -> tuple[int, int]:
        """Return the picture's width and height in pixels.

        Raises:
            InputError: it cannot be read.
        """
        return self.image(index).size

    def stamp(self, index: int) -> str | None:
        """Return a text that changes whenever the picture may have other pixels.

        For a file, this is its size and modification time. None means that changes cannot be told;
        such pictures are not kept in a cache.
        """
        return None
