"""What a run has written so far, so that it can be stopped at any moment and gone on with.

In the hidden folder ".progress" of the output: what decides the images (run.json), and for each
shard the lines of the manifest and the refused captions, in order. A line is written when its image
is there. At the end they become manifest.jsonl and errors.jsonl.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import lock, whole_file
from mirrorgan_fast.sampling.captions import Refused
from mirrorgan_fast.sampling.sampler import Result

MANIFEST, ERRORS, SHEET = "manifest.jsonl", "errors.jsonl", "sheet.png"
_REFUSED = b'{"error": '
_OURS_IN_SHARD = re.compile(r"\.?\d{8,}\.(png|jpg|webp)")
_OURS = re.compile(rf"\d+(\.(png|jpg|webp|tar|npy))?|{MANIFEST}|{ERRORS}|{SHEET}")


class Journal:
    """The journal of an output folder.

    Args:
        folder: of the output.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hidden = folder / ".progress"
        self._run = self._hidden / "run.json"
        self._lock: io.FileIO | None = None

    def begin(self, run: Mapping[str, Any], overwrite: bool) -> None:
        """Begin a run, or go on with it.

        Args:
            run: all that decides the images except their captions, as JSON has it.
            overwrite: whether the output of another run may be replaced.

        Raises:
            InputError: there is output of another run, or another process writes there.
        """
        if self._read_run() != run and not overwrite:
            self._refuse(self._read_run(), run)
        self.lock(0)
        for path in self._hidden.glob("lock-*"):  # of processes that outlived the first one
            if path.name != "lock-0":
                with path.open("w") as file:
                    self._lock_file(file)
        there = self._read_run()  # as nobody can change it any more
        if there != run:
            if there is not None and not overwrite:
                self._refuse(there, run)
            self.begin_anew(run)

    def begin_anew(self, run: Mapping[str, Any]) -> None:
        """Remove what is written here, and begin a run."""
        self._clear()
        with whole_file(self._run) as partial:
            partial.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")

    def lock(self, process: int) -> None:
        """Keep others from being this process of a run, until it ends.

        Raises:
            InputError: another one is.
        """
        self._hidden.mkdir(parents=True, exist_ok=True)
        self._lock = io.FileIO(self._hidden / f"lock-{process}", "w")
        self._lock_file(self._lock)

    def _lock_file(self, file: IO[Any] | io.FileIO) -> None:
        lock(file, f"{self.folder}: another process writes there; wait for it, or use another -o")

    def unlock(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.close()

    def _clear(self) -> None:
        for shard in self.shards():
            for row in self.resume(shard):
                if "file" in row:
                    self._remove(self.folder / row["file"])
            files = self.folder / f"{shard:05d}"
            if files.is_dir():  # with those that a killed process had no time to write a row of
                for path in files.iterdir():
                    if _OURS_IN_SHARD.fullmatch(path.name):
                        path.unlink()
                with suppress(OSError):  # somebody else's are in it
                    files.rmdir()
            for suffix in ("tar", "npy"):
                (self.folder / f".{shard:05d}.{suffix}").unlink(missing_ok=True)
            self._path(shard).unlink()
        if self._read_run() is not None:  # else they are somebody's
            for name in (MANIFEST, ERRORS, SHEET):
                (self.folder / name).unlink(missing_ok=True)
            self._run.unlink()

    @staticmethod
    def _remove(path: Path) -> None:
        for there in (path, path.with_name(f".{path.name}")):
            there.unlink(missing_ok=True)

    def shards(self) -> list[int]:
        """Return the numbers of all shards that anything is written of."""
        return sorted(int(path.stem) for path in self._hidden.glob("[0-9]*.jsonl"))

    def resume(self, shard: int) -> list[dict[str, Any]]:
        """Make ready to write of a shard; return what is written, without half a line at the end.

        From now on the shard is known to have been begun.
        """
        path = self._path(shard)
        path.touch()
        *lines, rest = path.read_bytes().split(b"\n")
        rows: list[dict[str, Any]] = []
        with suppress(ValueError):  # a power cut may leave anything
            rows.extend(json.loads(line) for line in lines)
        if rest or len(rows) < len(lines):
            self.keep(shard, len(rows))
        return rows

    def keep(self, shard: int, count: int) -> None:
        """Remove all but the first lines of a shard."""
        with self._path(shard).open("r+b") as file:
            for _ in range(count):
                file.readline()
            file.truncate(file.tell())

    def append_to(self, shard: int) -> io.FileIO:
        """Open a shard to write behind what is there."""
        return io.FileIO(self._path(shard), "a")

    def assemble(self) -> tuple[int, int]:
        """Write manifest.jsonl and, if any caption was refused, errors.jsonl.

        Returns:
            the number of lines in each.
        """
        images = self._copy_lines(MANIFEST, refused=False)
        refused = any(line.startswith(_REFUSED) for line in self._lines())
        return images, self._copy_lines(ERRORS, refused=True) if refused else 0

    def _copy_lines(self, name: str, refused: bool) -> int:
        count = 0
        with (
            whole_file(self.folder / name, of_process=False) as partial,
            partial.open("wb") as file,
        ):
            for line in self._lines():
                if line.startswith(_REFUSED) == refused:
                    file.write(line)
                    count += 1
        return count

    def _lines(self) -> Iterator[bytes]:
        """Yield all whole lines, in order."""
        for shard in self.shards():
            with self._path(shard).open("rb") as lines:
                yield from (line for line in lines if line.endswith(b"\n"))

    def _path(self, shard: int) -> Path:
        return self._hidden / f"{shard:05d}.jsonl"

    def _read_run(self) -> dict[str, Any] | None:
        try:
            there = json.loads(self._run.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return there if isinstance(there, dict) else None

    def _refuse(self, there: Mapping[str, Any] | None, run: Mapping[str, Any]) -> None:
        advice = "use another -o, or --overwrite"
        if there is not None:
            differs = [
                f"{name} {there.get(name)}, not {run.get(name)}"
                for name in run
                if there.get(name) != run[name]
            ]
            raise InputError(f"{self.folder}: has images of {'; '.join(differs)}: {advice}")
        if self.folder.is_dir():
            for path in sorted(self.folder.iterdir()):
                if _OURS.fullmatch(path.name):
                    raise InputError(f"{path}: is there already; {advice}")


def image_row(result: Result, place: Mapping[str, Any]) -> bytes:
    """Return the manifest's line of an image, which ``sample --captions`` can read."""
    return _line(
        {
            "caption": result.caption,
            "seed": result.seed,
            "index": result.index,
            "unknown": result.unknown,
            "line": result.request.line,
            **place,
        }
    )


def refused_row(refused: Refused) -> bytes:
    """Return the line of a caption that no image can be made of."""
    return _line({"error": refused.reason, "line": refused.line, "text": refused.text})


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
