"""A plain folder of pictures, without captions."""

import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.checks import file_stamp
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import StrPath, reason
from mirrorgan_fast.pictures import MAX_PIXELS, read_picture

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
}
"""The suffixes of pictures, in lower case."""
_MOST = 2**24


class PictureFolder(CaptionedImages):
    """The pictures in a folder and in the folders inside it, in the order of their names.

    Hidden files, files without the suffix of a picture, and linked folders are skipped. A picture's
    name is its path inside the folder. Each picture is its own class.

    Args:
        root: the folder.
        max_pixels: a larger picture is refused before it is decoded.

    Raises:
        InputError: it cannot be read, or has no pictures.
    """

    def __init__(self, root: StrPath, max_pixels: int = MAX_PIXELS) -> None:
        self._root, self._max_pixels = Path(root), max_pixels
        self._names = sorted(_pictures(self._root))
        if not self._names:
            raise InputError(
                f"{root}: has no pictures ({', '.join(sorted(SUFFIXES))}); give a folder of them"
            )

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> Path:
        """Return the picture's file."""
        return self._root / self._names[index]

    def image(self, index: int) -> Image.Image:
        """Return the picture: mode "RGB", upright, on a white background.

        Raises:
            InputError: the file is damaged.
        """
        path = self.path(index)
        return read_picture(path, str(self._root), self._max_pixels)

    def captions(self, index: int) -> list[str]:
        """Return an empty list."""
        return []

    def name(self, index: int) -> str:
        """Return the path of the picture inside the folder."""
        return self._names[index]

    def label(self, index: int) -> int:
        """Return the index."""
        return index

    def stamp(self, index: int) -> str:
        """Return the size and modification time of the picture's file, and the limit of pixels."""
        return f"{file_stamp(self.path(index))}, limit {self._max_pixels}"


def is_picture(name: str) -> bool:
    """Return whether a file that is not hidden has the suffix of a picture."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _pictures(root: Path) -> Iterator[str]:
    """Yield the paths of all pictures inside a folder."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({reason(error)})") from error

    found = 0
    for folder, inner, names in os.walk(root, onerror=refuse):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in filter(is_picture, names):
            found += 1
            if found > _MOST:
                raise InputError(f"{root}: has more than {_MOST:,} pictures")
            yield os.path.relpath(os.path.join(folder, name), root)
