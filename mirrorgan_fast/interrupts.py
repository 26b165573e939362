"""Ctrl-C and SIGTERM, delayed until it is safe: elsewhere they would break queues and locks."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self


class Terminated(KeyboardInterrupt):
    """SIGTERM, which Docker, Kubernetes and Slurm send to end a program. It acts like Ctrl-C."""


_RAISED: dict[int, type[KeyboardInterrupt]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
}


class Interrupts:
    """A context manager that delays interrupts between ``hold`` and ``release``.

    It has no effect outside the main thread, because signals do not reach other threads.

    Args:
        insisting: whether a second interrupt is raised at once even if interrupts are held.
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
            if handler is not None:  # a handler that was not set from Python cannot be restored
                signal.signal(number, handler)

    @property
    def waiting(self) -> bool:
        """Whether a delayed interrupt is waiting."""
        return self._came is not None

    def hold(self) -> None:
        """Delay interrupts from now on."""
        self._held = True

    def release(self) -> None:
        """Stop delaying interrupts, and raise the one that is waiting, if any.

        Raises:
            KeyboardInterrupt: an interrupt came while interrupts were held; ``Terminated`` if it
                was SIGTERM.
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
    """Make SIGTERM raise ``Terminated``, as Ctrl-C raises KeyboardInterrupt."""
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
    """Make a worker process ignore Ctrl-C, and SIGTERM unless its parent sends it.

    This is the ``worker_init_fn`` of a DataLoader. Terminals and Slurm send a signal to all
    processes of a program, and a worker that ends on it would raise an error in the middle of a
    training step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
