"""How OpenMP's threads should wait for each other where cores are shared.

python -m benchmarks.wait_policy [--turns 2] [--json FILE]

PyTorch's threads wait by spinning at the end of every parallel loop, for as long as the environment
says before it is loaded. The program measures training steps and sampling of `birds-painted`
with several policies in turns: in a process alone, beside a process that keeps a core busy, and in
two processes at once.
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
    "default": {"GOMP_SPINCOUNT": "300000"},  # as GNU's OpenMP comes
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 4,000": {"GOMP_SPINCOUNT": "4000"},  # what the package sets (mirrorgan_fast/openmp.py)
    "one thread": {"OMP_NUM_THREADS": "1"},
}
WORKS = ("training", "sampling 8", "sampling 1")
PLACES = ("alone", "beside a busy process", "two at once")
_SECONDS = 5.0
_BUSY = "while True: pass"


def main() -> None:
    """Print milliseconds a step, as the median of the turns, and their ratios to the default."""
    parser = argparse.ArgumentParser(description="Wait policies of OpenMP.")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--work", choices=WORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        print(milliseconds(options.work))
        return
    found: dict[str, dict[str, float]] = {}
    for work in WORKS:
        for place in PLACES:
            turns: dict[str, list[float]] = {policy: [] for policy in POLICIES}
            for _ in range(options.turns):
                for policy, variables in POLICIES.items():
                    turns[policy].append(measure(work, variables, place))
            row = {policy: statistics.median(each) for policy, each in turns.items()}
            found[f"{work}, {place}"] = row
            shown = ", ".join(
                f"{policy} {ms:.1f} ms ({ms / row['default']:.2f})" for policy, ms in row.items()
            )
            print(f"{work}, {place}: {shown}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def measure(work: str, variables: dict[str, str], place: str) -> float:
    """Return the milliseconds of a step in a process of its own, or the mean of two at once."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    }
    command = [sys.executable, "-m", "benchmarks.wait_policy", "--work", work]
    busy = [sys.executable, "-c", _BUSY]
    other = subprocess.Popen(busy) if place == "beside a busy process" else None
    try:
        started = [
            subprocess.Popen(command, env=clean | variables, stdout=subprocess.PIPE, text=True)
            for _ in range(2 if place == "two at once" else 1)
        ]
        return statistics.mean(float(each.communicate()[0]) for each in started)
    finally:
        if other is not None:
            other.kill()
            other.wait()


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
