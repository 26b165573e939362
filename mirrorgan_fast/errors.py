"""The exception for errors that users can cause: bad arguments, captions, files or pictures."""

from collections.abc import Sequence


class InputError(ValueError):
    """Bad input. The message is one line: what was wrong, where, and what to do about it.

    The command line prints the message without a traceback and exits with status 2. The message is
    always printable: line breaks, control characters and undecodable bytes in it are escaped as in
    Python source.
    """

    def __init__(self, message: str) -> None:
        # If a DataLoader's worker process raised the error, that process's traceback precedes the
        # message.
        super().__init__(printable(message.rpartition(_IN_TRACEBACK)[2].rstrip("\n")))


class UnknownWordsWarning(UserWarning):
    """Words of a caption are skipped because they are not in the model's vocabulary."""


_IN_TRACEBACK = f"{__name__}.{InputError.__name__}: "


def printable(text: str) -> str:
    r"""Escape unprintable characters, such as "\n", "\x1b" or "\udcff"."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def listed(words: Sequence[str], limit: int = 5) -> str:
    """Join at most ``limit`` words with commas, followed by "..." if there are more."""
    return ", ".join(words[:limit]) + (", ..." if len(words) > limit else "")
