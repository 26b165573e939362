"""The mirrorgan-fast command: text to image and back."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from mirrorgan_fast.cli import (
    data,
    describe,
    evaluate,
    export,
    info,
    paint,
    sample,
    train,
    translate,
)
from mirrorgan_fast.cli.options import Parser
from mirrorgan_fast.cli.output import OutputError, flush, say
from mirrorgan_fast.errors import InputError, printable
from mirrorgan_fast.files import reason
from mirrorgan_fast.interrupts import Terminated, sigterm_raises
from mirrorgan_fast.processes import OtherProcessError
from mirrorgan_fast.sampling.sampler import is_out_of_memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        the exit status: 0 for success, 2 for bad input, 3 if some of many captions made no image or
        some of many pictures could not be described, 130 for Ctrl-C, 143 for SIGTERM, 141 if the
        reader of standard output closed it early.
    """
    for stream in (sys.stdout, sys.stderr):  # escape characters outside their encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    resumes = False
    try:
        try:
            arguments = list(sys.argv[1:] if arguments is None else arguments)
            if arguments[:1] == ["--"]:  # torchrun ... -m mirrorgan_fast -- train ...
                arguments.pop(0)
            options = _parser().parse_args(arguments)
        finally:
            flush()  # --help and --version print and then exit
        resumes = (
            options.resumes
            and getattr(options, "walk", None) is None
            and getattr(options, "layout", "folder") == "folder"
        )
        with sigterm_raises():
            status: int | None = options.run(options)
    except OtherProcessError:
        return 2  # that process says why
    except InputError as error:
        return _fail(str(error))
    except KeyboardInterrupt as error:
        advice = "; run the same command again to resume" if resumes else ""
        return _fail(f"stopped{advice}", 143 if isinstance(error, Terminated) else 130)
    except OutputError as error:
        # Python flushes standard output again when it exits, which must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error.__cause__, BrokenPipeError):
            return 141
        return _fail(f"standard output: cannot be written ({error})")
    except OSError as error:
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return _fail(printable(f"{place}{reason(error)}"))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail("out of memory; free some memory, or use smaller sizes or batches")
    return status or 0


def _fail(message: str, status: int = 2) -> int:
    say(f"mirrorgan-fast: {message}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="mirrorgan-fast", description=(__doc__ or ""))
    parser.add_argument(
        "--version", action="version", version=f"mirrorgan-fast {version('mirrorgan-fast')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (sample, describe, translate, export, info, paint, data, evaluate, train):
        command.add_to(commands)
    return parser
