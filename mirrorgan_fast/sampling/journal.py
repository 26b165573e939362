"""A record of what a run has written so far, so that it can be stopped at any moment and resumed.

The journal is the hidden folder ".progress" of the output folder. It holds what determines the
images (run.json) and, for each shard, the rows of its images and refused captions, in order. A row
is written once its image is there. At the end the rows are copied to manifest.jsonl and
errors.jsonl.

Each row follows eight hexadecimal digits, the CRC-32 of the shard's rows up to and including this
one, so that a changed, lost, duplicated or moved row is detected. Nothing that is read here is
trusted: everything is checked before anything is written or removed.
"""

import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import count, islice
from pathlib import Path
from typing import Any, NoReturn

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import (
    StrPath,
    open_file,
    open_in_place,
    open_lock,
    parse_json,
    read_file,
    reason,
    regular,
    whole_file,
)
from mirrorgan_fast.sampling.rows import (
    IS_REFUSED,
    LONGEST_ROW,
    Rows,
    captions_of_shard,
    check_place,
    check_run,
    image_row,
    is_ours,
    own_sink,
)
from mirrorgan_fast.sampling.sampler import Result
from mirrorgan_fast.sampling.sinks import Row

MANIFEST, ERRORS, SHEET = "manifest.jsonl", "errors.jsonl", "sheet/sheet.png"
_DIGITS = len("89abcdef ")  # length of the checksum before a row
_LONGEST_LINE = _DIGITS + LONGEST_ROW + 1  # bytes
_LONGEST_RUN = 65_536  # bytes
_SHARD = re.compile(r"([0-9]{5}|[1-9][0-9]{5,18})\.jsonl")
_IN_PROGRESS = re.compile(rf"\.?run\.json|lock-(0|[1-9][0-9]{{0,9}})|{_SHARD.pattern}")
_OUR_FOLDER = re.compile(r"[0-9]{5,}|\.progress|sheet")
# Names that a folder without a run of ours must not have, unless it is to be overwritten.
_OURS = re.compile(rf"[0-9]+(\.(png|jpg|webp|tar|npy))?|{MANIFEST}|{ERRORS}|sheet(\.png)?")


