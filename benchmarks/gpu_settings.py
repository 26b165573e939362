"""Find faster settings of the Triton kernels on the GPU at hand, for `kernels/settings.py`.

    python -m benchmarks.gpu_settings [--only TEXT] [--minutes 4] [--out FOLDER]

For each op's case of `gpu_cases.py` it goes from the setting as it is, one field a step, to where
no neighbour is faster, and prints what was found. A setting that gives another result, or that the
GPU has no room for, does not count. Everything timed is kept in gpu-settings-NAME.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import ROOT, machine, name_of, seconds
from benchmarks.gpu_cases import Case, Sizes, cases
from mirrorgan_fast.kernels import (  # noqa: F401  (the modules that ask for settings)
    batch_norm_glu,
    batch_norm_leaky_relu,
    convolution,
    glam_attention_mix,
    settings,
    word_similarity,
)
from mirrorgan_fast.kernels.settings import Setting

Values = dict[str, tuple[int, ...]]

FIELDS: dict[str, Values] = {
    "convolution": {
        "rows": (64, 128, 256),
        "columns": (16, 32, 64, 128, 256),
        "depth": (16, 32, 64, 128),
        "warps": (2, 4, 8),
        "stages": (1, 2, 3, 4, 5),
    },
    "attention_forward": {
        "rows": (32, 64, 128, 256),
        "depth": (16, 32),
        "warps": (2, 4, 8),
        "stages": (1, 2, 3),
    },
    "attention_backward": {
        "rows": (16, 32, 64, 128),
        "warps": (4, 8, 16),
        "stages": (1, 2),
        "turns": (2, 4, 8, 16),
    },
    "batch_norm": {
        "rows": (16, 32, 64, 128),
        "columns": (32, 64, 128),
        "warps": (2, 4, 8),
        "stages": (1, 2, 3, 4),
        "turns": (4, 8, 16, 32),
    },
    "word_similarity": {"columns": (16, 32, 64), "warps": (4, 8, 16), "turns": (4, 8, 16)},
}
"""What may change of each function of `kernels/settings.py`; the rest is given by the shapes."""

OF_CASES = {
    "conv_": "convolution",
    "image_head": "convolution",
    "glam_attention_mix and its backward": "attention_backward",
    "glam_attention_mix, ": "attention_forward",
    "batch_norm_": "batch_norm",
    "word_similarity": "word_similarity",
}
"""How a case begins, and the function that its kernel asks."""

GAIN = 0.98
"""Of the time: what saves less may be noise."""


def main() -> int:
    """Find them and print them."""
    parser = argparse.ArgumentParser(description="Find faster settings of the Triton kernels.")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases that have it in the name")
    parser.add_argument("--minutes", type=float, default=4.0, help="for everything together")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu_settings: this PyTorch finds no GPU", file=sys.stderr)
        return 2
    end = time.monotonic() + 60 * options.minutes
    report: dict[str, Any] = {"machine": machine(), "cases": {}}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"gpu-settings-{name_of(report['machine'])}.json"
    for case in cases("cuda", Sizes()):
        function = asked_by(case.name)
        if function is None or options.only not in case.name:
            continue
        if time.monotonic() > end:
            print(f"{case.name}: no time left")
            continue
        torch.cuda.empty_cache()
        try:
            start = setting_of(case, function)
            cost = cost_of(case, function, start)
        except Exception as error:  # a case that fails must not hide the others
            print(f"{case.name}: {type(error).__name__}: {error}"[:500], file=sys.stderr)
            continue
        timed = descend(start, FIELDS[function], cost, lambda: time.monotonic() > end)
        best = min(timed, key=lambda setting: timed[setting])
        print(f"{case.name}, {function}: {start} takes {1e6 * timed[start]:.1f} us")
        print(f"    best of {len(timed)}: {best}, {1e6 * timed[best]:.1f} us", flush=True)
        report["cases"][case.name] = {
            "function": function,
            "as_it_is": start._asdict(),
            "timed": [setting._asdict() | {"seconds": timed[setting]} for setting in timed],
        }
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def asked_by(name: str) -> str | None:
    """Return the function of `kernels/settings.py` that the kernel of a case asks, if any."""
    return next((asked for begins, asked in OF_CASES.items() if name.startswith(begins)), None)


@contextmanager
def instead(function: str, answer: Callable[..., Setting]) -> Iterator[None]:
    """Have all kernels that ask a function of `kernels/settings.py` ask another."""
    asked = getattr(settings, function)
    askers = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("mirrorgan_fast.kernels.") and getattr(module, function, None) is asked
    ]
    try:
        for module in askers:
            setattr(module, function, answer)
        yield
    finally:
        for module in askers:
            setattr(module, function, asked)


def setting_of(case: Case, function: str) -> Setting:
    """Return the setting that a case's kernel has as it is: the last that it asks for."""
    asked, answers = getattr(settings, function), []

    def listen(*shapes: Any) -> Setting:
        answers.append(asked(*shapes))
        return answers[-1]

    with instead(function, listen):
        case.ours()
    return answers[-1]


def cost_of(case: Case, function: str, start: Setting) -> Callable[[Setting], float]:
    """Return what times a case with a setting: infinite where it fails or gives something else."""
    with instead(function, lambda *_: start):
        right = _tensors(case.ours())

    def cost(setting: Setting) -> float:
        with instead(function, lambda *_: setting):
            try:
                if not all(map(_close, _tensors(case.ours()), right)):
                    return inf
                return seconds(case.ours)
            except Exception as error:  # of Triton's compiler and of the driver, of all kinds
                print(f"    {setting}: {type(error).__name__}", file=sys.stderr)
                return inf

    return cost


def descend(
    start: Setting, values: Values, cost: Callable[[Setting], float], over: Callable[[], bool]
) -> dict[Setting, float]:
    """Go from a setting to where no neighbour costs less; return the cost of all that were tried.

    Args:
        start: has its cost in any case.
        values: that the fields may have, in order; neighbours differ in one field by one place.
        cost: of a setting.
        over: whether no more should be tried.
    """
    best, costs = start, {start: cost(start)}
    while True:
        for setting in neighbours(best, values):
            if over():
                return costs
            if setting not in costs:
                costs[setting] = cost(setting)
        least = min(costs, key=lambda setting: costs[setting])
        if costs[least] > GAIN * costs[best]:
            return costs
        best = least


def neighbours(setting: Setting, values: Values) -> Iterator[Setting]:
    """Yield the settings that differ in one field, by one place among its values."""
    for field, possible in values.items():
        now = getattr(setting, field)
        below = [value for value in possible if value < now]
        above = [value for value in possible if value > now]
        for value in (*below[-1:], *above[:1]):
            yield setting._replace(**{field: value})


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _close(found: Tensor, right: Tensor) -> bool:
    difference = found.double() - right.double()
    return bool(difference.norm() <= 1e-2 * right.double().norm())


if __name__ == "__main__":
    sys.exit(main())
