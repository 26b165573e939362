"""mirrorgan-fast describe: write captions for images."""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from mirrorgan_fast.cli.options import (
    BAR_AFTER,
    Commands,
    add_command,
    add_max_pixels,
    add_model,
    model_of,
)
from mirrorgan_fast.cli.output import print_line, say
from mirrorgan_fast.errors import InputError, printable
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.pictures import read_picture, square

_BATCH_SIZE = 16


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "describe", _run, "describe images in words")
    parser.add_argument("image", nargs="+", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    add_max_pixels(parser)
    add_model(parser)


def _run(options: argparse.Namespace) -> int:
    model = model_of(options)
    if not isinstance(model, MirrorGAN):
        makes = ": it only makes images, with sample --text-vectors FILE"
        raise InputError(
            f"describe: {options.model} is a {model.SYSTEM} model, which has no captioner"
            f"{makes if model.config.vector_size else ''}; use a {MirrorGAN.SYSTEM} model"
        )
    size = model.config.image_size
    count, failed = len(options.image), 0
    bar = tqdm(total=count, desc="describing", unit="image", delay=BAR_AFTER, disable=options.quiet)
    with bar:
        for start in range(0, count, _BATCH_SIZE):
            paths, pictures = [], []
            for path in options.image[start : start + _BATCH_SIZE]:
                bar.update()
                try:  # only one picture at a time is in memory at full size
                    whole = read_picture(path, "describe", options.max_pixels)
                    pictures.append(square(whole, size))
                    paths.append(path)
                except InputError as error:
                    if count == 1:
                        raise
                    failed += 1
                    if bar.format_dict["elapsed"] > BAR_AFTER:  # the bar is visible
                        bar.clear()
                    say(f"mirrorgan-fast: {error}")
            for path, text in zip(paths, model.describe(pictures), strict=True):
                if options.json:
                    print_line(json.dumps({"image": str(path), "description": text}))
                else:
                    print_line(f"{printable(str(path))}: {text}")
    if not failed:
        return 0
    say(f"{failed} of {count} pictures could not be described")
    return 3
