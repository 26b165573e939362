"""Find faster settings of the Triton kernels on the GPU at hand, for `kernels/settings.py`.

    python -m benchmarks.gpu_settings [--only TEXT] [--minutes 4] [--out FOLDER]

For each op's case of `gpu_cases.py` it starts at the current setting and changes one field per step
until no neighbor is faster, and prints the result. A setting is rejected if it gives another result
or if the GPU has too few resources for it. All timings are written to gpu-settings-NAME.json.
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
from mirrorgan_fast.kernels import (  # noqa: F401  (the modules that use settings)
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
"""The fields that may change for each function of `kernels/settings.py`; shapes fix the others."""

FUNCTION_OF_CASE = {
    "conv_": "convolution",
    "image_head": "convolution",
    "glam_attention_mix and its backward": "attention_backward",
    "glam_attention_mix, ": "attention_forward",
    "batch_norm_": "batch_norm",
    "word_similarity": "word_similarity",
}
"""The beginning of a case's name, and the function that gives its kernel's setting."""

GAIN = 0.98
"""The ratio of times below which a setting counts as faster; a smaller gain may be noise."""


def main() -> int:
    """Find and print the fastest settings."""
    parser = argparse.ArgumentParser(description="Find faster settings of the Triton kernels.")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only cases with this in the name"
    )
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
        function = setting_function(case.name)
        if function is None or options.only not in case.name:
            continue
        if time.monotonic() > end:
            print(f"{case.name}: no time left")
            continue
        torch.cuda.empty_cache()
        try:
            start = setting_of(case, function)
            cost = cost_of(case, function, start)
        except Exception as error:  # a case that fails must not stop the others
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


def setting_function(name: str) -> str | None:
    """Return the function of `kernels/settings.py` that gives a case's setting, if any."""
    return next(
        (function for begins, function in FUNCTION_OF_CASE.items() if name.startswith(begins)), None
    )


@contextmanager
def replaced(function: str, answer: Callable[..., Setting]) -> Iterator[None]:
    """Replace a function of `kernels/settings.py` in all kernels that call it."""
    original = getattr(settings, function)
    callers = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("mirrorgan_fast.kernels.")
        and getattr(module, function, None) is original
    ]
    try:
        for module in callers:
            setattr(module, function, answer)
        yield
    finally:
        for module in callers:
            setattr(module, function, original)


def setting_of(case: Case, function: str) -> Setting:
    """Return the current setting of a case's kernel: the last one that it requests."""
    original, answers = getattr(settings, function), []

    def record(*shapes: Any) -> Setting:
        answers.append(original(*shapes))
        return answers[-1]

    with replaced(function, record):
        case.ours()
    return answers[-1]


def cost_of(case: Case, function: str, start: Setting) -> Callable[[Setting], float]:
    """Return a function that times a case with a setting; infinite if it fails or is wrong."""
    with replaced(function, lambda *_: start):
        right = _tensors(case.ours())

    def cost(setting: Setting) -> float:
        with replaced(function, lambda *_: setting):
            try:
                if not all(map(_close, _tensors(case.ours()), right)):
                    return inf
                return seconds(case.ours)
            except Exception as error:  # errors of Triton's compiler and of the driver
                print(f"    {setting}: {type(error).__name__}", file=sys.stderr)
                return inf

    return cost


def descend(
    start: Setting, values: Values, cost: Callable[[Setting], float], over: Callable[[], bool]
) -> dict[Setting, float]:
    """Move from a setting to cheaper neighbors; return the cost of all settings that were tried.

    Args:
        start: the first setting, which is always tried.
        values: the values of each field, in order; neighbors differ in one field by one position.
        cost: of a setting.
        over: whether to stop.
    """
    best, costs = start, {start: cost(start)}
    while True:
        for setting in neighbors(best, values):
            if over():
                return costs
            if setting not in costs:
                costs[setting] = cost(setting)
        least = min(costs, key=lambda setting: costs[setting])
        if costs[least] > GAIN * costs[best]:
            return costs
        best = least


def neighbors(setting: Setting, values: Values) -> Iterator[Setting]:
    """Yield the settings that differ in one field, by one position among its values."""
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
