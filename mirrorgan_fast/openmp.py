"""How PyTorch's threads wait for each other."""

import os
import sys

_SPINS = "4000"
_CHOSEN_BY_USER = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spin_briefly() -> None:
    """Let PyTorch's threads sleep soon when they wait for each other.

    As it comes, GNU's OpenMP spins for long, which takes the cores from whoever else needs them.
    With 4,000 spins, measured on two cores of an AMD EPYC (Zen 4): a training step takes 0.95 times
    as long alone, and 0.65 if two trainings run at once; sampling takes 1.04 times as long alone,
    and 0.15 if two run at once (``python -m benchmarks.wait_policy``).

    OpenMP reads this when PyTorch is loaded, so there is no effect afterwards, nor with another
    OpenMP. ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY`` in the environment decide instead.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _CHOSEN_BY_USER):
        os.environ["GOMP_SPINCOUNT"] = _SPINS
