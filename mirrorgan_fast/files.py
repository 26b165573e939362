"""Files and folders: read without trust, written whole or not at all, locked by one process."""

import fcntl
import io
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from mirrorgan_fast.errors import InputError

StrPath = str | os.PathLike[str]


def open_file(path: StrPath) -> BinaryIO:
    """Open a regular file for reading.

    Links are followed. A pipe, a device or a folder is refused at once: reading one could wait, or
    go on, forever.

    Raises:
        InputError: there is no such file, it may not be read, or it is not a regular file.
    """
    try:
        file = open(path, "rb", opener=without_waiting)  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise InputError(f"{path}: is not a regular file; give a file")
    return file


def without_waiting(path: str, flags: int) -> int:
    """Open as ``open`` does, for its ``opener``."""
    return os.open(path, flags | os.O_NONBLOCK)  # else opening a pipe waits for its writer


def read_file(path: StrPath, limit: int) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Raises:
        InputError: as ``open_file``, or the file is larger.
    """
    with open_file(path) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({reason(error)})") from error
    if len(content) > limit:
        raise InputError(f"{path}: has more than {limit:,} bytes, which no such file has")
    return content


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that may be anything.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has a number of too many digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def reason(error: Exception) -> str:
    """Return what the system says of an error, without the path, which the message has already."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def whole_file(path: StrPath, *, of_process: bool = True, synced: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what was written there takes its place at the end.

    If the block raises, ``path`` is left as it was and the temporary file is removed. The parent
    folder is made if need be.

    Args:
        path: of the file.
        of_process: whether the temporary name is this process's own. If not, what a killed process
            has left there is written over, and no two may write the same file at once.
        synced: whether the content is on the disk before the file gets its name, so that it is
            whole even after a power failure. It takes milliseconds; False is for files that are
            checked and made again.

    Raises:
        InputError: the file cannot be written (no permission, a full disk, a folder of that name).
    """
    target = Path(path)
    # The suffix stays last: some writers choose the format by it.
    owner = f"{os.getpid()}." if of_process else ""
    partial = target.with_name(f".{owner}{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A link that somebody has put there would lead what is written to its target.
        partial.unlink(missing_ok=True)
        yield partial
        if synced:
            _sync(partial)
        os.replace(partial, target)
    except (OSError, UnicodeEncodeError) as error:
        raise InputError(f"{target}: cannot be written ({reason(error)})") from error
    finally:
        with suppress(OSError):  # its folder could not be made, so there is nothing to remove
            partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


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


def open_in_place(path: StrPath) -> io.FileIO:
    """Open a file for reading and writing, as it is; an empty one is made if need be.

    It is never somebody else's file, by whatever name. Not buffered: what is written outlasts the
    process.

    Raises:
        InputError: it is a link or no regular file, or has another name, under which somebody would
            find it changed.
        OSError: it cannot be opened.
    """
    if os.path.islink(path):
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


def open_lock(path: StrPath, refusal: str) -> io.FileIO:
    """Open a file that is there only to be locked, made if need be, and lock it.

    Raises:
        InputError: as ``open_in_place``, or it cannot be opened; or another process has locked it,
            with ``refusal`` as the message.
    """
    try:
        file = open_in_place(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason(error)})") from error
    lock(file, refusal)
    return file


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
            os.sync()  # all files at once, before the folder gets its name
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
