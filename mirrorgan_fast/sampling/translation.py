"""Translating pictures to a folder. A run can be stopped and resumed.

The hidden folder ".translation" of the output folder has what determines the pictures (run.json)
and, for each process, a line with a checksum for each picture that is there. A picture whose line
is missing or damaged is made again. Nothing is ever removed.
"""

import hashlib
import json
import logging
import os
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from mirrorgan_fast.data.checks import file_stamp
from mirrorgan_fast.data.picture_folder import PictureFolder
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.fields import bounded, changed_fields, check_fields
from mirrorgan_fast.files import (
    open_in_place,
    open_lock,
    parse_json,
    read_file,
    reason,
    regular,
    whole_file,
    write_all,
)
from mirrorgan_fast.inference.translator import MAX_SIZE, Translator, padded_size, scaled
from mirrorgan_fast.models.cyclegan import CycleGAN
from mirrorgan_fast.pictures import MAX_PIXELS, read_picture
from mirrorgan_fast.processes import Processes
from mirrorgan_fast.sampling.sampler import is_out_of_memory
from mirrorgan_fast.sampling.sinks import LOSSY, SUFFIX, check_format, encode

MANIFEST, ERRORS = "manifest.jsonl", "errors.jsonl"
FORMATS = ("png", "jpeg", "webp")
_LOG = logging.getLogger("mirrorgan_fast")
_HIDDEN = ".translation"
_MOST_BYTES = 2**28  # of the lines of a process
_BATCH_SIZE = {"cpu": 4, "cuda": 16}
_LEAST_SIZE = 64  # pixels of the longer side, to which a picture is reduced if memory ends


