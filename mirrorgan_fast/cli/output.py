"""Printing to standard output and standard error."""

import sys
from contextlib import suppress

from mirrorgan_fast.files import reason


class OutputError(Exception):
    """Standard output cannot be written: the disk is full, or the pipe's reader is gone."""


def print_line(text: str) -> None:
    """Print to standard output and flush: another program may be waiting for the line."""
    try:
        print(text)
    except OSError as error:
        raise OutputError(reason(error)) from error
    flush()


def flush() -> None:
    """Flush standard output."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        raise OutputError(reason(error)) from error


def say(text: str) -> None:
    """Print to standard error; ignore it if that fails."""
    with suppress(OSError):
        print(text, file=sys.stderr)
