"""Fixtures that the tests of the ops share."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mirrorgan_fast.ops import build_info, use, why_not_compiled

from .calls import Call

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore = []
if not torch.cuda.is_available():
    collect_ignore.append("test_cuda.py")
    if not INTERPRETED:
        collect_ignore.append("test_triton.py")  # test_triton_without_gpu.py runs it

compiled = pytest.mark.skipif(why_not_compiled() is not None, reason=str(why_not_compiled()))


@pytest.fixture(params=["reference", pytest.param("cpu", marks=compiled)])
def implementation(request) -> Iterator[str]:
    """Run the test once with each implementation."""
    with use(request.param):
        yield request.param


_NARROWER = """
import sys, torch
from mirrorgan_fast import ops
folder, tests_folder, wanted = sys.argv[1:]
sys.path.append(tests_folder)
assert ops.build_info().instruction_set == wanted, ops.build_info()
given = torch.load(folder + "/given.pt")
{script}
torch.save(results, folder + "/results.pt")
"""


@pytest.fixture
def run_narrower(tmp_path: Path) -> Callable[[str, Any, str], Any]:
    """Run a script with an instruction set; skip the test if the processor lacks it.

    The instruction set is chosen once per process, so this starts another process. The script
    finds what is given in ``given``, and leaves ``results``, which are returned.
    """

    def run(capability: str, given: Any, script: str) -> Any:
        wanted = "baseline" if capability == "default" else capability
        if wanted not in build_info().processor_instruction_sets:
            pytest.skip(f"this processor has no {wanted}")
        torch.save(given, tmp_path / "given.pt")
        whole = _NARROWER.format(script=textwrap.dedent(script))
        subprocess.run(
            [sys.executable, "-c", whole, tmp_path, Path(__file__).parent, wanted],
            env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
            check=True,
        )
        return torch.load(tmp_path / "results.pt")

    return run


@pytest.fixture
def assert_result(assert_matches):
    """Assert that the result of a call matches its expected one; for images, their gray levels."""

    def check(called: Call, actual: Tensor) -> None:
        if actual.dtype != torch.uint8:
            assert_matches(actual, called.expected)
            return
        tolerance = {torch.float32: 1e-5, torch.float16: 2e-3}.get(called.arguments[0].dtype, 2e-2)
        assert actual.shape == called.expected.shape
        if actual.numel():
            assert (actual.cpu() - called.expected).abs().max() <= 0.5 + 255 * tolerance

    return check
