"""Compare ours with plain PyTorch and with torch.compile, taking turns."""

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
from benchmarks.separate_process import child_seconds

Call = Callable[[], object]
PartedCall = Callable[[], dict[str, float]]
"""Returns the seconds of its parts, and of the whole as ``step``."""

MAX_OTHERS_SHARE = 0.05
"""Share of the cores that other processes may take during a comparison."""
MIN_SHARE_OF_BEST, MAX_WAIT_SECONDS = 0.75, 60.0
"""A turn waits while the machine reaches less than this share of its highest products per second so
far. All turns together wait at most this many seconds. Other virtual machines on the same processor
take a varying share of it, and no list of processes shows them."""
SPIN_SECONDS = 0.02
"""Seconds to wait after a call: its threads still spin for more work, on the cores that the next
call, possibly in another process, needs."""
SECONDS, MIN_ROUNDS, MAX_ROUNDS = 5.0, 7, 50


@dataclass(frozen=True)
class Work:
    """The least work that any implementation must do."""

    operations: float
    """Multiplications and additions."""
    nbytes: int
    """Read and written: inputs, weights and results, once each."""
    dtype: torch.dtype
    """Of the products."""


class Comparison:
    """A benchmark of ours. Each of its turns follows one of every alternative and of the hardware.

    A turn is an unmeasured call, so that the caches do not depend on the previous turn, and then a
    measured one. It starts when nothing else disturbs the machine.
    """

    def __init__(self, benchmark: BenchmarkFixture, limits: Limits) -> None:
        self._benchmark = benchmark
        self._limits = limits
        self._wait_left = MAX_WAIT_SECONDS

    def run(self, ours: Call, alternatives: dict[str, Call], work: Work, images: int = 0) -> None:
        """Measure, and write the results to the benchmark's ``extra_info``.

        Args:
            ours: what is measured.
            alternatives: what it is compared with, by name.
            work: done by one call of any of them.
            images: made by one call; 0 if it makes none.
        """
        slowest = 0.0
        for call in (ours, *alternatives.values()):
            for _ in range(3):  # compiles, packs, allocates
                call()
            slowest += _seconds(call)
        rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(SECONDS / slowest / 2)))
        turns: dict[str, list[float]] = {name: [] for name in alternatives}
        limits: list[float] = []

        def others() -> None:
            for name, call in alternatives.items():
                self._operations(work.dtype)
                call()
                turns[name].append(_seconds(call))
            limits.append(
                max(
                    work.nbytes / self._limits.copied(),
                    work.operations / self._operations(work.dtype),
                )
            )
            ours()

        before = OtherProcesses()
        self._benchmark.pedantic(ours, setup=others, rounds=rounds)
        self._refuse_other_processes(before)
        mine = self._benchmark.stats.stats.data
        info: dict[str, Any] = self._benchmark.extra_info
        info["median_ms"] = statistics.median(mine) * 1e3
        for name, theirs in turns.items():
            ratios = [a / b for a, b in zip(theirs, mine, strict=True)]
            info[f"times_{name}"] = statistics.median(ratios)
        info["share_of_limit"] = statistics.median(
            [a / b for a, b in zip(limits, mine, strict=True)]
        )
        info["threads"] = torch.get_num_threads()
        if images:
            info["images_per_second"] = images / statistics.median(mine)

    def run_parts(self, ours: PartedCall, alternatives: dict[str, PartedCall], work: Work) -> None:
        """Measure calls that take seconds and measure their parts themselves, such as a step.

        A turn is one call: the caches hold too little of it to matter. Besides what ``run`` writes
        to ``extra_info``, there are the figures of each part.
        """
        for call in (ours, *alternatives.values()):
            for _ in range(2):  # compiles, allocates
                call()
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in alternatives}
        mine: list[dict[str, float]] = []
        limits: list[float] = []

        def others() -> None:
            for name, call in alternatives.items():
                self._operations(work.dtype)
                turns[name].append(call())
            copying = work.nbytes / self._limits.copied()
            limits.append(max(copying, work.operations / self._operations(work.dtype)))

        before = OtherProcesses()
        self._benchmark.pedantic(lambda: mine.append(ours()), setup=others, rounds=MIN_ROUNDS)
        self._refuse_other_processes(before)

        def figures(part: str) -> dict[str, float]:
            own = [turn[part] for turn in mine]
            found = {"median_ms": statistics.median(own) * 1e3}
            for name, theirs in turns.items():
                ratios = [turn[part] / seconds for turn, seconds in zip(theirs, own, strict=True)]
                found[f"times_{name}"] = statistics.median(ratios)
            return found

        info: dict[str, Any] = self._benchmark.extra_info
        info |= figures("step")
        info["share_of_limit"] = statistics.median(
            [a / turn["step"] for a, turn in zip(limits, mine, strict=True)]
        )
        info["threads"] = torch.get_num_threads()
        info["parts"] = {part: figures(part) for part in mine[0] if part != "step"}

    def _refuse_other_processes(self, before: "OtherProcesses") -> None:
        """Fail if other processes took much of the cores since then."""
        taken = before.share()
        if taken > MAX_OTHERS_SHARE:
            self._benchmark.has_error = True  # so that it is not reported
            pytest.fail(
                f"other processes took {taken:.0%} of the cores during the comparison, so its "
                f"figures mean nothing; run it again on a quiet machine"
            )

    def _operations(self, dtype: torch.dtype) -> float:
        """Return the machine's operations per second, after waiting until it is undisturbed."""
        while True:
            start = time.monotonic()
            time.sleep(SPIN_SECONDS)
            now = self._limits.operations(dtype)
            if now >= MIN_SHARE_OF_BEST * self._limits.fastest[dtype] or self._wait_left <= 0:
                return now
            self._wait_left -= time.monotonic() - start


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class OtherProcesses:
    """Measures the share of the cores that other processes take, from now on."""

    def __init__(self) -> None:
        self._start = self._now()

    def share(self) -> float:
        """Return the share of all core time since the start."""
        total, taken = (b - a for a, b in zip(self._start, self._now(), strict=True))
        return max(0.0, taken / total)

    @staticmethod
    def _now() -> tuple[float, float]:
        """Return the seconds of all cores, and those of other processes or virtual machines."""
        columns = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
        user, nice, system, idle, waiting, interrupt, soft_interrupt, stolen = map(int, columns)
        busy = user + nice + system + interrupt + soft_interrupt + stolen
        ticks = os.sysconf("SC_CLK_TCK")
        own = time.process_time() + child_seconds()
        return (busy + idle + waiting) / ticks, busy / ticks - own
