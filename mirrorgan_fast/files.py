"""Files and folders: untrusted input is read safely, output is written atomically, with locks."""

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

    Symbolic links are followed. Pipes, devices and folders are refused at once, because reading one
    could block or never end.

    Raises:
        InputError: there is no such file, it cannot be read, or it is not a regular file.
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
    """Open a file without blocking; to be used as the ``opener`` of ``open``."""
    return os.open(path, flags | os.O_NONBLOCK)  # otherwise opening a pipe waits for its writer


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
        raise InputError(f"{path}: has more than {limit:,} bytes, too large for such a file")
    return content


def parse_json(text: str | bytes) -> Any:
    """Parse untrusted JSON.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has a number with too many digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def reason(error: Exception) -> str:
    """Return the system's text for an error, without the path, which our message already has."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def whole_file(path: StrPath, *, of_process: bool = True, synced: bool = True) -> Iterator[Path]:
    """Yield a temporary path next to ``path``, and rename it to ``path`` at the end.

    If the block raises, ``path`` is left unchanged and the temporary file is removed. The parent
    folder is created if it does not exist.

    Args:
        path: of the file.
        of_process: whether the temporary name contains the process ID. If not, the file that a
            killed process left there is overwritten, and two processes must not write the same file
            at the same time.
        synced: whether to wait until the content is on the disk before the rename, so that the file
            is complete even after a power failure. This takes milliseconds. Use False for files
            that are checked and made again.

    Raises:
        InputError: the file cannot be written (no permission, a full disk, a folder of that name).
    """
    target = Path(path)
    # The suffix stays at the end, because some writers choose the format by it.
    owner = f"{os.getpid()}." if of_process else ""
    partial = target.with_name(f".{owner}{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Otherwise a symbolic link placed there would redirect the output to its target.
        partial.unlink(missing_ok=True)
        yield partial
        if synced:
            _sync(partial)
        os.replace(partial, target)
    except (OSError, UnicodeEncodeError) as error:
        raise InputError(f"{target}: cannot be written ({reason(error)})") from error
    finally:
        with suppress(OSError):  # nothing to remove if the folder could not be created
            partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def regular(path: StrPath) -> os.stat_result | None:
    """Return the status of a regular file, or None if there is no regular file at ``path``.

    A symbolic link does not count as a regular file.

    Raises:
        OSError: the status cannot be read.
    """
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def open_in_place(path: StrPath) -> io.FileIO:
    """Open a file for reading and writing in place; create an empty one if there is none.

    Symbolic links are not followed and files with several hard links are refused, so that no other
    file can be changed by mistake. The file is not buffered: what is written survives the process.

    Raises:
        InputError: it is a symbolic link, not a regular file, or has several hard links.
        OSError: it cannot be opened.
    """
    if os.path.islink(path):
        raise InputError(f"{path}: is a symbolic link, which is not followed; move it elsewhere")
    # O_NONBLOCK: do not wait for the other end if it is a pipe
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = io.FileIO(os.open(path, flags, 0o666), "r+")
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        file.close()
        raise InputError(
            f"{path}: is not a regular file, or has other hard links; move it elsewhere"
        )
    return file


def open_lock(path: StrPath, refusal: str) -> io.FileIO:
    """Open a lock file, create it if there is none, and lock it.

    Raises:
        InputError: as for ``open_in_place``; the file cannot be opened; or another process has
            locked it, in which case the message is ``refusal``.
    """
    try:
        file = open_in_place(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason(error)})") from error
    lock(file, refusal)
    return file


def lock(file: IO[Any] | io.FileIO, refusal: str) -> None:
    """Lock an open file, until it is closed or this process ends.

    Raises:
        InputError: another process has locked it. The message is ``refusal``, and the file is
            closed.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(refusal) from error


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write all of ``data`` to an unbuffered file.

    Raises:
        OSError: the disk is full; part of the data may have been written.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


_UNFINISHED = ".unfinished-by-mirrorgan-fast"


def check_free(root: Path) -> None:
    """Check that there is nothing at a path, or only an empty folder.

    Raises:
        InputError: there is something else.
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
            f"{root}: already exists and is not an empty folder; choose another folder, or delete "
            f"this one"
        )


@contextmanager
def whole_folder(root: Path, *, synced: bool = True) -> Iterator[Path]:
    """Yield a hidden folder next to ``root``, and rename it to ``root`` at the end.

    If the block raises, the hidden folder is removed. If the process is killed, the hidden folder
    stays. The next call for the same ``root`` recognizes it by the file ``_UNFINISHED`` in it, and
    removes it.

    Args:
        root: the folder to create. It must not exist yet, or be empty.
        synced: whether to wait until all files are on the disk before the rename. This waits for
            what other programs have written, too. Use False if the block syncs its files itself.

    Raises:
        InputError: ``root`` exists and is not an empty folder, something else is at the hidden
            folder's path, or another process is writing the same folder.
        OSError: a folder cannot be created.
    """
    check_free(root)
    partial = root.with_name(f".{root.name}.partial")
    refusal = f"{root}: another process is writing it; wait for it, or choose another folder"
    remove_unfinished(partial, refusal)
    partial.mkdir(parents=True)
    try:
        with open_lock(partial / _UNFINISHED, refusal):
            yield partial
            if synced:
                os.sync()  # all files at once, before the folder gets its name
            os.replace(partial, root)
            os.unlink(root / _UNFINISHED)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_unfinished(partial: Path, refusal: str) -> None:
    """Remove the hidden folder that a killed process left, and nothing else.

    Args:
        partial: the hidden folder; there may be none.
        refusal: the message if another process is writing it.

    Raises:
        InputError: another process is writing it, or it is something else.
        OSError: it cannot be removed.
    """
    if not os.path.lexists(partial):
        return
    is_ours = not partial.is_symlink() and os.path.isfile(partial / _UNFINISHED)
    if not is_ours:
        raise InputError(f"{partial}: is in the way; remove it")
    with open_file(partial / _UNFINISHED) as file:
        lock(file, refusal)
        shutil.rmtree(partial)
