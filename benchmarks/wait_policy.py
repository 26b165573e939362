"""How OpenMP's threads should wait for each other: a process alone, and with another beside it.

python -m benchmarks.wait_policy [--turns 3] [--json FILE]

PyTorch's threads wait by spinning at the end of every parallel loop, unless the environment says
otherwise before it is loaded. Where another process holds a core, all threads spin until the one on
that core is done. The program measures training steps and sampling of `birds-painted` with several
policies in turns, in a process alone and beside a process that keeps a core busy.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

POLICIES: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "spin 4,000": {"GOMP_SPINCOUNT": "4000"},
    "spin 16,000": {"GOMP_SPINCOUNT": "16000"},
}
WORKS = ("training", "sampling 8", "sampling 1")
_SECONDS = 8.0
_BUSY = "while True: pass"


def main() -> None:
    """Print milliseconds a step, as the median of the turns, and their ratios to the default."""
    parser = argparse.ArgumentParser(description="Wait policies of OpenMP.")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--work", choices=WORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        print(milliseconds(options.work))
        return
    found: dict[str, dict[str, float]] = {}
    for work in WORKS:
        for beside in (False, True):
            turns: dict[str, list[float]] = {policy: [] for policy in POLICIES}
            for _ in range(options.turns):
                for policy, variables in POLICIES.items():
                    turns[policy].append(in_process(work, variables, beside=beside))
            row = {policy: statistics.median(each) for policy, each in turns.items()}
            found[f"{work}, {'beside a busy process' if beside else 'alone'}"] = row
            shown = ", ".join(
                f"{policy} {ms:.1f} ms ({ms / row['default']:.2f})" for policy, ms in row.items()
            )
            print(f"{work}, {'beside a busy process' if beside else 'alone'}: {shown}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def in_process(work: str, variables: dict[str, str], *, beside: bool) -> float:
    """Return the milliseconds of a step in a process of its own, possibly beside a busy one."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    command = [sys.executable, "-m", "benchmarks.wait_policy", "--work", work]
    busy = [sys.executable, "-c", _BUSY]
    other = subprocess.Popen(busy) if beside else None
    try:
        done = subprocess.run(
            command, env=clean | variables, capture_output=True, text=True, check=True
        )
    finally:
        if other is not None:
            other.kill()
            other.wait()
    return float(done.stdout)


def milliseconds(work: str) -> float:
    """Return the median of the steps within some seconds, in this process."""
    step = training() if work == "training" else sampling(int(work.split()[1]))
    step()
    taken = []
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or len(taken) < 3:
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return 1e3 * statistics.median(taken)


def training() -> Callable[[], object]:
    """Return a training step of `birds-painted`, batch 16, without the frozen networks."""
    from benchmarks.training_step import CPU, Ours
    from mirrorgan_fast.memory import keep_memory
    from mirrorgan_fast.recipes import find_recipe
    from mirrorgan_fast.training.precision import fastest_precision

    keep_memory()
    return Ours(find_recipe("birds-painted"), 16, fastest_precision(CPU))


def sampling(count: int) -> Callable[[], object]:
    """Return the sampling of images of one caption."""
    import mirrorgan_fast
    from mirrorgan_fast.inference.renderer import fuse
    from mirrorgan_fast.memory import keep_memory

    keep_memory()
    renderer = fuse(mirrorgan_fast.load())
    captions = ["this bird has a yellow crown and a white belly"] * count
    return lambda: renderer.sample(captions)


if __name__ == "__main__":
    main()
