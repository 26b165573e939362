"""Ctrl-C and SIGTERM only where nothing is half done: queues and locks do not survive them else."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which Docker, Kubernetes and Slurm end a program: it does what Ctrl-C does."""


_RAISED: dict[int, type[KeyboardInterrupt]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
}


class Interrupts:
    """While it is entered, an interrupt that is held back comes when it is released.

    It does nothing in other threads than the main one, which signals do not reach.

    Args:
        insisting: whether a second interrupt comes at once even if it is held back.
    """

    def __init__(self, *, insisting: bool = False) -> None:
        self._insisting = insisting
        self._held = False
        self._came: type[KeyboardInterrupt] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _RAISED}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # one that was not set from Python cannot be set again
                signal.signal(number, handler)

    @property
    def waiting(self) -> bool:
        """Whether an interrupt came that is held back."""
        return self._came is not None

    def hold(self) -> None:
        """Keep interrupts back."""
        self._held = True

    def release(self) -> None:
        """Let them come.

        Raises:
            KeyboardInterrupt: one has come meanwhile; ``Terminated`` if it was SIGTERM.
        """
        self._held = False
        if self._came is not None:
            came, self._came = self._came, None
            raise came

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._held or (self._insisting and self.waiting):
            raise _RAISED[number]
        self._came = self._came or _RAISED[number]


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Have SIGTERM raise ``Terminated``, as Ctrl-C raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leave_interrupts_to_parent(*_: object) -> None:
    """Have a worker process ignore Ctrl-C, and SIGTERM unless it comes from its parent.

    For a DataLoader, as its ``worker_init_fn``. Terminals, and Slurm, send a signal to all
    processes of a program, and a worker that it ended would be an error in the middle of a step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
