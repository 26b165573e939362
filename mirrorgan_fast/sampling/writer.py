"""Encoding and writing in the background: a thread pool encodes, and one thread writes in order.

The number of results that may wait is bounded.
"""

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

# Images that are passed from thread to thread as one chunk. Passing them one by one would cost more
# time than writing some of them.
_CHUNK_SIZE = 8


class Shard(NamedTuple):
    """The start of a shard: the items that follow belong to it."""

    number: int
    there: int
    """Number of its images that are there already."""


class _Chunk(NamedTuple):
    items: list[Result | Refused]
    encoded: "Future[list[Any]]"  # of the items that are results


class Writer:
    """Takes results in order and writes them to a sink and a journal, in the background.

    Args:
        sink: receives the images.
        journal: receives their rows.
        max_waiting: number of results that may wait here. When there are more, ``put`` blocks until
            there is room.
        workers: number of threads that encode images (default: one per core).
    """

    def __init__(
        self, sink: Sink, journal: Journal, max_waiting: int, workers: int | None = None
    ) -> None:
        self._sink, self._journal = sink, journal
        self.workers = workers or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self.workers, "encode")
        self._waiting: queue.Queue[Shard | _Chunk | None]
        self._waiting = queue.Queue(max(1, max_waiting // _CHUNK_SIZE))
        self._thread = threading.Thread(target=self._run, name="write", daemon=True)
        self._shard = -1
        self._items: list[Result | Refused] = []  # the items of the next chunk
        self._lines: io.FileIO | None = None
        self._shard_of_lines = -1
        self._failed: BaseException | None = None
        self._stopped = False
        self._encoding_lock = threading.Lock()
        self.encoding = 0.0
        """CPU seconds that encoding has taken."""
        self.writing = 0.0
        """Seconds that writing has taken."""
        self.images = 0
        """Number of images written so far."""
        self._thread.start()

    def put(self, item: Result | Refused | Shard) -> None:
        """Take the next item.

        Raises:
            OSError: an earlier item could not be written. Nothing more is written after that.
        """
        if self._failed is not None:
            raise self._failed
        if isinstance(item, Shard):
            self._submit()
            self._shard = item.number
            self._waiting.put(item)
        else:
            self._items.append(item)
            if len(self._items) == _CHUNK_SIZE:
                self._submit()

    def close(self, complete: bool) -> None:
        """Write the items that are still waiting, and stop.

        Args:
            complete: whether the last shard is complete. If not, waiting items are not written, and
                this waits only for encoding and writing that has already started.

        Raises:
            OSError: an item could not be written.
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
        """Put the next chunk in the queue, to be encoded and then written."""
        items, self._items = self._items, []
        if items:
            self._waiting.put(_Chunk(items, self._pool.submit(self._encode, self._shard, items)))

    def _encode(self, shard: int, items: list[Result | Refused]) -> list[Any]:
        start = time.thread_time()
        encoded = [self._sink.encode(shard, item) for item in items if isinstance(item, Result)]
        with self._encoding_lock:
            self.encoding += time.thread_time() - start
        return encoded

    def _run(self) -> None:
        while entry := self._waiting.get():
            if self._failed is None and not self._stopped:  # otherwise only empty the queue
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
        """Write images and then, once all of them are there, their rows."""
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
