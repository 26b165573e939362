"""Ours against plain PyTorch and against what torch.compile makes of it, turn by turn."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.limits import Limits
from benchmarks.separate_process import seconds_elsewhere

Call = Callable[[], object]

MOST_OF_OTHERS = 0.05
"""Share of the cores that other processes may take during a contest."""
LEAST_OF_ITS_BEST, PATIENCE = 0.75, 60.0
"""Share of the products a second that the machine reached before, below which a turn waits, and for
how many seconds all turns together do: what another machine on the same processor takes is in no
list of processes, and it comes and goes."""
SPINNING = 0.02
"""Seconds for which the threads of a call look for more work, on the cores that the next one, maybe
in another process, needs."""
SECONDS, LEAST_ROUNDS, MOST_ROUNDS = 5.0, 7, 50


@dataclass(frozen=True)
class Work:
    """What has to be done at least, whoever does it."""

    operations: float
    """Multiplications and additions."""
    nbytes: int
    """Read and written: inputs, weights and results, once each."""
    dtype: torch.dtype
    """Of the products."""


class Contest:
    """One benchmark of ours, with a turn of every rival and of the machine before each of its own.

    A turn is a call that is not measured, so that nobody meets what the one before left in the
    caches, and one that is. It begins when nobody disturbs the machine.
    """

    def __init__(self, benchmark: BenchmarkFixture, limits: Limits) -> None:
        self._benchmark = benchmark
        self._limits = limits
        self._patience = PATIENCE

    def run(self, ours: Call, rivals: dict[str, Call], work: Work, images: int = 0) -> None:
        """Measure; what was found is in the benchmark's ``extra_info``.

        Args:
            ours: what is measured.
            rivals: what it is compared with, by name.
            work: what is done in one call of any of them.
            images: how many one call makes; 0: it makes none.
        """
        slowest = 0.0
        for call in (ours, *rivals.values()):
            for _ in range(3):  # compiles, packs, makes room
                call()
            slowest += _seconds(call)
        rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(SECONDS / slowest / 2)))
        turns: dict[str, list[float]] = {name: [] for name in rivals}
        at_best: list[float] = []

        def others() -> None:
            for name, call in rivals.items():
                self._operations(work.dtype)
                call()
                turns[name].append(_seconds(call))
            at_best.append(
                max(
                    work.nbytes / self._limits.copied(),
                    work.operations / self._operations(work.dtype),
                )
            )
            ours()

        before = OfOthers()
        self._benchmark.pedantic(ours, setup=others, rounds=rounds)
        taken = before.share()
        if taken > MOST_OF_OTHERS:
            self._benchmark.has_error = True  # so that nothing of it is reported
            pytest.fail(
                f"other processes took {taken:.0%} of the cores meanwhile: the figures mean "
                f"nothing; run it again on a quiet machine"
            )
        mine = self._benchmark.stats.stats.data
        info: dict[str, Any] = self._benchmark.extra_info
        info["median_ms"] = statistics.median(mine) * 1e3
        for name, theirs in turns.items():
            ratios = [a / b for a, b in zip(theirs, mine, strict=True)]
            info[f"times_{name}"] = statistics.median(ratios)
        info["share_of_limit"] = statistics.median(
            [a / b for a, b in zip(at_best, mine, strict=True)]
        )
        info["threads"] = torch.get_num_threads()
        if images:
            info["images_per_second"] = images / statistics.median(mine)

    def _operations(self, dtype: torch.dtype) -> float:
        """Return what the machine can do in a second, if need be once it is undisturbed."""
        while True:
            start = time.monotonic()
            time.sleep(SPINNING)
            now = self._limits.operations(dtype)
            if now >= LEAST_OF_ITS_BEST * self._limits.fastest[dtype] or self._patience <= 0:
                return now
            self._patience -= time.monotonic() - start


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class OfOthers:
    """How much of the cores is not ours, from now on."""

    def __init__(self) -> None:
        self._start = self._now()

    def share(self) -> float:
        """Return it as a share of what there is, since the start."""
        total, taken = (b - a for a, b in zip(self._start, self._now(), strict=True))
        return max(0.0, taken / total)

    @staticmethod
    def _now() -> tuple[float, float]:
        """Seconds of all cores, and those in which others ran or the machine was lent away."""
        columns = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
        user, nice, system, idle, waiting, interrupt, soft_interrupt, stolen = map(int, columns)
        busy = user + nice + system + interrupt + soft_interrupt + stolen
        ticks = os.sysconf("SC_CLK_TCK")
        own = time.process_time() + seconds_elsewhere()
        return (busy + idle + waiting) / ticks, busy / ticks - own
