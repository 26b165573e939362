"""The one exception for what a user can cause: bad arguments, captions, files or pictures."""

from collections.abc import Sequence


class InputError(ValueError):
    """Bad input. The message is one line: what was wrong, where, and what to do about it.

    The command line prints the message without a traceback and exits with status 2. Whatever a name
    or a value in the message contains, it is printable: line breaks, control characters and
    undecodable bytes are escaped as in Python source.
    """

    def __init__(self, message: str) -> None:
        # An error that a DataLoader's worker process raised arrives with that process's traceback
        # in front of its message.
        super().__init__(printable(message.rpartition(_IN_TRACEBACK)[2].rstrip("\n")))


class UnknownWordsWarning(UserWarning):
    """Words of a caption are skipped, since the model's vocabulary lacks them."""


_IN_TRACEBACK = f"{__name__}.{InputError.__name__}: "


def printable(text: str) -> str:
    r"""Escape what a terminal would not show as it is, such as "\n", "\x1b" or "\udcff"."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def listed(words: Sequence[str], most: int = 5) -> str:
    """Name the first few of many words."""
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")
