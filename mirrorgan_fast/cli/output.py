"""What the commands print."""

import sys
from contextlib import suppress

from mirrorgan_fast.files import reason


class OutputError(Exception):
    """What is printed cannot be written: the disk is full, or nobody reads the pipe."""


def print_line(text: str) -> None:
    """Print to standard output, at once: another program may wait for it."""
    try:
        print(text)
    except OSError as error:
        raise OutputError(reason(error)) from error
    flush()


def flush() -> None:
    """Write what is printed and not yet written."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        raise OutputError(reason(error)) from error


def say(text: str) -> None:
    """Print to standard error, whether anybody reads it or not."""
    with suppress(OSError):
        print(text, file=sys.stderr)