@dataclass(frozen=True)
class TranslationSettings:
    """Everything that determines translated pictures and their files, except model and pictures.

    Raises:
        InputError: a value is out of range.
    """

    max_size: int = bounded(MAX_SIZE, 1, 65_536)
    """The longer side of a translated picture in pixels; larger pictures are scaled down."""
    format: str = "png"
    """One of ``FORMATS``."""
    quality: int = bounded(95, 1, 100)
    """Quality of JPEG and WebP files, 1 to 100."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"there is no format {self.format}; there are {', '.join(FORMATS)}")
        check_format(self.format, self.quality)
        check_fields(self, "translation settings")


@dataclass(frozen=True)
class Translated:
    """What a run of ``translate_to_folder`` did."""

    pictures: int
    """Number of translated pictures that are in the folder now."""
    made: int
    """Number of pictures that this call translated."""
    failed: int
    """Number of pictures that cannot be translated."""
    reduced: int
    """Number of pictures that were scaled down."""
    process: int
    """Index of this process, from 0."""


class Job(NamedTuple):
    """A picture to translate."""

    source: Path
    file: str
    """The path of the result in the output folder."""


def jobs_of(pictures: Sequence[Path], format: str) -> list[Job]:
    """Return what to translate, each with a file of its own.

    A result has the name of its picture, and inside a folder its path in that folder. Of several
    pictures with the same name, the second one gets "-2" behind it, and so on.

    Args:
        pictures: files, and folders whose pictures are all translated.
        format: one of ``FORMATS``.

    Raises:
        InputError: a folder has no pictures, or cannot be read.
    """
    found: list[tuple[Path, str]] = []
    for path in pictures:
        if os.path.isdir(path):
            folder = PictureFolder(path)
            found += [(folder.path(i), folder.name(i)) for i in range(len(folder))]
        else:
            found.append((path, path.name))
    jobs, taken = [], set[str]()
    for source, name in found:
        stem, count = os.path.splitext(name)[0], 1
        file = f"{stem}.{SUFFIX[format]}"
        while file.casefold() in taken:  # some file systems do not tell a.png from A.png
            count += 1
            file = f"{stem}-{count}.{SUFFIX[format]}"
        taken.add(file.casefold())
        jobs.append(Job(source, file))
    return jobs


def translate_to_folder(
    model: CycleGAN,
    translator: Translator,
    pictures: Sequence[Path],
    folder: Path,
    settings: TranslationSettings | None = None,
    *,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
    batch_size: int | None = None,
    quiet: bool = True,
) -> Translated:
    """Translate pictures and write them, with a manifest, into a folder.

    A run can be stopped or killed at any moment. The same call then resumes it, and in the end each
    picture is there and is complete. Pictures that cannot be read are listed in errors.jsonl and do
    not stop the run. The processes that ``torchrun`` starts take turns at the pictures.

    Pictures of one size are translated in batches, which do not depend on what is there already.

    Args:
        model: that the translator was made of.
        translator: translates them.
        pictures: files, and folders whose pictures are all translated.
        folder: the output folder, which is created if necessary.
        settings: what determines the pictures and their files.
        overwrite: whether pictures of another run are replaced. Others stay.
        max_pixels: a larger picture is refused before it is decoded.
        batch_size: number of pictures in a batch.
        quiet: whether to hide the progress bar.

    Raises:
        InputError: the folder has a picture of another run, another process writes there, a file
            cannot be written, or there is not enough memory for the smallest picture.
    """
    settings = settings or TranslationSettings()
    jobs = jobs_of(pictures, settings.format)
    if not jobs:
        raise InputError("no pictures to translate")
    run = {
        "model": _fingerprint(model),
        "to": translator.to,
        "dtype": str(translator.dtype).removeprefix("torch."),
        "device": translator.device.type,
        "pictures": _digest([(str(job.source), job.file) for job in jobs]),
        **asdict(settings),
    }
    if settings.format not in LOSSY:
        del run["quality"]
    if batch_size is None:
        batch_size = _BATCH_SIZE.get(translator.device.type, _BATCH_SIZE["cpu"])
    processes = Processes.join()
    folder_of_run = _Folder(folder)
    try:
        processes.once(lambda: folder_of_run.begin(run, jobs, overwrite))
        folder_of_run.lock(processes.rank)
        work = _Work(translator, jobs, folder_of_run, settings, max_pixels, processes)
        work.run(batch_size, quiet)
        (made, reduced) = processes.total(work.made, work.reduced)
        counts = processes.total(*(folder_of_run.finish(jobs) if processes.rank == 0 else (0, 0)))
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: cannot be written ({reason(error)}); once it can, run "
            "the same command again to resume"
        ) from error
    finally:
        folder_of_run.unlock()
        processes.close()
    return Translated(counts[0], made, counts[1], reduced, processes.rank)


class _Folder:
    """The output folder and its record."""

    def __init__(self, root: Path) -> None:
        self.root, self._hidden = root, root / _HIDDEN
        self._lock: Any = None

    def begin(self, run: dict[str, Any], jobs: Sequence[Job], overwrite: bool) -> None:
        """Start a run, or resume it.

        Raises:
            InputError: the folder has a picture of another run, which may not be replaced.
        """
        inner = {parent for job in jobs for parent in Path(job.file).parents}
        for folder in (self._hidden, *(self.root / each for each in sorted(inner - {Path()}))):
            if folder.is_symlink():
                raise InputError(
                    f"{folder}: is a symbolic link, which is not followed; remove it, or use "
                    f"another -o"
                )
        path = self._hidden / "run.json"
        there: Any = None
        if os.path.lexists(path):
            try:
                there = parse_json(read_file(path, 65_536))
            except ValueError:  # InputError is one
                there = {}
        if there == run:
            return
        if not overwrite:
            if there is not None:
                raise InputError(
                    f"{self.root}: has the pictures of another run; use another -o, or --overwrite"
                )
            for job in jobs:
                if os.path.lexists(self.root / job.file):
                    raise InputError(
                        f"{self.root / job.file}: is there already; use another -o, or --overwrite"
                    )
        self._hidden.mkdir(parents=True, exist_ok=True)
        self.lock(0)
        for lines in self._hidden.glob("done-*.jsonl"):
            lines.unlink()
        with whole_file(path, of_process=False) as partial:
            partial.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
        self.unlock()

    def lock(self, process: int) -> None:
        """Lock the folder for this process of the run.

        Raises:
            InputError: another process holds the lock.
        """
        refusal = f"{self.root}: another process writes there; wait for it, or use another -o"
        self._lock = open_lock(self._hidden / f"lock-{process}", refusal)

    def unlock(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def lines(self) -> dict[str, dict[str, Any]]:
        """Return what is recorded of each picture, by its file; damaged lines are left out."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self._hidden.glob("done-*.jsonl")):
            for line in read_file(path, _MOST_BYTES).splitlines():
                checksum, _, data = line.partition(b" ")
                try:
                    row = parse_json(data) if checksum == b"%08x" % zlib.crc32(data) else None
                except ValueError:
                    continue
                if isinstance(row, dict) and all(
                    isinstance(row.get(name), str) for name in ("source", "file", "stamp")
                ):
                    found[row["file"]] = row
        return found

    def is_done(self, job: Job, row: dict[str, Any] | None) -> bool:
        """Return whether a picture was translated and is still there, or cannot be."""
        if row is None or row["source"] != str(job.source):
            return False
        if row["stamp"] != file_stamp(job.source):
            return False
        return "error" in row or bool((found := regular(self.root / job.file)) and found.st_size)

    def add(self, process: int, row: dict[str, Any]) -> None:
        """Record what became of a picture."""
        with open_in_place(self._hidden / f"done-{process}.jsonl") as file:
            file.seek(0, os.SEEK_END)
            # the line before may have been cut off, and is then a damaged line of its own
            data = json.dumps(row).encode()
            line = b"%08x %b" % (zlib.crc32(data), data)
            write_all(file, b"\n" * (file.tell() > 0) + line)

    def write(self, job: Job, content: bytes) -> None:
        """Write a translated picture."""
        path = self.root / job.file
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, of_process=False, synced=False) as partial:
            partial.write_bytes(content)

    def finish(self, jobs: Sequence[Job]) -> tuple[int, int]:
        """Write the manifest and, if pictures failed, the errors; return how many of each."""
        lines = self.lines()
        rows = [lines[job.file] for job in jobs if self.is_done(job, lines.get(job.file))]
        counts = []
        for name, failed in ((MANIFEST, False), (ERRORS, True)):
            part = [row for row in rows if ("error" in row) == failed]
            if part or not failed:
                with whole_file(self.root / name, of_process=False) as partial:
                    text = "".join(json.dumps(_without_stamp(row)) + "\n" for row in part)
                    partial.write_text(text, encoding="utf-8")
            counts.append(len(part))
        return counts[0], counts[1]


