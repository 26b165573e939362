"""mirrorgan-fast translate: turn pictures of one domain into pictures of another."""

import argparse
from pathlib import Path

from mirrorgan_fast.cli.options import (
    Commands,
    add_command,
    add_device,
    add_dtype,
    add_max_pixels,
    device_of,
    dtype_of,
    positive,
)
from mirrorgan_fast.cli.output import print_line, say
from mirrorgan_fast.errors import InputError, printable
from mirrorgan_fast.inference.translator import MAX_SIZE, Translator
from mirrorgan_fast.memory import keep_memory
from mirrorgan_fast.models.cyclegan import CycleGAN
from mirrorgan_fast.recipes import load_description
from mirrorgan_fast.sampling.translation import (
    ERRORS,
    FORMATS,
    TranslationSettings,
    translate_to_folder,
)
from mirrorgan_fast.weights import find_pretrained


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "translate", _run, "translate pictures with a CycleGAN", resumes=True
    )
    parser.add_argument(
        "picture", nargs="+", type=Path, help="a file, or a folder whose pictures are translated"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", required=True, metavar="NAME_OR_FOLDER", help="a CycleGAN")
    parser.add_argument(
        "--to", metavar="DOMAIN", help="the name of the domain (default: the model's second one)"
    )
    parser.add_argument(
        "--max-size",
        type=positive,
        default=MAX_SIZE,
        metavar="PIXELS",
        help=f"scale larger pictures down to this longer side (default: {MAX_SIZE:,})",
    )
    parser.add_argument("--format", choices=FORMATS, default="png", help="default: png")
    parser.add_argument(
        "--quality", type=int, default=95, help="of JPEG and WebP, 1 to 100 (default: 95)"
    )
    parser.add_argument(
        "--batch-size", type=positive, metavar="N", help="pictures per batch (default: auto)"
    )
    add_dtype(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the pictures of another run"
    )
    add_max_pixels(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_device(parser)


def _run(options: argparse.Namespace) -> int:
    settings = TranslationSettings(options.max_size, options.format, options.quality)
    keep_memory()
    system = load_description(find_pretrained(options.model)).system
    if system != CycleGAN.SYSTEM:
        raise InputError(
            f"translate: {options.model} is a {system} model, which makes images from text; use "
            f"a {CycleGAN.SYSTEM} model"
        )
    model = CycleGAN.from_pretrained(options.model).to(device_of(options))
    done = translate_to_folder(
        model,
        Translator(model, options.to, dtype_of(options)),
        options.picture,
        options.output,
        settings,
        overwrite=options.overwrite,
        max_pixels=options.max_pixels,
        batch_size=options.batch_size,
        quiet=options.quiet,
    )
    if done.process > 0:
        return 0
    if done.reduced:
        say(
            f"{done.reduced} larger pictures were scaled down to {options.max_size} pixels; "
            f"--max-size keeps more"
        )
    print_line(f"{done.pictures} pictures in {printable(str(options.output))}")
    if not done.failed:
        return 0
    say(f"{done.failed} pictures were not translated: {options.output / ERRORS}")
    return 3
