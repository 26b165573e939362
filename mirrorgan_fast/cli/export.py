"""mirrorgan-fast export: write the model to one file."""

import argparse
from pathlib import Path

from mirrorgan_fast.cli.options import (
    Commands,
    add_command,
    add_model,
    check_output,
    model_of,
)
from mirrorgan_fast.cli.output import print_line, say
from mirrorgan_fast.errors import printable


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "export", _run, "write the model to one file that runs without mirrorgan-fast"
    )
    parser.add_argument("--format", choices=("onnx", "aoti"), required=True)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_model(parser)


def _run(options: argparse.Namespace) -> None:
    # Imported here: importing PyTorch's exporters takes longer than generating an image
    from mirrorgan_fast.inference.export import export

    check_output(options)
    model = model_of(options)
    if not options.quiet:
        say("exporting, which takes up to a minute")
    export(model, options.output, options.format)
    print_line(f"{printable(str(options.output))}: {options.output.stat().st_size / 1e6:.1f} MB")