class Journal:
    """The journal of an output folder.

    Args:
        folder: the output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hidden = folder / ".progress"
        self._run_file = self._hidden / "run.json"
        self._run: Mapping[str, Any] = {}  # what determines the rows that are there
        self._checksums: dict[int, int] = {}  # for each shard being written, up to its last row
        self._lock: io.FileIO | None = None

    def begin(self, run: Mapping[str, Any], overwrite: bool) -> None:
        """Start a run, or resume it.

        Args:
            run: everything that determines the images except their captions (see
                ``rows.check_run``).
            overwrite: whether the output of another run may be replaced.

        Raises:
            InputError: the folder has output of another run or contents that cannot be understood,
                or another process is writing there. In all of these cases nothing has been changed.
        """
        try:
            check_run(run)
        except ValueError as error:
            raise InputError(f"the run {error}") from error
        self._look(run, overwrite)
        if not self._lock_file(0).exists():
            self._check_rows()  # before the lock is created: a refused call must leave no files
        self.lock(0)
        for path in self._hidden.glob("lock-*"):  # of processes that outlived the first one
            if path != self._lock_file(0):
                self._open_lock(path).close()
        self._look(run, overwrite)  # again, because now no other process can change it
        self._check_rows()
        if self._run != run:
            self.begin_anew(run)

    def begin_anew(self, run: Mapping[str, Any]) -> None:
        """Remove the output that is there, and start a new run."""
        self._clear()
        with whole_file(self._run_file, of_process=False) as partial, partial.open("wb") as file:
            file.write(json.dumps(run, indent=2).encode() + b"\n")
            file.flush()
            # Otherwise a power failure could leave an empty file, and the information about the
            # images would be lost.
            os.fsync(file.fileno())
        self._run = run

    def join(self, run: Mapping[str, Any], process: int) -> None:
        """Join a run that process 0 has started, as another process.

        Raises:
            InputError: see ``lock``.
        """
        self.lock(process)
        self._run = run

    def lock(self, process: int) -> None:
        """Lock the folder for this process of a run, until the run ends.

        Raises:
            InputError: another process holds the lock.
        """
        self._hidden.mkdir(parents=True, exist_ok=True)
        self._lock = self._open_lock(self._lock_file(process))

    def unlock(self) -> None:
        """Release the lock, so that other processes can write."""
        if self._lock is not None:
            self._lock.close()

    def shards(self) -> list[int]:
        """Return the numbers of all shards that have a file here."""
        found = (_SHARD.fullmatch(entry.name) for entry in _entries(self._hidden))
        return sorted(int(name[1]) for name in found if name)

    def read(self, shard: int) -> Iterator[Row]:
        """Yield the rows of a shard, up to the point where a crash may have cut the file off.

        Raises:
            InputError: a row is damaged, or this run cannot have written it.
        """
        rows = Rows(self._run, shard, self.folder)
        for number, (_, data) in enumerate(self._lines(shard), start=1):
            try:
                row = rows.take(data)
            except ValueError as error:
                self._refuse_line(shard, number, str(error))
            yield row

    def keep(self, shard: int, rows: int) -> None:
        """Prepare a shard's file for more rows: keep its first rows and remove the others.

        The file is created if there is none. It shows that the shard was started.
        """
        end, self._checksums[shard] = 0, _first_checksum(shard)
        with open_in_place(self._path(shard)) as file:
            for checksum, data in islice(self._lines(shard), rows):
                end, self._checksums[shard] = end + _DIGITS + len(data), checksum
            file.truncate(end)

    def append_to(self, shard: int) -> io.FileIO:
        """Open the file of a shard that ``keep`` has prepared, to write after its last row."""
        file = open_in_place(self._path(shard))
        file.seek(0, os.SEEK_END)
        return file

    def image_row(self, result: Result, place: Row) -> bytes:
        """Return the row of an image.

        Args:
            result: the image.
            place: the location of the image, as the sink returned it.

        Raises:
            InputError: a sink of the user's own returned a location that a row cannot contain.
        """
        try:
            if self._run["sink"]:
                check_place(self.folder, place)
            row = image_row(result, place)
            if len(row) > LONGEST_ROW:
                raise ValueError(f"has more than {LONGEST_ROW:,} bytes")
        except (AttributeError, TypeError, ValueError) as error:  # place may not be a mapping
            name = self._run["sink"]
            raise InputError(
                f"the sink {name}: what it returned cannot be in a row ({error})"
            ) from error
        return row

    def seal(self, shard: int, rows: Iterable[bytes]) -> bytes:
        """Return the next rows of a shard as lines with checksums."""
        lines = []
        checksum = self._checksums[shard]
        for row in rows:
            checksum = zlib.crc32(row, checksum)
            lines.append(b"%08x %b" % (checksum, row))
        self._checksums[shard] = checksum
        return b"".join(lines)

    def assemble(self) -> tuple[int, int]:
        """Write manifest.jsonl and, if any caption was refused, errors.jsonl.

        Returns:
            the number of rows in each file.
        """
        images = self._copy_rows(MANIFEST, refused=False)
        refused = any(data.startswith(IS_REFUSED) for data in self._all_lines())
        return images, self._copy_rows(ERRORS, refused=True) if refused else 0

    def images(self) -> Iterator[Row]:
        """Yield the rows of all images, as they are in the manifest.

        Raises:
            InputError: the folder has contents that cannot be understood.
        """
        self._run = self._read_run()
        for shard in self.shards():
            yield from (row for row in self.read(shard) if "error" not in row)

    # --- reading and checking ---------------------------------------------------------------------

    def _look(self, run: Mapping[str, Any], overwrite: bool) -> None:
        """Read which run is there, and check that it may be resumed or replaced."""
        self._run = self._read_run()
        if self._run != run and not overwrite:
            self._refuse_other(run)

    def _check_rows(self) -> None:
        for shard in self.shards():
            for _ in self.read(shard):
                pass

    def _read_run(self) -> Mapping[str, Any]:
        """Return what determines the images of the run that is there; empty if there is no run."""
        self._check_names()
        if regular(self._run_file) is None:
            if self.shards():
                raise InputError(
                    f"{self._run_file}: is missing, so it is unknown what the images are; "
                    f"{self._leave}"
                )
            return {}
        try:
            run: dict[str, Any] = parse_json(read_file(self._run_file, _LONGEST_RUN))
            check_run(run)
        except InputError as error:
            raise InputError(f"{error}; {self._leave}") from error
        except ValueError as error:
            raise InputError(f"{self._run_file}: is damaged ({error}); {self._leave}") from error
        return run

    def _check_names(self) -> None:
        """Check that no folder of ours is a symbolic link, and that all hidden files are ours."""
        for entry in _entries(self.folder):
            if _OUR_FOLDER.fullmatch(entry.name) and entry.is_symlink():
                raise InputError(
                    f"{entry.path}: is a symbolic link, which is not followed; remove it, or use "
                    "another -o"
                )
        for entry in _entries(self._hidden):
            why = ""
            if not _IN_PROGRESS.fullmatch(entry.name):
                why = "does not belong to this program"
            elif not entry.is_file(follow_symlinks=False):
                why = "is not a regular file"
            elif entry.stat(follow_symlinks=False).st_nlink > 1:
                why = "has another name (a hard link), under which it would change too"
            if why:
                raise InputError(f"{entry.path}: {why}; move it elsewhere, or use another -o")

    def _lines(self, shard: int) -> Iterator[tuple[int, bytes]]:
        """Yield the rows of a shard as bytes, each with its checksum."""
        path, checksum = self._path(shard), _first_checksum(shard)
        if regular(path) is None:
            return
        with open_file(path) as file:
            for number in count(1):
                line = file.readline(_LONGEST_LINE)
                # A killed process or a full disk leaves part of a line at the end. A power failure
                # leaves zeros in place of blocks that had not reached the disk, and no row contains
                # a zero. The images from there on are made again. A crash causes no other damage.
                if b"\0" in line or (line[-1:] != b"\n" and len(line) < _LONGEST_LINE):
                    return
                data = line[_DIGITS:]
                checksum = zlib.crc32(data, checksum)
                if line[:_DIGITS] != b"%08x " % checksum:
                    if line.startswith(b"{"):
                        raise InputError(
                            f"{path}, line {number}: has no checksum, as an older version wrote "
                            "it; finish with that version, or use another -o"
                        )
                    self._refuse_line(shard, number, "is damaged")
                yield checksum, data

    def _all_lines(self) -> Iterator[bytes]:
        for shard in self.shards():
            yield from (data for _, data in self._lines(shard))

    def _copy_rows(self, name: str, refused: bool) -> int:
        copied = 0
        with (
            whole_file(self.folder / name, of_process=False) as partial,
            partial.open("wb") as file,
        ):
            for data in self._all_lines():
                if data.startswith(IS_REFUSED) == refused:
                    file.write(data)
                    copied += 1
        return copied

    def _path(self, shard: int) -> Path:
        return self._hidden / f"{shard:05d}.jsonl"

    def _lock_file(self, process: int) -> Path:
        return self._hidden / f"lock-{process}"

    def _open_lock(self, path: Path) -> io.FileIO:
        refusal = f"{self.folder}: another process writes there; wait for it, or use another -o"
        return open_lock(path, refusal)

    # --- errors -----------------------------------------------------------------------------------

    def _refuse_line(self, shard: int, number: int, why: str) -> NoReturn:
        raise InputError(
            f"{self._path(shard)}, line {number}: {why}; remove this file to have the images of "
            "its shard made again, or use another -o"
        )

    @property
    def _leave(self) -> str:
        return f"use another -o, or remove {self.folder} yourself"

    def _refuse_other(self, run: Mapping[str, Any]) -> None:
        """Raise InputError if there is output of another run, or a file with a name of ours."""
        advice = "use another -o, or --overwrite"
        if there := self._run:
            differs = [
                f"{name} {there.get(name)}, not {run.get(name)}"
                for name in run
                if there.get(name) != run[name]
            ]
            raise InputError(f"{self.folder}: has images of {'; '.join(differs)}: {advice}")
        for entry in sorted(_entries(self.folder), key=lambda entry: entry.name):
            if _OURS.fullmatch(entry.name):
                raise InputError(f"{entry.path}: is there already; {advice}")

    # --- removing ---------------------------------------------------------------------------------

    def _clear(self) -> None:
        """Remove the output of the run that is there, and nothing else."""
        if not self._run:
            return
        for shard in self.shards():
            for row in self.read(shard):
                if is_ours(row):
                    _remove(self.folder / row["file"])
                    _remove(_partial(self.folder / row["file"]))
            self._remove_without_row(shard)
            self._path(shard).unlink()
        for name in (MANIFEST, ERRORS, SHEET):
            _remove(self.folder / name)
            _remove(_partial(self.folder / name))
        _remove_empty((self.folder / SHEET).parent)
        self._run_file.unlink()

    def _remove_without_row(self, shard: int) -> None:
        """Remove images that have no row because the process was killed before it wrote one."""
        own = own_sink(self._run, self.folder)
        if own is None:
            return
        images = captions_of_shard(self._run) * self._run["per_caption"]
        file = self.folder / own.place(shard, shard * images, 0)["file"]
        _remove(_partial(file))
        if file.parent == self.folder:
            return
        for entry in list(_entries(file.parent)):
            number = re.fullmatch(r"\.?([0-9]{8,})" + re.escape(file.suffix), entry.name)
            if number and int(number[1]) // images == shard:
                _remove(Path(entry.path))
        _remove_empty(file.parent)


def read_manifest(folder: StrPath, most: int) -> list[Row]:
    """Return the first rows of an output folder's manifest, after checking them.

    They are read from the journal, where they have checksums.

    Args:
        folder: the output folder.
        most: the maximum number of rows.

    Raises:
        InputError: the folder has contents that cannot be understood.
    """
    try:
        return list(islice(Journal(Path(folder)).images(), most))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({reason(error)})") from error


def _first_checksum(shard: int) -> int:
    """Return the checksum before the first row, which is different in each shard."""
    return zlib.crc32(b"%d" % shard)


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """Yield the entries of a folder; none if it does not exist.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: cannot be read ({reason(error)})") from error


def _partial(path: Path) -> Path:
    """Return the name that a file has until it is complete."""
    return path.with_name(f".{path.name}")


def _remove(path: Path) -> None:
    """Remove a regular file. Anything else with this name, such as a folder or a link, stays."""
    if regular(path) is not None:
        path.unlink()


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # the folder does not exist or is not empty
        folder.rmdir()
