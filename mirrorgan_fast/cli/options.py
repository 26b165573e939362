"""The options that commands share."""

import argparse
import os
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.text_to_image import SEEDS, TextToImage
from mirrorgan_fast.pictures import MAX_PIXELS
from mirrorgan_fast.recipes import load

BAR_AFTER = 2
"""Seconds; a bar only for what takes longer than people wait."""
Commands = Any
"""What argparse's ``add_subparsers`` returns, for which it has no public name."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage of all options."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        command = self.prog.partition(" ")[2]
        raise InputError(f"{command}: {message}" if command else message)


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    text: str,
    resumes: bool = False,
) -> Any:
    """Add a command to the parser; return its own parser.

    Args:
        commands: of the parser.
        name: of the command.
        run: takes the options and returns the exit status, or None for 0.
        text: what it does, in a line.
        resumes: whether the same command goes on from where it was stopped.
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
        help="a model of the package, or a folder (default: birds-painted)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: auto)")


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
    return _whole(text, 1, 10**9)


def workers(text: str) -> int:
    """Parse a number of worker processes, which may be 0."""
    return _whole(text, 0, 1024)


def seed(text: str) -> int:
    """Parse a seed."""
    return _whole(text, 0, SEEDS - 1, "2^128 - 1")


def _whole(text: str, least: int, most: int, told: str = "") -> int:
    # digits are counted first: Python refuses to convert very many
    if not text.isdecimal() or len(text) > 40 or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(
            f"found {text!r:.60}, expected a whole number from {least} to {told or f'{most:,}'}"
        )
    return int(text)


def device_of(options: argparse.Namespace) -> torch.device:
    """Return the device that was asked for.

    Raises:
        InputError: there is no such device.
    """
    name = options.device
    if name == "auto":  # torchrun numbers the processes of a machine
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.zeros(1, device=name).device
        if device.type == "meta":
            raise ValueError("computes nothing")
    # PyTorch says one or the other of a device that it was not built for, or of an odd number
    except (RuntimeError, AssertionError, ValueError, OverflowError) as error:
        told = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"--device {name}: {told[0]}") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where Triton launches
    return device


def model_of(options: argparse.Namespace) -> TextToImage:
    """Return the model that was asked for, on its device."""
    return load(options.model).to(device_of(options))


def check_output(options: argparse.Namespace) -> None:
    """Raise InputError if the file to write is there already, and is not to be replaced."""
    if os.path.lexists(options.output) and not options.overwrite:
        raise InputError(f"{options.output}: is there already; use another -o, or --overwrite")
