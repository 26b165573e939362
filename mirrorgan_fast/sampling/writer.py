"""Encoding and writing beside the model: a bounded pool, and a thread that keeps the order."""

import io
import os
import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from mirrorgan_fast.files import write_all
from mirrorgan_fast.sampling.captions import Refused
from mirrorgan_fast.sampling.journal import Journal
from mirrorgan_fast.sampling.rows import refused_row
from mirrorgan_fast.sampling.sampler import Result
from mirrorgan_fast.sampling.sinks import Sink

# Images that go together from thread to thread, which costs more than some of them to write.
_TOGETHER = 8


class Shard(NamedTuple):
    """What follows is of this shard."""

    number: int
    there: int
    """How many of its images are there already."""


class _Chunk(NamedTuple):
    items: list[Result | Refused]
    encoded: "Future[list[Any]]"  # of those that are results


class Writer:
    """Takes results in order and writes them into a sink and a journal, in the background.

    Args:
        sink: where images go.
        journal: where their lines go.
        most: results that may wait here; whoever brings more waits for room.
        workers: threads that encode (default: one a core).
    """

    def __init__(self, sink: Sink, journal: Journal, most: int, workers: int | None = None) -> None:
        self._sink, self._journal = sink, journal
        self.workers = workers or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self.workers, "encode")
        self._waiting: queue.Queue[Shard | _Chunk | None] = queue.Queue(max(1, most // _TOGETHER))
        self._thread = threading.Thread(target=self._run, name="write", daemon=True)
        self._shard = -1
        self._items: list[Result | Refused] = []  # of the next chunk
        self._lines: io.FileIO | None = None
        self._shard_of_lines = -1
        self._failed: BaseException | None = None
        self._stopped = False
        self._one_at_a_time = threading.Lock()
        self.encoding = 0.0
        """Seconds of a processor that encoding has taken."""
        self.writing = 0.0
        """Seconds that writing has taken."""
        self.images = 0
        """Written so far."""
        self._thread.start()

    def put(self, item: Result | Refused | Shard) -> None:
        """Take the next item.

        Raises:
            OSError: one before it could not be written; nothing more will be.
        """
        if self._failed is not None:
            raise self._failed
        if isinstance(item, Shard):
            self._submit()
            self._shard = item.number
            self._waiting.put(item)
        else:
            self._items.append(item)
            if len(self._items) == _TOGETHER:
                self._submit()

    def close(self, complete: bool) -> None:
        """Write what waits, and end.

        Args:
            complete: whether the last shard is complete; if not, only what is being encoded is
                waited for.

        Raises:
            OSError: something could not be written.
        """
        self._stopped = not complete
        self._submit()
        self._waiting.put(None)
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        try:
            if self._failed is None and complete and self._lines is not None:
                self._sink.end()
        finally:
            self._sink.close()
            if self._lines is not None:
                self._lines.close()
        if self._failed is not None:
            raise self._failed

    def _submit(self) -> None:
        """Have the next chunk encoded, and then written."""
        items, self._items = self._items, []
        if items:
            self._waiting.put(_Chunk(items, self._pool.submit(self._encode, self._shard, items)))

    def _encode(self, shard: int, items: list[Result | Refused]) -> list[Any]:
        start = time.thread_time()
        encoded = [self._sink.encode(shard, item) for item in items if isinstance(item, Result)]
        with self._one_at_a_time:
            self.encoding += time.thread_time() - start
        return encoded

    def _run(self) -> None:
        while entry := self._waiting.get():
            if self._failed is None and not self._stopped:  # else make room, that nobody waits
                try:
                    if isinstance(entry, Shard):
                        self._begin(entry)
                    else:
                        self._write(entry.items, entry.encoded.result())
                except BaseException as error:
                    self._failed = error

    def _begin(self, shard: Shard) -> None:
        if self._lines is not None:
            self._sink.end()
            self._lines.close()
        self._sink.begin(shard.number, shard.there)
        self._lines = self._journal.append_to(shard.number)
        self._shard_of_lines = shard.number

    def _write(self, items: list[Result | Refused], encoded: list[Any]) -> None:
        """Write images and then, as these are there now, their lines."""
        assert self._lines is not None
        start = time.perf_counter()
        parts = iter(encoded)
        rows = [
            refused_row(item)
            if isinstance(item, Refused)
            else self._journal.image_row(item, self._sink.write(item, next(parts)))
            for item in items
        ]
        write_all(self._lines, self._journal.seal(self._shard_of_lines, rows))
        self.images += len(encoded)
        self.writing += time.perf_counter() - start
