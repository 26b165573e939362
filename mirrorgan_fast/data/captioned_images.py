"""The protocol of a data set: any object with these methods is a set of captioned images.

`layouts.py` opens data sets on disk, and `examples.py` turns any data set into training examples.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from PIL import Image

from mirrorgan_fast.boxes import Box


class Caption(NamedTuple):
    """A caption and exactly the attributes that it asserts."""

    text: str
    named: dict[str, str]


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
        """Return the picture's captions: at least one, unless the set is only for translation."""
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


class Subset(CaptionedImages):
    """Some pictures of a data set.

    Args:
        images: the data set.
        indices: of the pictures in it.
    """

    def __init__(self, images: CaptionedImages, indices: Sequence[int]) -> None:
        self._images, self._indices = images, indices

    def __len__(self) -> int:
        return len(self._indices)

    def image(self, index: int) -> Image.Image:
        """Return the picture."""
        return self._images.image(self._indices[index])

    def captions(self, index: int) -> list[str]:
        """Return the picture's captions."""
        return self._images.captions(self._indices[index])

    def name(self, index: int) -> str:
        """Return the picture's name."""
        return self._images.name(self._indices[index])

    def label(self, index: int) -> int:
        """Return the picture's class."""
        return self._images.label(self._indices[index])

    def stamp(self, index: int) -> str | None:
        """Return a text that changes whenever the picture may have other pixels."""
        return self._images.stamp(self._indices[index])

    def box(self, index: int) -> Box | None:
        """Return where in the picture the thing is that the captions describe, if it is known."""
        return self._images.box(self._indices[index])

    def size(self, index: int) -> tuple[int, int]:
        """Return the picture's width and height in pixels."""
        return self._images.size(self._indices[index])
