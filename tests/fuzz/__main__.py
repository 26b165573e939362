"""Test the commands that read files with damaged and malicious files."""

import argparse
import gc
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

# What commands import at their start, and Adam at its first step, is imported once for all cases
import torch._dynamo

import mirrorgan_fast.evaluation.report
import mirrorgan_fast.training.chain  # noqa: F401
from tests.fuzz import (
    captions,
    checkpoints,
    journals,
    models,
    pickles,
    pictures,
    translations,
    vectors,
)
from tests.fuzz.cases import Case, Outcome, run

_MODULES = (captions, models, checkpoints, journals, pickles, pictures, translations, vectors)
_KINDS = {module.__name__.rpartition(".")[2]: module for module in _MODULES}
_MAX_SHOWN = 1000  # characters of an error
_TABLE = "{:12}{:>7}{:>10}  {:36}{:>7}{:>9}{:>9}{:>8}"
_HEADING = ("kind", "cases", "captions", "exit status: cases", "failed", "slowest", "memory", "all")


class _Kind:
    """The cases of a kind, in their own folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder = name, folder / name
        self._folder.mkdir()
        self._given = _KINDS[name].prepare(self._folder)

    def make(self, seed: int) -> tuple[Case, Path]:
        """Write the files of a case."""
        folder = self._folder / f"{seed}" / "files"
        folder.mkdir(parents=True)
        return _KINDS[self.name].make(random.Random(seed), self._given, folder), folder

    def run(self, seed: int) -> tuple[int, Outcome, list[str]]:
        """Run a case; return its caption count, its outcome, and lines to print if it failed."""
        case, folder = self.make(seed)
        outcome, faults = run(case, folder)
        shutil.rmtree(folder.parent)
        stderr = outcome.stderr[-_MAX_SHOWN:].decode("utf-8", "replace").splitlines()[-3:]
        lines = [f"FAILED --kind {self.name} --case {seed}: {case}", *faults]
        lines += [f"| {line}" for line in stderr]
        return case.captions, outcome, lines if faults else []


def main() -> int:
    """Return 1 if a case failed."""
    options = _options()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)  # forked children would wait forever for the parent's OpenMP threads
    print(f"--seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    if options.case is not None:
        return _run_one(_Kind(options.kind[0], folder), options.case)
    try:
        rows = [_run_many(_Kind(name, folder), options) for name in options.kind or _KINDS]
    finally:
        shutil.rmtree(folder)
    for row in (_HEADING, *rows):
        print(_TABLE.format(*row))
    return int(any(row[4] for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="default: random")
    parser.add_argument(
        "--kind", choices=_KINDS, action="append", help="may be repeated (default: all)"
    )
    parser.add_argument("--count", type=int, default=1000, help="cases of each kind")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (default: 2)")
    parser.add_argument(
        "--case", type=int, metavar="SEED", help="run only this case and keep its files"
    )
    options = parser.parse_args()
    if options.case is not None and len(options.kind or []) != 1:
        parser.error("--case: give the case's --kind too")
    return options


def _run_one(kind: _Kind, seed: int) -> int:
    case, folder = kind.make(seed)
    print(f"cd {folder}\n{case}", flush=True)
    outcome, faults = run(case, folder)
    for text in (outcome.stdout, outcome.stderr):
        print(text.decode("utf-8", "backslashreplace"), end="")
    print(f"exit status {outcome.status}, {outcome.seconds:.1f} s, {outcome.memory >> 20} MB")
    print(*faults, sep="\n")
    return int(bool(faults))


def _run_many(kind: _Kind, options: argparse.Namespace) -> tuple[Any, ...]:
    """Run cases, print those that fail, and return the kind's row of the table."""
    names = (f"{options.seed} {kind.name} {number}" for number in range(options.count))
    seeds = (random.Random(name).getrandbits(32) for name in names)
    start, done = time.monotonic(), []
    gc.freeze()  # children need not collect what exists already
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork")) as pool:
        for each in pool.map(kind.run, seeds):
            done.append(each)
            for line in each[2]:
                print(f"{ascii(line)[1:-1]:.{_MAX_SHOWN}}", flush=True)
    counts, outcomes, failed = zip(*done, strict=True)
    statuses = Counter(str(outcome.status) for outcome in outcomes)
    return (
        kind.name,
        len(done),
        f"{sum(counts):,}" if any(counts) else "",
        ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items())),
        sum(map(bool, failed)),
        f"{max(outcome.seconds for outcome in outcomes):.1f} s",
        f"{max(outcome.memory for outcome in outcomes) >> 20} MB",
        f"{time.monotonic() - start:.0f} s",
    )


if __name__ == "__main__":
    sys.exit(main())
