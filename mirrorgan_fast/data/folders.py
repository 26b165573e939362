"""Folders that are written: only where nothing is yet, and whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import lock, open_file, open_lock, reason

_UNFINISHED = ".unfinished-by-mirrorgan-fast"


def check_free(root: Path) -> None:
    """Make sure that there is nothing at a path, or an empty folder.

    Raises:
        InputError: there is something.
    """
    if not os.path.lexists(root):
        return
    try:
        free = not os.listdir(root)
    except NotADirectoryError:
        free = False
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({reason(error)})") from error
    if not free:
        raise InputError(
            f"{root}: is there already and not an empty folder; choose a new one, or delete it"
        )


@contextmanager
def whole_folder(root: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``root``; what was written there takes its place at the end.

    If the block raises, the hidden folder is removed. If the process is killed, it stays; the next
    call for the same ``root`` removes it, which it knows by the file ``_UNFINISHED`` in it.

    Args:
        root: the folder to make; nothing may be there yet, or an empty folder.

    Raises:
        InputError: something is at ``root`` or at the hidden folder's path, or another process
            writes the same folder.
        OSError: a folder cannot be made.
    """
    check_free(root)
    partial = root.with_name(f".{root.name}.partial")
    refusal = f"{root}: another process is writing it; wait for it, or choose another place"
    _remove_unfinished(partial, refusal)
    partial.mkdir(parents=True)
    try:
        with open_lock(partial / _UNFINISHED, refusal):
            yield partial
            os.replace(partial, root)
            os.unlink(root / _UNFINISHED)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_unfinished(partial: Path, refusal: str) -> None:
    """Remove what a process that was killed left, and nothing else."""
    if not os.path.lexists(partial):
        return
    is_ours = not partial.is_symlink() and os.path.isfile(partial / _UNFINISHED)
    if not is_ours:
        raise InputError(f"{partial}: is in the way; remove it")
    with open_file(partial / _UNFINISHED) as file:
        lock(file, refusal)
        shutil.rmtree(partial)
