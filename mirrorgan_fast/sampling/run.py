"""Sampling from a file of captions to a folder of images. A run can be stopped and resumed."""

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.fields import bounded, changed_fields, check_fields
from mirrorgan_fast.files import reason
from mirrorgan_fast.interrupts import Interrupts
from mirrorgan_fast.models.text_to_image import SEEDS, TextToImage
from mirrorgan_fast.processes import Processes
from mirrorgan_fast.sampling.caption_files import Captions
from mirrorgan_fast.sampling.captions import BEGINNING, Line, Record, Refused, Request, parse
from mirrorgan_fast.sampling.journal import Journal
from mirrorgan_fast.sampling.sampler import AHEAD, Result, Sampler, check_psi
from mirrorgan_fast.sampling.sinks import LOSSY, Row, Sink, check_format, open_sink
from mirrorgan_fast.sampling.text_vectors import TextVectors
from mirrorgan_fast.sampling.writer import Shard, Writer


@dataclass(frozen=True)
class Summary:
    """What a run of ``sample_to_folder`` did."""

    images: int
    """Number of images that are in the folder now."""
    made: int
    """Number of images that this call made."""
    refused: int
    """Number of captions from which no image could be made."""
    seconds: float
    """Duration of the call."""
    stages: dict[str, float]
    """Images per second that each stage could process by itself: "captions" (reading, tokens,
    noise), "model", "encode" (on all cores), "write". Under torchrun, these are the rates of this
    process."""

    process: int
    """Index of this process, from 0."""
    processes: int
    """Number of processes."""

    def table(self) -> str:
        """Return a table with the speed of each stage and the name of the slowest one."""
        lines = [f"{'stage':<10}{'images/s':>12}"]
        lines += [f"{name:<10}{rate:>12,.1f}" for name, rate in self.stages.items()]
        lines.append(f"{'all':<10}{self.made / self.seconds:>12,.1f}")
        if self.made:
            lines.append(f"the limit: {min(self.stages, key=self.stages.__getitem__)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class SamplingSettings:
    """Everything that determines the images and their files, except the model and the captions.

    Raises:
        InputError: a value is out of range.
    """

    seed: int = bounded(0, 0, SEEDS - 1)
    per_caption: int = bounded(1, 1, 10**9)
    """Number of images per caption."""
    psi: float = bounded(1.0, 0, 1)
    """Factor that multiplies the noise, 0 to 1 (see ``Sampler.stream``)."""
    format: str = "png"
    """One of ``sinks.FORMATS``."""
    quality: int = bounded(95, 1, 100)
    """Quality of JPEG and WebP files, 1 to 100."""
    shard_size: int = bounded(1000, 1, 10**9)
    """Number of images per folder, tar or array, rounded down to whole captions."""
    flat: bool = False
    """Whether image files are written directly into the output folder, rather than into one folder
    per shard."""

    def __post_init__(self) -> None:
        check_psi(self.psi)
        check_format(self.format, self.quality)
        check_fields(self, "sampling settings")


def sample_to_folder(
    sampler: Sampler,
    captions: Captions | TextVectors,
    folder: str | os.PathLike[str],
    settings: SamplingSettings | None = None,
    *,
    sink: Sink | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    quiet: bool = True,
) -> Summary:
    """Generate images from captions and write them, with a manifest, into a folder.

    A run can be stopped or killed at any moment. The same call then resumes it, and in the end each
    image is there exactly once and is complete. Captions from which no image can be made are listed
    in errors.jsonl and do not stop the run. The processes that ``torchrun`` starts take turns at
    the shards.

    Args:
        sampler: generates the images.
        captions: the captions or the text vectors, which are read as a stream: captions once,
            vectors twice, because the run is of these vectors alone.
        folder: the output folder, which is created if necessary.
        settings: what determines the images and their files.
        sink: a sink of your own, which replaces the one for the settings' format.
        overwrite: whether the output of another run is replaced. (Existing output of the same run
            is kept.)
        workers: number of threads that encode images (default: one per core).
        quiet: whether to hide the progress bar.

    Raises:
        InputError: the folder has output of another run or contents that cannot be understood, the
            captions are not those with which the run was started or of the kind that the model
            reads, or a file cannot be written.
    """
    sampler.model.config.check_text(captions.vector_size)
    settings = settings or SamplingSettings()
    run = {
        "model": _fingerprint(sampler.model),
        "dtype": str(sampler.dtype).removeprefix("torch."),
        "device": sampler.device.type,
        "sink": "" if sink is None else type(sink).__name__,
        **asdict(settings),
    }
    if not settings.format.endswith(LOSSY):
        del run["quality"]
    sink = sink or open_sink(
        settings.format,
        folder,
        flat=settings.flat,
        quality=settings.quality,
        image_size=sampler.model.config.image_size,
    )
    processes = Processes.join()
    if processes.count > 1 and not captions.repeatable:
        raise InputError(f"{captions.name}: several processes cannot read it; give them a file")
    captions.prepare(quiet=quiet or processes.rank > 0)
    if captions.digest:
        run["text_vectors"] = captions.digest
    journal = Journal(Path(folder))
    start = time.perf_counter()
    begun = False
    try:
        processes.once(lambda: journal.begin(run, overwrite))
        if processes.rank > 0:
            journal.join(run, processes.rank)
        begun = True
        job = _Job(sampler, captions, settings, journal, sink, processes)
        try:
            writer = job.run(workers, quiet)
        except _OtherCaptionsError:
            if not (overwrite and processes.count == 1 and captions.repeatable):
                raise
            journal.begin_anew(run)
            writer = job.run(workers, quiet)
        (made,) = processes.total(writer.images)
        images, refused = processes.total(*(journal.assemble() if processes.rank == 0 else (0, 0)))
    except KeyboardInterrupt:
        if begun and processes.count == 1:
            journal.assemble()
        raise
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: cannot be written ({reason(error)}); once it can, run "
            "the same command again to resume"
        ) from error
    finally:
        journal.unlock()
        processes.close()
    return Summary(
        images=images,
        made=made,
        refused=refused,
        seconds=time.perf_counter() - start,
        stages=job.stages(writer),
        process=processes.rank,
        processes=processes.count,
    )


