"""Work done in several processes, which end when this one does."""

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
_JOBS_AT_ONCE = 2  # of a process, which then need not wait for the next one
_MOST_WAITING = 1000  # results that are held while an earlier one is not there yet
_CHECK = 0.5  # seconds between two looks at whether the parent is alive


def in_processes(
    work: Callable[[Job], Result], jobs: Iterable[Job], count: int
) -> Generator[Result, None, None]:
    """Yield the result of each job, in the order of the jobs.

    The processes are killed when the iterator is closed or ends. When this process ends, even by
    being killed, each of them finishes the job that it is at and ends. Ctrl-C and SIGTERM are left
    to this process.

    Args:
        work: what to do with a job; it can be pickled. What it raises is raised here.
        jobs: what ``work`` is called with; they can be pickled.
        count: of the processes.

    Raises:
        InputError: the processes cannot be started, or one of them was killed.
    """
    numbered = enumerate(jobs)
    processes: dict[Connection, BaseProcess] = {}
    given: dict[Connection, deque[int]] = defaultdict(deque)  # the numbers of the jobs
    results: dict[int, Result] = {}  # that wait for an earlier one
    following, more = 0, True
    try:
        _start(processes, work, count)
        free = _JOBS_AT_ONCE * list(processes)
        while more or any(given.values()):
            while free and more and len(results) < _MOST_WAITING:
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
    """Start processes, each with a link to it."""
    # A new process does not react to interrupts either before it ignores them.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        for _ in range(count):
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=_serve, args=(theirs, work), daemon=True)
            process.start()
            processes[ours] = process
            theirs.close()  # so that `ours` ends with the process
    except OSError as error:
        raise InputError(
            f"cannot start {count} processes ({reason(error)}); ask for fewer"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _serve(link: Connection, work: Callable[[Any], object]) -> None:
    """Do the jobs that come over a link, until the parent has ended."""
    leave_interrupts_to_parent()
    parent = multiprocessing.parent_process()
    # Which of the two tells it at once depends on how Python starts processes here.
    started_by = os.getppid()
    while os.getppid() == started_by and parent is not None and parent.is_alive():
        if not link.poll(_CHECK):
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
