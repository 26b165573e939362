"""Files of an output folder that are written in place: never anybody else's, by whatever name."""

import io
import os
import stat
from pathlib import Path

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import StrPath


def regular(path: StrPath) -> os.stat_result | None:
    """Return what the system says of a regular file; None if there is none of this name.

    A link to one is none.

    Raises:
        OSError: it cannot be told.
    """
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def open_in_place(path: Path) -> io.FileIO:
    """Open a file for reading and writing, as it is; an empty one is made if need be.

    Not buffered: what is written outlasts the process.

    Raises:
        InputError: it is a link or no regular file, or has another name, under which somebody would
            find it changed.
        OSError: it cannot be opened.
    """
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link, which is not followed; move it elsewhere")
    # Without waiting, as for the other end of a pipe
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = io.FileIO(os.open(path, flags, 0o666), "r+")
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        file.close()
        raise InputError(
            f"{path}: is not a regular file with one name (without hard links); move it elsewhere"
        )
    return file
