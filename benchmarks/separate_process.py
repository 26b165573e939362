"""A call in a separate process, to measure PyTorch with its default settings.

The benchmarks' own process calls `keep_memory`, which cannot be undone.
"""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self


class SeparateProcess:
    """A function in another process, which runs while the context is open.

    Args:
        make: runs in the other process and returns the function to call there.
        arguments: of ``make``.
    """

    def __init__(self, make: Callable[..., Callable[[], object]], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child_connection = context.Pipe()
        self._process = context.Process(
            target=_work, args=(child_connection, make, arguments), daemon=True
        )

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.join()

    def __call__(self) -> None:
        self._connection.send(None)
        self._connection.recv()


def child_seconds() -> float:
    """Return the CPU seconds of all child processes."""
    ticks = 0
    for process in multiprocessing.active_children():
        # The fields after the name, which may contain spaces; 11 and 12 are user and system time
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
        ticks += sum(map(int, fields.split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _work(
    connection: Connection,
    make: Callable[..., Callable[[], object]],
    arguments: tuple[object, ...],
) -> None:
    call = make(*arguments)
    while True:
        connection.recv()
        call()
        connection.send(None)