class _OtherCaptionsError(InputError):
    pass


class _Job:
    """One process's share of a run."""

    def __init__(
        self,
        sampler: Sampler,
        captions: Captions | TextVectors,
        settings: SamplingSettings,
        journal: Journal,
        sink: Sink,
        processes: Processes,
    ) -> None:
        self._sampler, self._captions, self._settings = sampler, captions, settings
        self._journal, self._sink, self._processes = journal, sink, processes
        self._requested = self._existing = 0  # numbers of images
        self._seconds = {"captions": 0.0, "model": 0.0}

    def run(self, workers: int | None, quiet: bool) -> Writer:
        """Make the images that are not there yet, and return the writer that wrote them."""
        sampler = self._sampler
        self._requested = self._existing = 0
        model_seconds, start, waited = sampler.seconds, time.perf_counter(), 0.0
        bar = tqdm(
            desc="sampling", unit="image", delay=2, disable=quiet or self._processes.rank > 0
        )
        complete = False
        with Interrupts() as interrupts:
            interrupts.hold()
            # Room for two windows: one is being encoded while the next one is being generated.
            max_waiting = 2 * AHEAD * sampler.batch_size
            writer = Writer(self._sink, self._journal, max_waiting, workers)
            try:
                interrupts.release()
                refused = 0
                results: Iterator[Result | Refused | Shard]
                results = sampler.stream(self._items(), self._settings.psi)
                for item in results:
                    if isinstance(item, Refused):
                        if item.line == refused:
                            continue  # another image of the same caption
                        refused = item.line
                    elif not isinstance(item, Shard):
                        bar.total = self._expected()
                        with suppress(OSError):  # the terminal may be closed
                            bar.update()
                    before = time.perf_counter()
                    interrupts.hold()
                    writer.put(item)
                    interrupts.release()
                    waited += time.perf_counter() - before
                complete = True
            finally:
                interrupts.hold()
                total = time.perf_counter() - start
                with suppress(OSError):
                    bar.close()
                writer.close(complete)
            interrupts.release()
        self._seconds["model"] = sampler.seconds - model_seconds
        self._seconds["captions"] = total - waited - self._seconds["model"]
        return writer

    def stages(self, writer: Writer) -> dict[str, float]:
        """Return the images per second of each stage."""
        seconds = {
            **self._seconds,
            "encode": writer.encoding / writer.workers,
            "write": writer.writing,
        }
        return {name: writer.images / max(taken, 1e-9) for name, taken in seconds.items()}

    def _expected(self) -> int | None:
        """Estimate how many images this process makes; None if that cannot be estimated."""
        share = self._captions.share
        return None if share is None else round(self._requested / share) - self._existing

    def _items(self) -> Iterator[Request | Refused | Shard]:
        """Yield this process's shards and their items, except those that were made earlier."""
        captions_of_shard = max(1, self._settings.shard_size // self._settings.per_caption)
        rows: deque[Row] = deque()
        line, shard, begun = 0, 0, -1
        for line, record in self._captions.records():
            shard = (line - 1) // captions_of_shard
            if shard % self._processes.count != self._processes.rank:
                continue
            if shard != begun:
                self._check(not rows, line)
                begun = shard
                rows, count = self._existing_rows(shard)
                yield Shard(shard, count)
            yield from self._missing(line, record, rows)
        self._check(not rows and max(self._journal.shards(), default=0) <= shard, line + 1)

    def _existing_rows(self, shard: int) -> tuple[deque[Row], int]:
        """Return the rows of a shard whose images are still there, and the number of images."""
        rows = list(self._journal.read(shard))
        images = [place for place, row in enumerate(rows) if "error" not in row]
        whole = self._sink.whole(shard, [rows[place] for place in images])
        if whole < len(images):
            del rows[images[whole] :]
        self._journal.keep(shard, len(rows))
        self._existing += whole
        return deque(rows), whole

    def _missing(self, line: int, record: Record, rows: deque[Row]) -> Iterator[Request | Refused]:
        """Yield the items of a record that have no row yet.

        The rows of the other items are checked against the record and removed from ``rows``.
        """
        settings = self._settings
        parsed = parse(
            line,
            record,
            seed=settings.seed,
            per_caption=settings.per_caption,
            boxes=self._sampler.model.config.places,
        )
        number = parsed.images if isinstance(parsed, Line) else 1
        self._requested += number
        for k in range(number):
            item = parsed.request(k) if isinstance(parsed, Line) else parsed
            if not rows:
                yield item
                continue
            row = rows.popleft()
            self._check(row["line"] == line, line)
            if "error" in row:
                text = item.text if isinstance(item, Refused) else item.caption[:BEGINNING]
                self._check(row["text"] == text, line)
                return  # this row stands for all images of the line
            made = (row["caption"], row["seed"], row["index"], row.get("box"))
            if isinstance(item, Request):
                box = None if item.box is None else [*item.box]
                self._check(made == (item.caption, item.seed, item.index, box), line)
            else:
                self._check(False, line)

    def _check(self, same: bool, line: int) -> None:
        if not same:
            raise _OtherCaptionsError(
                f"{self._captions.name}, line {line}: has changed since {self._journal.folder} was "
                "started; use another -o, or for a file --overwrite"
            )


def _fingerprint(model: TextToImage) -> str:
    """Return a hash of everything in the model that determines its images."""
    digest = hashlib.blake2b(digest_size=16)
    description = (model.SYSTEM, changed_fields(model.config), model.vocabulary.words)
    digest.update(repr(description).encode())
    tensors = [
        (name, tensor)
        for part in model.image_parts
        for name, tensor in model.get_submodule(part).state_dict().items()
    ]
    for name, tensor in (*tensors, *model.named_buffers(recurse=False)):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
