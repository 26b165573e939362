"""The package lets PyTorch's threads sleep soon, unless the environment says otherwise."""

import os
import subprocess
import sys

import pytest

PRINT = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("before", "given", "expected"),
    [
        ("", {}, "4000"),
        ("", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("", {"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
        ("import torch; ", {}, "None"),  # too late
    ],
)
def test_threads_spin_briefly(before: str, given: dict[str, str], expected: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    script = f"{before}import mirrorgan_fast; {PRINT}"
    command = [sys.executable, "-c", script]
    run = subprocess.run(
        command, env=environment | given, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has another OpenMP there")
def test_openmp_reads_it() -> None:
    """GNU's OpenMP says in which way it waits."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    run = subprocess.run(
        [sys.executable, "-c", "import mirrorgan_fast"],
        env=environment | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "GOMP_SPINCOUNT = '4000'" in run.stderr
