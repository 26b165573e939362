"""From a file of captions to a folder of images, which can be stopped at any moment and gone on."""

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
from mirrorgan_fast.sampling.writer import Shard, Writer


@dataclass(frozen=True)
class Summary:
    """What a run of ``sample_to_folder`` did."""

    images: int
    """In the folder now."""
    made: int
    """Of them, in this run."""
    refused: int
    """Captions that no image could be made of."""
    seconds: float
    stages: dict[str, float]
    """Images a second that each stage could do by itself: "captions" (reading, tokens, noise),
    "model", "encode" (on all cores), "write". That of this process, under torchrun."""

    process: int
    """Which one this is, from 0, of ``processes``."""
    processes: int

    def table(self) -> str:
        """Return the speed of each stage, and which is the limit."""
        lines = [f"{'stage':<10}{'images/s':>12}"]
        lines += [f"{name:<10}{rate:>12,.1f}" for name, rate in self.stages.items()]
        lines.append(f"{'all':<10}{self.made / self.seconds:>12,.1f}")
        if self.made:
            lines.append(f"the limit: {min(self.stages, key=self.stages.__getitem__)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class SamplingSettings:
    """All that decides the images and their files, except the model and the captions.

    Raises:
        InputError: a value is out of range.
    """

    seed: int = bounded(0, 0, SEEDS - 1)
    per_caption: int = bounded(1, 1, 10**9)
    """Images of each caption."""
    psi: float = bounded(1.0, 0, 1)
    """Factor of the noise, 0 to 1 (see ``Sampler.stream``)."""
    format: str = "png"
    """One of ``sinks.FORMATS``."""
    quality: int = bounded(95, 1, 100)
    """Of JPEG and WebP, 1 to 100."""
    shard_size: int = bounded(1000, 1, 10**9)
    """Images of a folder, tar or array, rounded down to whole captions."""
    flat: bool = False
    """Whether files of one image are in the folder itself, not in one for each shard."""

    def __post_init__(self) -> None:
        check_psi(self.psi)
        check_format(self.format, self.quality)
        check_fields(self, "sampling settings")


def sample_to_folder(
    sampler: Sampler,
    captions: Captions,
    folder: str | os.PathLike[str],
    settings: SamplingSettings | None = None,
    *,
    sink: Sink | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    quiet: bool = True,
) -> Summary:
    """Make images of captions and write them, with a manifest, into a folder.

    If it is stopped or killed, the same call goes on where it was: each image is there once and
    whole. Captions that no image can be made of are in errors.jsonl, and stop nothing. The
    processes that ``torchrun`` starts take turns at the shards.

    Args:
        sampler: makes the images.
        captions: are read once, as a stream.
        folder: made if need be.
        settings: decide the images and their files.
        sink: one of your own in place of that of the settings' format.
        overwrite: whether the output of another run is replaced. (That of the same run, as far as
            it is there, is kept.)
        workers: threads that encode (default: one a core).
        quiet: whether there is no progress bar.

    Raises:
        InputError: the folder has output of another run, or something that is not understood; the
            captions are not those that it was begun with; or something cannot be written.
    """
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
    processes = Processes()
    if processes.count > 1 and not captions.repeatable:
        raise InputError(f"{captions.name}: several processes cannot read it; give them a file")
    captions.prepare()
    journal = Journal(Path(folder))
    start = time.perf_counter()
    begun = False
    try:
        refusal: InputError | OSError | None = None
        if processes.rank == 0:
            try:
                journal.begin(run, overwrite)
            except (InputError, OSError) as error:  # which the others are to know of
                refusal = error
        if processes.total(int(refusal is not None)) != [0]:
            raise refusal or InputError(f"process {processes.rank}: stops, as process 0 does")
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
            f"{error.filename or folder}: cannot be written ({reason(error)}); once it can, the "
            "same command goes on from here"
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
        captions: Captions,
        settings: SamplingSettings,
        journal: Journal,
        sink: Sink,
        processes: Processes,
    ) -> None:
        self._sampler, self._captions, self._settings = sampler, captions, settings
        self._journal, self._sink, self._processes = journal, sink, processes
        self._asked = self._there_already = 0  # images
        self._seconds = {"captions": 0.0, "model": 0.0}

    def run(self, workers: int | None, quiet: bool) -> Writer:
        """Make what is not there yet; return who has written it."""
        sampler = self._sampler
        self._asked = self._there_already = 0
        painted, start, waited = sampler.seconds, time.perf_counter(), 0.0
        bar = tqdm(
            desc="sampling", unit="image", delay=2, disable=quiet or self._processes.rank > 0
        )
        complete = False
        with Interrupts() as interrupts:
            interrupts.hold()
            # while what was read ahead is being encoded, as much is being painted
            most = 2 * AHEAD * sampler.batch_size
            writer = Writer(self._sink, self._journal, most, workers)
            try:
                interrupts.release()
                refused = 0
                results: Iterator[Result | Refused | Shard]
                results = sampler.stream(self._items(), self._settings.psi)
                for item in results:
                    if isinstance(item, Refused):
                        if item.line == refused:
                            continue  # the same caption once more
                        refused = item.line
                    elif not isinstance(item, Shard):
                        bar.total = self._expected()
                        with suppress(OSError):  # nobody looks any more
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
        self._seconds["model"] = sampler.seconds - painted
        self._seconds["captions"] = total - waited - self._seconds["model"]
        return writer

    def stages(self, writer: Writer) -> dict[str, float]:
        """Return the images a second of each stage."""
        seconds = {
            **self._seconds,
            "encode": writer.encoding / writer.workers,
            "write": writer.writing,
        }
        return {name: writer.images / max(taken, 1e-9) for name, taken in seconds.items()}

    def _expected(self) -> int | None:
        """Return how many images are to be made, as far as can be told."""
        share = self._captions.share
        return None if share is None else round(self._asked / share) - self._there_already

    def _items(self) -> Iterator[Request | Refused | Shard]:
        """Yield the captions of this process's shards, without what is there already."""
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
                rows, count = self._there(shard)
                yield Shard(shard, count)
            yield from self._wanted(line, record, rows)
        self._check(not rows and max(self._journal.shards(), default=0) <= shard, line + 1)

    def _there(self, shard: int) -> tuple[deque[Row], int]:
        """Return what is written of a shard and still there, and how many images that is."""
        rows = list(self._journal.read(shard))
        images = [place for place, row in enumerate(rows) if "error" not in row]
        whole = self._sink.whole(shard, [rows[place] for place in images])
        if whole < len(images):
            del rows[images[whole] :]
        self._journal.keep(shard, len(rows))
        self._there_already += whole
        return deque(rows), whole

    def _wanted(self, line: int, record: Record, rows: deque[Row]) -> Iterator[Request | Refused]:
        """Yield what is wanted of a record, without what is in the rows, and take it from there."""
        settings = self._settings
        parsed = parse(line, record, seed=settings.seed, per_caption=settings.per_caption)
        wanted = parsed.images if isinstance(parsed, Line) else 1
        self._asked += wanted
        for k in range(wanted):
            item = parsed.request(k) if isinstance(parsed, Line) else parsed
            if not rows:
                yield item
                continue
            row = rows.popleft()
            self._check(row["line"] == line, line)
            if "error" in row:
                text = item.text if isinstance(item, Refused) else item.caption[:BEGINNING]
                self._check(row["text"] == text, line)
                return  # it stands for all images of the line
            made = (row["caption"], row["seed"], row["index"])
            self._check(
                isinstance(item, Request) and made == (item.caption, item.seed, item.index), line
            )

    def _check(self, same: bool, line: int) -> None:
        if not same:
            raise _OtherCaptionsError(
                f"{self._captions.name}, line {line}: is not what it was when "
                f"{self._journal.folder} was begun; use another -o, or for a file --overwrite"
            )


def _fingerprint(model: TextToImage) -> str:
    """Return what changes with anything of the model that decides images."""
    digest = hashlib.blake2b(digest_size=16)
    about = (model.SYSTEM, changed_fields(model.config), model.vocabulary.words)
    digest.update(repr(about).encode())
    for part in (model.stem, model.glam):
        for name, tensor in part.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()
