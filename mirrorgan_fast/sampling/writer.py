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
from mirrorgan_fast.sampling.journal import Journal, image_row, refused_row
from mirrorgan_fast.sampling.sampler import Result
from mirrorgan_fast.sampling.sinks import Sink


class Shard(NamedTuple):
    """What follows is of this shard."""

    number: int
    there: int
    """How many of its images are there already."""


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
        self._waiting: queue.Queue[tuple[Any, Future[Any] | None] | None] = queue.Queue(most)
        self._thread = threading.Thread(target=self._run, name="write")
        self._shard = -1
        self._lines: io.FileIO | None = None
        self._failed: BaseException | None = None
        self._stopped = False
        self.encoding = 0.0
        """Seconds of a processor that encoding has taken."""
        self._one_at_a_time = threading.Lock()
        self.writing = 0.0
        """Seconds that writing has taken."""
        self.images = 0
        """Written so far."""
        self.refused = 0
        self._thread.start()

    def put(self, item: Result | Refused | Shard) -> None:
        """Take the next item.

        Raises:
            OSError: one before it could not be written; nothing more will be.
        """
        if self._failed is not None:
            raise self._failed
        future = None
        if isinstance(item, Shard):
            self._shard = item.number
        elif isinstance(item, Result):
            future = self._pool.submit(self._encode, self._shard, item)
        self._waiting.put((item, future))

    def close(self, complete: bool) -> None:
        """Write what waits, and end.

        Args:
            complete: whether the last shard is complete; if not, only what is being encoded is
                waited for.

        Raises:
            OSError: something could not be written.
        """
        self._stopped = not complete
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

    def _encode(self, shard: int, result: Result) -> Any:
        start = time.thread_time()
        encoded = self._sink.encode(shard, result)
        with self._one_at_a_time:
            self.encoding += time.thread_time() - start
        return encoded

    def _run(self) -> None:
        while entry := self._waiting.get():
            if self._failed is None and not self._stopped:  # else make room, that nobody waits
                try:
                    self._take(*entry)
                except BaseException as error:
                    self._failed = error

    def _take(self, item: Result | Refused | Shard, future: Future[Any] | None) -> None:
        encoded = None if future is None else future.result()
        start = time.perf_counter()
        if isinstance(item, Shard):
            if self._lines is not None:
                self._sink.end()
                self._lines.close()
            self._sink.begin(item.number, item.there)
            self._lines = self._journal.append_to(item.number)
        else:
            assert self._lines is not None
            if isinstance(item, Refused):
                write_all(self._lines, refused_row(item))
                self.refused += 1
            else:
                write_all(self._lines, image_row(item, self._sink.write(item, encoded)))
                self.images += 1
        self.writing += time.perf_counter() - start
