"""Files that appear whole or not at all, and of one process at a time."""

import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mirrorgan_fast.errors import InputError


@contextmanager
def whole_file(path: str | os.PathLike[str], *, of_process: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what was written there takes its place at the end.

    If the block raises, ``path`` is left as it was and the temporary file is removed. The parent
    folder is made if need be.

    Args:
        path: of the file.
        of_process: whether the temporary name is this process's own. If not, what a killed process
            has left there is written over, and no two may write the same file at once.

    Raises:
        InputError: the file cannot be written (no permission, a full disk, a folder of that name).
    """
    target = Path(path)
    # The suffix stays last: some writers choose the format by it.
    owner = f"{os.getpid()}." if of_process else ""
    partial = target.with_name(f".{owner}{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):  # its folder could not be made, so there is nothing to remove
            partial.unlink(missing_ok=True)


def lock(file: IO[Any] | io.FileIO, refusal: str) -> None:
    """Keep other processes from locking an open file, until it is closed or this process ends.

    Raises:
        InputError: another one has; with ``refusal`` as its message, and the file is closed.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(refusal) from error


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write all of ``data`` to a file that is not buffered.

    Raises:
        OSError: there is no room for the rest; the beginning may be in the file.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
