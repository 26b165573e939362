"""mirrorgan-fast paint: make a data set of painted birds."""

import argparse
from pathlib import Path
from typing import get_args

from mirrorgan_fast.cli.options import (
    Commands,
    add_command,
    positive,
    seed,
)
from mirrorgan_fast.data.painted_birds.data_set import Places
from mirrorgan_fast.errors import InputError


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "paint", _run, "paint a data set of captioned birds", resumes=True
    )
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--train", type=positive, default=20_000, metavar="N")
    parser.add_argument("--test", type=positive, default=2_000, metavar="N")
    parser.add_argument("--size", type=int, default=128, help="side length in pixels, 64 to 512")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument(
        "--layout",
        choices=("folder", "cub"),
        default="folder",
        help="an image folder with metadata.jsonl, or the layout of CUB-200-2011",
    )
    parser.add_argument(
        "--masks", action="store_true", help="also write the parts' masks (folder only)"
    )
    parser.add_argument(
        "--places",
        choices=get_args(Places),
        default="middle",
        help="varied: birds of about half the size, anywhere in the picture (default: middle)",
    )
    parser.add_argument("--workers", type=positive, default=None, help="default: one per core")
    parser.add_argument("--quiet", action="store_true")


def _run(options: argparse.Namespace) -> None:
    # Imported here, so that other commands do not pay for it
    from mirrorgan_fast.data.cub import write_cub
    from mirrorgan_fast.data.painted_birds.data_set import PaintedBirds, export_image_folder

    if options.layout == "cub":
        if options.masks:
            raise InputError("paint: the cub layout has no masks; use --layout folder")
        how = options.size, options.seed
        write_cub(
            PaintedBirds("train", options.train, *how, options.places),
            PaintedBirds("test", options.test, *how, options.places),
            options.output,
            progress=not options.quiet,
        )
    else:
        export_image_folder(
            options.output,
            train=options.train,
            test=options.test,
            size=options.size,
            seed=options.seed,
            workers=options.workers,
            progress=not options.quiet,
            masks=options.masks,
            places=options.places,
        )
