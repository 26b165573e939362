"""Fixtures that the benchmarks' tests share with the package's tests."""

from collections.abc import Iterator

import pytest
import torch

from tests.conftest import assert_matches

__all__ = ["assert_matches"]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """Enable gradients, which the benchmarks themselves disable."""
    with torch.enable_grad():
        yield
