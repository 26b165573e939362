"""A hundred damaged or malicious files of each kind; ``python -m tests.fuzz`` tests thousands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def printed() -> str:
    """The fuzzer's output for all kinds, from one process, because it takes seconds to start."""
    command = [sys.executable, "-m", "tests.fuzz", "--seed=0", "--count=100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "kind",
    [
        "captions",
        "models",
        "checkpoints",
        "journals",
        "pickles",
        "pictures",
        "translations",
        "vectors",
    ],
)
def test_what_is_read_does_no_harm(printed: str, kind: str) -> None:
    assert f"FAILED --kind {kind}" not in printed, printed
    assert re.search(rf"^{kind} +100 ", printed, re.MULTILINE), printed
