"""Checks of paths, texts and numbers in the files of data sets, shared by all layouts."""

import os
import reprlib
import unicodedata
from collections.abc import Iterable
from pathlib import Path


def leads_out(path: str) -> bool:
    """Whether a path that should be inside a folder is absolute or climbs out of it.

    Only the text of the path counts, not the target of a symbolic link: if the folder of pictures
    is a link to another disk, that is on purpose.
    """
    return os.path.isabs(path) or Path(os.path.normpath(path)).parts[:1] == ("..",)


def no_such_file(root: Path, path: str) -> str:
    """Return a message that a folder has no file of this path, and names one that looks the same.

    Args:
        root: the folder.
        path: the path inside the folder.
    """
    here, found = root, []
    parts = Path(os.path.normpath(path)).parts
    for part in parts:
        there: str | None = part
        if not os.path.lexists(here / part):
            try:
                there = same_looking(part, os.listdir(here))
            except OSError:
                there = None
        if there is None:
            return f"there is no file {shown(path)}"
        found.append(there)
        here /= there
    if found == list(parts):
        return f"{shown(path)} is not a regular file"
    return (
        f"there is no file {path!a} but {os.path.join(*found)!a}, which looks the same: its "
        "letters are composed in another way in Unicode; rename one like the other"
    )


def same_looking(name: str, others: Iterable[str]) -> str | None:
    """Return the first other name that is equal after Unicode normalization; None if none is."""
    form = unicodedata.normalize("NFC", name)
    return next((other for other in others if unicodedata.normalize("NFC", other) == form), None)


def file_stamp(path: Path) -> str:
    """Return a text that changes whenever a file is changed, or becomes readable or unreadable."""
    try:
        found = os.stat(path)
    except OSError as error:
        return f"none ({error.errno})"
    return f"{found.st_size} bytes, {found.st_mtime_ns} ns, mode {found.st_mode:o}"


def is_integer_of_64_bits(value: object) -> bool:
    """Whether a value is an integer that fits in an int64 tensor; True and False are not."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_text(text: str) -> bool:
    """Whether a string can be written to a file; one with half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_BRIEFLY = reprlib.Repr()


_BRIEFLY.maxstring = _BRIEFLY.maxother = 80


def shown(value: object) -> str:
    """Return a short form of a value for a message, however large or nested the value is."""
    return _BRIEFLY.repr(value)
