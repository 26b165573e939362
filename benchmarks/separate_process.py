"""A rival in a process of its own.

There PyTorch is as it comes: what a process has asked of its C library (`keep_memory`) cannot be
taken back.
"""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self


class Elsewhere:
    """Calls in another process, while the context lasts.

    Args:
        make: returns, over there, what is to be called.
        arguments: of ``make``.
    """

    def __init__(self, make: Callable[..., Callable[[], object]], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_work, args=(there, make, arguments), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.join()

    def __call__(self) -> None:
        self._here.send(None)
        self._here.recv()


def seconds_elsewhere() -> float:
    """Return what all processes that were started here have computed."""
    ticks = 0
    for process in multiprocessing.active_children():
        # behind the name, which may have spaces in it; user and system time
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
        ticks += sum(map(int, fields.split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _work(
    there: Connection,
    make: Callable[..., Callable[[], object]],
    arguments: tuple[object, ...],
) -> None:
    call = make(*arguments)
    while True:
        there.recv()
        call()
        there.send(None)
