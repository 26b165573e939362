"""What every benchmark shares: the facts of the machine, the number of threads, no gradients."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mirrorgan_fast.ops import build_info


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Add what decides the numbers to the saved results."""
    built = build_info()
    machine_info["torch"] = torch.__version__
    machine_info["build"] = None if built is None else built._asdict()


@pytest.fixture(params=[1, 2], ids=lambda count: f"{count}-threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run with one thread, then with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """Measure inference unless a benchmark says otherwise."""
    with torch.no_grad():
        yield
