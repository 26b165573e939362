"""The one exception for what a user can cause: bad arguments, captions, files or pictures."""


class InputError(ValueError):
    """Bad input. The message is one line: what was wrong, where, and what to do about it.

    The command line prints the message without a traceback and exits with status 2.
    """
