"""Work in several processes: order of results, errors, and processes that end with the parent."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest

from mirrorgan_fast.data.worker_processes import in_processes
from mirrorgan_fast.errors import InputError


def square_late(number: int) -> tuple[int, int]:
    time.sleep(random.Random(number).random() / 200)
    return number * number, os.getpid()


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_the_order_of_the_jobs(count: int) -> None:
    results = list(in_processes(square_late, iter(range(100)), count))
    assert [square for square, _ in results] == [number**2 for number in range(100)]
    processes = {process for _, process in results}
    assert len(processes) == count
    assert os.getpid() not in processes
    assert list(in_processes(square_late, [], count)) == []


def test_a_slow_job_holds_back_a_bounded_number_of_results() -> None:
    started = []

    def jobs() -> object:
        for number in range(3000):
            started.append(number)
            yield number

    results = in_processes(slow_first, jobs(), 2)
    with closing(results):
        assert next(results) == 0
        assert len(started) < 1100
        assert list(results) == list(range(1, 3000))


def slow_first(number: int) -> int:
    if number == 0:
        time.sleep(2)
    return number


def refuse_5(number: int) -> int:
    if number == 5:
        raise InputError("no 5")
    return number


def end_at_5(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_errors_are_raised_in_the_parent_and_no_process_is_left() -> None:
    with pytest.raises(InputError, match=r"^no 5$"):
        list(in_processes(refuse_5, range(1000), 2))
    with pytest.raises(InputError, match="one of the processes was killed"):
        list(in_processes(end_at_5, range(1000), 2))
    with closing(in_processes(square_late, range(1000), 2)) as results:
        processes = {next(results)[1] for _ in range(10)}
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_the_error_for_processes_that_cannot_be_started_is_one_line() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, hard))
    try:
        with pytest.raises(InputError, match=r"cannot start 100 processes \(Too many open files"):
            list(in_processes(square_late, range(1000), 100))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


PARENT = """
import signal, time
from mirrorgan_fast.data.worker_processes import in_processes
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
def work(number):
    time.sleep(0.01)
    return number
if __name__ == "__main__":
    try:
        for number in in_processes(work, range(10**6), 3):
            if number == 20:
                print("at work", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_parent(ending: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "at work\n"
    if ending == signal.SIGINT:
        os.killpg(parent.pid, ending)  # like Ctrl-C, to all processes
    else:
        parent.kill()
    # The output ends when the last process that can write to it has ended.
    output, errors = parent.communicate(timeout=60)
    assert output == ("interrupted\n" if ending == signal.SIGINT else "")
    assert errors == ""
