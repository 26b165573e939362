"""A case: a command that reads odd files and runs in a child process, and the checks on it."""

import gc
import multiprocessing.util
import os
import re
import resource
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from mirrorgan_fast.cli.main import main

SECONDS = 30
MEMORY = 2**30  # bytes more than an idle process
LINES = 10  # on stderr
OUTPUTS = ("out", "run")  # prefixes of the names that a command may create or change
_GRACE = 1.0  # seconds until child processes must have ended
_PAGE = resource.getpagesize()
_PYTHON = re.compile(r"^Traceback|Exception ignored|\.py:\d+: |Warning: ", re.MULTILINE)


@dataclass
class Case:
    """A command that runs in the folder of its files."""

    arguments: list[str]
    check: Callable[[int], None] = lambda status: None
    """Takes the exit status and raises AssertionError if something is wrong."""
    piped: str | None = None
    """A file that is piped to standard input."""
    captions: int = 0
    """The number of captions in its file."""

    def __str__(self) -> str:
        text = shlex.join(["mirrorgan-fast", *self.arguments])
        pipe = f"cat {self.piped} | " if self.piped else ""
        return pipe + text.encode("ascii", "backslashreplace").decode()


class Outcome(NamedTuple):
    """How a command ended."""

    status: int | str
    """The exit status, or why there is none."""
    seconds: float
    memory: int
    """Its peak, in bytes more than an idle process."""
    left: bool
    """Whether it left processes behind."""
    stdout: bytes
    stderr: bytes


def run(case: Case, folder: Path) -> tuple[Outcome, list[str]]:
    """Run a case, whose files are in a folder; return its outcome and its faults."""
    before = _state(folder)
    outcome = call(case.arguments, folder, piped=case.piped)
    found = list(_faults(outcome))
    changed = {path for path, _ in before ^ _state(folder)}
    if changed:
        found.append(f"changed what is not its output: {', '.join(sorted(changed))}")
    if not found and isinstance(outcome.status, int):
        try:
            case.check(outcome.status)
        except AssertionError as error:
            found.append(f"exit status {outcome.status}: {error}")
    return outcome, found


def call(arguments: list[str], folder: Path, *, piped: str | None = None) -> Outcome:
    """Run a command in a child process; its output is kept in files next to the folder."""
    logs = [folder.with_name(f"{name}.log") for name in ("stdout", "stderr")]
    feeder = None
    if piped is not None:
        feeder = subprocess.Popen(["cat", folder / piped], stdout=subprocess.PIPE)
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_command(arguments, folder, feeder.stdout.fileno() if feeder else None, logs)
    if feeder:
        feeder.stdout.close()
    idle = peak = _resident(child)
    why = ""
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        peak = max(peak, _resident(child))
        if not why and peak - idle > MEMORY:
            why = "too much memory"
        elif not why and time.monotonic() - start > SECONDS:
            why = "too long"
        if why:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.003)
    seconds = time.monotonic() - start
    left = _end_group(child)
    if feeder:
        feeder.wait()
    code = os.waitstatus_to_exitcode(status)
    return Outcome(
        why or (code if code >= 0 else signal.Signals(-code).name),
        seconds,
        max(peak, usage.ru_maxrss * 1024) - idle,
        left,
        *(log.read_bytes() for log in logs),
    )


def _be_the_command(
    arguments: list[str], folder: Path, stdin: int | None, logs: list[Path]
) -> NoReturn:
    """Do what ``python -m mirrorgan_fast`` does, with its own standard streams, and exit."""
    status: Any = 1
    try:
        os.setsid()
        os.chdir(folder)
        sys.path.insert(0, str(folder))  # so that modules in it can be imported
        os.dup2(os.open(os.devnull, os.O_RDONLY) if stdin is None else stdin, 0)
        for number, log in enumerate(logs, start=1):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
        threading._shutdown()
        multiprocessing.util._exit_function()
        gc.collect()
        sys.stdout.flush()
    except BaseException:
        status = 1
        traceback.print_exc()
    finally:
        os._exit(status if isinstance(status, int) else 1)


def _faults(outcome: Outcome) -> Iterator[str]:
    """Yield the faults in how a command ended."""
    if outcome.status not in (0, 2, 3):
        yield f"ended with {outcome.status}"
    if outcome.memory > MEMORY:
        yield f"took {outcome.memory >> 20} MB"
    if outcome.left:
        yield "left a process behind"
    try:
        stdout, stderr = outcome.stdout.decode(), outcome.stderr.decode()
    except UnicodeDecodeError as error:
        yield f"printed text that is not UTF-8: {error.object[error.start - 20 : error.end]!r}"
        return
    for text in (stdout, stderr):
        if not text.replace("\n", "").isprintable():
            odd = next(letter for letter in text if letter != "\n" and not letter.isprintable())
            yield f"printed {odd!a}, which is not printable"
    if stderr.count("\n") > LINES or len(stderr) > 1000 * LINES:
        yield f"{len(stderr)} characters in {len(stderr.splitlines())} lines on stderr"
    if _PYTHON.search(stderr):
        yield "a Python traceback or warning on stderr"
    if outcome.status in (2, 3) and not stderr.strip():
        yield "stderr does not say what is wrong"


def _state(folder: Path) -> set[tuple[str, tuple[int, ...]]]:
    """Return the state of a folder, which shows changes without reading the files."""
    found = set()
    for path in folder.rglob("*"):
        place = str(path.relative_to(folder))
        if not place.startswith(OUTPUTS):
            there = path.lstat()
            of_file = () if stat.S_ISDIR(there.st_mode) else (there.st_size, there.st_mtime_ns)
            found.add((place, (there.st_ino, there.st_mode, *of_file)))
    return found


def _resident(process: int) -> int:
    """Return the memory of a process in bytes, 0 if it has ended."""
    with suppress(OSError), open(f"/proc/{process}/statm") as file:
        return int(file.read().split()[1]) * _PAGE
    return 0


def _end_group(group: int) -> bool:
    """End a process group; return whether it still had processes after ``_GRACE`` seconds."""
    end = time.monotonic() + _GRACE
    with suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.01)
        os.killpg(group, signal.SIGKILL)
        return True
    return False
