"""Options shared by several commands."""

import argparse
import os
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from mirrorgan_fast.boxes import Box, box_in, to_box
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.text_to_image import SEEDS, TextToImage
from mirrorgan_fast.pictures import MAX_PIXELS
from mirrorgan_fast.recipes import load

BAR_AFTER = 2
"""Seconds before a progress bar appears; shorter work shows none."""
Commands = Any
"""The type that argparse's ``add_subparsers`` returns, which has no public name."""


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError with argparse's message."""
        command = self.prog.partition(" ")[2]
        raise InputError(f"{command}: {message}" if command else message)


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    text: str,
    resumes: bool = False,
) -> Any:
    """Add a command and return its parser.

    Args:
        commands: what ``add_subparsers`` returned.
        name: of the command.
        run: takes the options and returns the exit status, or None for 0.
        text: one line that says what the command does.
        resumes: whether a stopped command resumes when it is run again.
    """
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run, resumes=resumes, default_of=parser.get_default)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add --model, --quiet and --device."""
    parser.add_argument(
        "--model",
        default="birds-painted",
        metavar="NAME_OR_FOLDER",
        help="the name of a packaged model, or a folder (default: birds-painted)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: auto)")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add --dtype."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="data type of the generator (default: the fastest on this machine)",
    )


def dtype_of(options: argparse.Namespace) -> torch.dtype | None:
    """Return the data type of ``--dtype``; None: the fastest."""
    dtype: torch.dtype | None = None if options.dtype is None else getattr(torch, options.dtype)
    return dtype


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """Add --max-pixels."""
    parser.add_argument(
        "--max-pixels",
        type=positive,
        default=MAX_PIXELS,
        metavar="N",
        help=f"refuse larger pictures before they are decoded (default: {MAX_PIXELS:,})",
    )


def positive(text: str) -> int:
    """Parse a count."""
    return _whole_number(text, 1, 10**9)


def workers(text: str) -> int:
    """Parse a number of worker processes, which may be 0."""
    return _whole_number(text, 0, 1024)


def seed(text: str) -> int:
    """Parse a seed."""
    return _whole_number(text, 0, SEEDS - 1, "2^128 - 1")


def box(text: str) -> Box:
    """Parse a box, four numbers with commas between them."""
    try:
        return to_box(box_in(text))
    except InputError as error:
        raise argparse.ArgumentTypeError(f"found {text!r:.60}, {error}") from error


def _whole_number(text: str, minimum: int, maximum: int, maximum_text: str = "") -> int:
    # The length is checked first: Python refuses to convert strings of very many digits
    if not text.isdecimal() or len(text) > 40 or not minimum <= int(text) <= maximum:
        raise argparse.ArgumentTypeError(
            f"found {text!r:.60}, expected a whole number from {minimum} to "
            f"{maximum_text or f'{maximum:,}'}"
        )
    return int(text)


def device_of(options: argparse.Namespace) -> torch.device:
    """Return the device of ``--device``.

    Raises:
        InputError: there is no such device.
    """
    name = options.device
    if name == "auto":  # LOCAL_RANK: torchrun's number of this process on its machine
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.zeros(1, device=name).device
        if device.type == "meta":
            raise ValueError("computes nothing")
    # PyTorch raises any of these for a device that it was not built for, or an invalid index
    except (RuntimeError, AssertionError, ValueError, OverflowError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"--device {name}: {lines[0]}") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton launches on the current device
    return device


def model_of(options: argparse.Namespace) -> TextToImage:
    """Return the model of ``--model``, on the device of ``--device``."""
    return load(options.model).to(device_of(options))


def check_output(options: argparse.Namespace) -> None:
    """Raise InputError if the output file exists and ``--overwrite`` was not given."""
    if os.path.lexists(options.output) and not options.overwrite:
        raise InputError(f"{options.output}: already exists; use another -o, or --overwrite")
