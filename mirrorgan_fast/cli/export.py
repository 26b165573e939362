"""mirrorgan-fast export: write the model to one file."""

import argparse
from pathlib import Path

from mirrorgan_fast.cli.options import (
    Commands,
    add_command,
    add_model,
    check_output,
    device_of,
    model_of,
)
from mirrorgan_fast.cli.output import print_line, say
from mirrorgan_fast.errors import InputError, printable
from mirrorgan_fast.models.cyclegan import CycleGAN
from mirrorgan_fast.models.text_to_image import TextToImage
from mirrorgan_fast.recipes import load_description
from mirrorgan_fast.weights import find_pretrained


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "export", _run, "write the model to one file that runs without mirrorgan-fast"
    )
    parser.add_argument("--format", choices=("onnx", "aoti"), required=True)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--to", metavar="DOMAIN", help="of a CycleGAN: translates to it (default: the second one)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_model(parser)


def _run(options: argparse.Namespace) -> None:
    # Imported here: importing PyTorch's exporters takes longer than generating an image
    from mirrorgan_fast.inference.export import export

    check_output(options)
    model: TextToImage | CycleGAN
    if load_description(find_pretrained(options.model)).system == CycleGAN.SYSTEM:
        model = CycleGAN.from_pretrained(options.model).to(device_of(options))
    elif options.to is None:
        model = model_of(options)
    else:
        raise InputError(f"export: --to is for a {CycleGAN.SYSTEM} model; leave it out")
    if not options.quiet:
        say("exporting, which takes up to a minute")
    export(model, options.output, options.format, options.to)
    print_line(f"{printable(str(options.output))}: {options.output.stat().st_size / 1e6:.1f} MB")
