"""What the tests of the benchmarks share with the package's tests."""

from collections.abc import Iterator

import pytest
import torch

from tests.conftest import assert_matches

__all__ = ["assert_matches"]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """Compute gradients, which the benchmarks themselves do not."""
    with torch.enable_grad():
        yield
