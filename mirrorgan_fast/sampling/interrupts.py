"""Ctrl-C only where nothing is half done: queues and locks do not survive it at any line."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class Interrupts:
    """While it is entered, an interrupt that is held back comes when it is released.

    It does nothing in other threads than the main one, which Ctrl-C does not reach.
    """

    def __init__(self) -> None:
        self._held = self._came = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def hold(self) -> None:
        """Keep interrupts back."""
        self._held = True

    def release(self) -> None:
        """Let them come.

        Raises:
            KeyboardInterrupt: one has come meanwhile.
        """
        self._held = False
        if self._came:
            self._came = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._held:
            raise KeyboardInterrupt
        self._came = True