class _Work:
    """One process's share of a run."""

    def __init__(
        self,
        translator: Translator,
        jobs: Sequence[Job],
        folder: _Folder,
        settings: TranslationSettings,
        max_pixels: int,
        processes: Processes,
    ) -> None:
        self._translator, self._jobs, self._folder = translator, jobs, folder
        self._settings, self._max_pixels, self._processes = settings, max_pixels, processes
        self.made = self.reduced = 0

    def run(self, batch_size: int, quiet: bool) -> None:
        """Translate this process's pictures that are not there yet."""
        lines = self._folder.lines()
        hidden = quiet or self._processes.rank > 0
        with tqdm(
            total=len(self._jobs), desc="translating", unit="image", delay=2, disable=hidden
        ) as bar:
            for number, start in enumerate(range(0, len(self._jobs), batch_size)):
                block = self._jobs[start : start + batch_size]
                missing = [
                    job for job in block if not self._folder.is_done(job, lines.get(job.file))
                ]
                if missing and number % self._processes.count == self._processes.rank:
                    self._translate(block, missing)
                bar.update(len(block))

    def _translate(self, block: Sequence[Job], missing: Sequence[Job]) -> None:
        """Translate a block of pictures in batches of one size, and write the missing ones."""
        of_size: dict[tuple[int, int], list[tuple[Job, np.ndarray, str]]] = defaultdict(list)
        for job in block:
            stamp = file_stamp(job.source)
            try:
                picture = read_picture(job.source, "translate", self._max_pixels)
            except InputError as error:
                if job in missing:
                    self._record(job, stamp, error=str(error))
                    _LOG.warning("%s", error)
                continue
            whole = picture.size
            picture = scaled(picture, self._settings.max_size)
            if job in missing and picture.size != whole:
                self.reduced += 1
            image = np.asarray(picture)
            of_size[padded_size(image)].append((job, image, stamp))
        for batch in of_size.values():
            made = self._images([image for _, image, _ in batch])
            for (job, _, stamp), image in zip(batch, made, strict=True):
                if job not in missing:
                    continue
                self._folder.write(
                    job, encode(image, self._settings.format, self._settings.quality)
                )
                self._record(job, stamp, width=image.shape[1], height=image.shape[0])
                self.made += 1

    def _record(self, job: Job, stamp: str, **more: Any) -> None:
        row = {"source": str(job.source), "file": job.file, "stamp": stamp, **more}
        self._folder.add(self._processes.rank, row)

    def _images(self, pictures: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the translations of pictures that are of one size when they are padded.

        If memory ends, a batch is translated picture by picture, and a single picture at half its
        size.
        """
        try:
            yield from self._translator.translate(pictures)
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            failure = error
        if len(pictures) > 1:
            for picture in pictures:
                yield from self._images([picture])
            return
        height, width, _ = pictures[0].shape
        if max(height, width) <= _LEAST_SIZE:
            raise InputError(f"out of memory for a picture of {width} x {height}") from failure
        half = max(height, width) // 2
        _LOG.warning("out of memory for a picture of %d x %d: at most %d now", width, height, half)
        smaller = scaled(Image.fromarray(pictures[0]), half)
        yield from self._images([np.asarray(smaller)])


def _without_stamp(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "stamp"}


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _fingerprint(model: CycleGAN) -> str:
    """Return a hash of everything in the model that determines its translations."""
    digest = hashlib.blake2b(repr(changed_fields(model.config)).encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()
