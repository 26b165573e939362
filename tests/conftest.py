"""What every test may use: how close two tensors must be, by data type, in one place."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

AssertMatches = Callable[[Tensor, Tensor], None]

# Relative to the largest value of what float64 gives: from the data type, not from a machine.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


@pytest.fixture
def assert_matches() -> AssertMatches:
    """Assert that a tensor is the float64 one within its own data type's tolerance."""

    def check(actual: Tensor, expected: Tensor) -> None:
        assert expected.dtype == torch.float64
        tolerance = TOLERANCE[actual.dtype]
        largest = expected.abs().nan_to_num(nan=0).max().item() if expected.numel() else 0
        torch.testing.assert_close(
            actual.to(expected.device, torch.float64),
            expected,
            rtol=tolerance,
            atol=tolerance * largest,
            equal_nan=True,
        )

    return check
