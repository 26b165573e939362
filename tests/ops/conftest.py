"""Fixtures that the tests of the ops share."""

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mirrorgan_fast.ops import use, why_not_compiled

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
