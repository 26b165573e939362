"""A hundred damaged or hostile files of each kind; ``python -m tests.fuzz`` gives thousands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def told() -> str:
    """What the fuzzer says of all kinds: in one process, which takes seconds to begin."""
    command = [sys.executable, "-m", "tests.fuzz", "--seed=0", "--count=100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "kind", ["captions", "models", "checkpoints", "journals", "pickles", "pictures"]
)
def test_what_is_read_does_no_harm(told: str, kind: str) -> None:
    assert f"FAILED --kind {kind}" not in told, told
    assert re.search(rf"^{kind} +100 ", told, re.MULTILINE), told
