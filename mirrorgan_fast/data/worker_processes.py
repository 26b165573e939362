"""Running jobs in several processes, which end when the parent process ends."""

import multiprocessing
import os
import signal
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import reason
from mirrorgan_fast.interrupts import leave_interrupts_to_parent

Job = TypeVar("Job")
Result = TypeVar("Result")

_INTERRUPTS = {signal.SIGINT, signal.SIGTERM}
_JOBS_PER_PROCESS = 2  # a process with a second job in its queue need not wait for the next one
_CHECK_INTERVAL = 0.5  # seconds between two checks that the parent is alive


def in_processes(
    work: Callable[[Job], Result], jobs: Iterable[Job], count: int, max_waiting: int = 1000
) -> Generator[Result, None, None]:
    """Yield the result of each job, in the order of the jobs.

    The processes are killed when the iterator is closed or exhausted. When this process ends, even
    if it is killed, each of them finishes its current job and ends. Only this process handles
    Ctrl-C and SIGTERM.

    Args:
        work: the function to call with each job. It can be pickled. Its exceptions are raised here.
        jobs: the arguments of ``work``. They can be pickled.
        count: number of processes.
        max_waiting: number of results that are held while an earlier one is not there yet.

    Raises:
        InputError: the processes cannot be started, or one of them was killed.
    """
    numbered = enumerate(jobs)
    processes: dict[Connection, BaseProcess] = {}
    given: dict[Connection, deque[int]] = defaultdict(deque)  # the numbers of the jobs
    results: dict[int, Result] = {}  # results that wait for an earlier one
    following, more = 0, True
    try:
        _start(processes, work, count)
        free = _JOBS_PER_PROCESS * list(processes)
        while more or any(given.values()):
            while free and more and len(results) < max_waiting:
                number, job = next(numbered, (-1, None))
                more = number >= 0
                if more:
                    link = free.pop()
                    given[link].append(number)
                    link.send(job)
            busy = [link for link, numbers in given.items() if numbers]
            for link in cast(list[Connection], wait(busy) if busy else []):
                result = link.recv()
                if isinstance(result, Exception):
                    raise result
                results[given[link].popleft()] = result
                free.append(link)
            while following in results:
                yield results.pop(following)
                following += 1
    except (EOFError, ConnectionError) as error:
        raise InputError(
            "one of the processes was killed, perhaps for lack of memory; ask for fewer"
        ) from error
    finally:
        for process in processes.values():
            process.kill()
        for link, process in processes.items():
            process.join()
            link.close()


def _start(
    processes: dict[Connection, BaseProcess], work: Callable[[Any], object], count: int
) -> None:
    """Start processes, and a connection to each of them."""
    # A new process inherits this mask, which blocks interrupts until the process ignores them.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        for _ in range(count):
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=_serve, args=(theirs, work), daemon=True)
            process.start()
            processes[ours] = process
            theirs.close()  # so that `ours` reports the end of the process
    except OSError as error:
        raise InputError(
            f"cannot start {count} processes ({reason(error)}); ask for fewer"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _serve(link: Connection, work: Callable[[Any], object]) -> None:
    """Do the jobs that come over a connection, until the parent has ended."""
    leave_interrupts_to_parent()
    parent = multiprocessing.parent_process()
    # Both are checked: which of them shows at once that the parent has ended depends on the start
    # method of multiprocessing.
    started_by = os.getppid()
    while os.getppid() == started_by and parent is not None and parent.is_alive():
        if not link.poll(_CHECK_INTERVAL):
            continue
        try:
            job = link.recv()
        except (EOFError, ConnectionError):
            return
        try:
            result = work(job)
        except Exception as error:
            result = error
        try:
            link.send(result)
        except ConnectionError:
            return
