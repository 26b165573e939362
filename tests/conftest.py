"""Shared by all tests: how close two tensors must be, by data type; and cores, by process."""

import os
import signal
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from tqdm import tqdm

AssertMatches = Callable[[Tensor, Tensor], None]

# Relative to the largest value of the float64 result. They depend on the data type only, not on the
# machine.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


@pytest.fixture
def assert_matches() -> AssertMatches:
    """Assert that a tensor equals a float64 tensor within the tolerance of its data type."""

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


def pytest_configure() -> None:
    """Receive Ctrl-C, which some tests send, also if a shell started this in the background.

    Processes that tests fork never wait for the lock of progress bars. By default it is shared with
    them, so one that a signal has left locked here, which does no harm here, stops them for ever;
    and a thread that watches the bars holds it now and then.

    Processes of pytest-xdist share the cores: threads that wait for each other's cores take several
    times as long. What tests start gets as many threads as they.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if workers > 1:
        threads = max(1, torch.get_num_threads() // workers)
        torch.set_num_threads(threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
