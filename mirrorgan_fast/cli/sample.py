"""mirrorgan-fast sample: generate images from captions, or from text vectors."""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mirrorgan_fast.cli.options import (
    Commands,
    add_command,
    add_dtype,
    add_model,
    box,
    check_output,
    dtype_of,
    model_of,
    positive,
    seed,
)
from mirrorgan_fast.cli.output import print_line, say
from mirrorgan_fast.errors import InputError, UnknownWordsWarning, listed, printable
from mirrorgan_fast.figures.walk import check_animation, walk, write_walk
from mirrorgan_fast.memory import keep_memory
from mirrorgan_fast.models.text_to_image import TextToImage
from mirrorgan_fast.ops import why_not_compiled
from mirrorgan_fast.pictures import read_picture, write_sheet
from mirrorgan_fast.sampling.caption_files import Captions
from mirrorgan_fast.sampling.journal import ERRORS, SHEET, read_manifest
from mirrorgan_fast.sampling.run import SamplingSettings, sample_to_folder
from mirrorgan_fast.sampling.sampler import Sampler
from mirrorgan_fast.sampling.sinks import FORMATS
from mirrorgan_fast.sampling.text_vectors import TextVectors

_MAX_SHEET_IMAGES = 256
_NOT_WITH_WALK = (
    "per_caption",
    "format",
    "quality",
    "shard_size",
    "batch_size",
    "dtype",
    "stats",
    "no_sheet",
)


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "sample", _run, "generate images from captions", resumes=True)
    parser.add_argument("caption", nargs="*", help="what to paint")
    parser.add_argument(
        "--captions",
        metavar="FILE",
        help="text (one caption per line), JSON lines, a JSON array, CSV or TSV; "
        "- for standard input",
    )
    parser.add_argument(
        "--text-vectors",
        metavar="FILE",
        help="for models that read these instead of captions: .npy, or a pickle of arrays",
    )
    parser.add_argument(
        "-n", "--per-caption", type=positive, default=1, metavar="N", help="images per caption"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="with --walk: FILE"
    )
    parser.add_argument("--format", choices=FORMATS, default="png", help="default: png")
    parser.add_argument(
        "--quality", type=int, default=95, help="of JPEG and WebP images, 1 to 100 (default: 95)"
    )
    parser.add_argument(
        "--shard-size",
        type=positive,
        default=1000,
        metavar="N",
        help="images per folder, tar or array (default: 1000)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the noise, 0 or more (default: 0)")
    parser.add_argument(
        "--psi",
        type=float,
        default=1.0,
        help="factor of the noise, 0 to 1: less noise makes images more alike (default: 1)",
    )
    parser.add_argument(
        "--batch-size", type=positive, metavar="N", help="images per batch (default: auto)"
    )
    add_dtype(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the images of another run"
    )
    parser.add_argument(
        "--walk",
        type=int,
        metavar="FRAMES",
        help="an animation (-o FILE.webp or .gif) between two captions, or two images of one",
    )
    parser.add_argument(
        "--box",
        type=box,
        action="append",
        default=[],
        metavar="X,Y,WIDTH,HEIGHT",
        help="where to draw, in shares of the image from 0 to 1 (models of the system gawwn); with "
        "--walk it can be given twice: from where to where",
    )
    parser.add_argument(
        "--no-sheet",
        action="store_true",
        help=f"do not write {SHEET}, the contact sheet of captions given as arguments",
    )
    parser.add_argument("--stats", action="store_true", help="print the speed of each stage")
    add_model(parser)


def _load_model(options: argparse.Namespace) -> TextToImage:
    """Return the model; print a note if there are no compiled kernels to make it faster."""
    model, why = model_of(options), why_not_compiled()
    if why and next(model.parameters()).device.type == "cpu" and not options.quiet:
        say(f"mirrorgan-fast: without compiled kernels, so slower: {why}")
    return model


def _run(options: argparse.Namespace) -> int:
    if sum(map(bool, (options.caption, options.captions, options.text_vectors))) != 1:
        raise InputError(
            "sample: give captions as arguments, or a file of them with --captions, or a file of "
            "text vectors with --text-vectors"
        )
    if options.walk is not None:
        return _walk(options)
    settings = SamplingSettings(
        seed=options.seed,
        per_caption=options.per_caption,
        psi=options.psi,
        format=options.format,
        quality=options.quality,
        shard_size=options.shard_size,
        flat=bool(options.caption),
    )
    with _texts(options) as captions:
        keep_memory()
        model = _load_model(options)
        if options.box:
            model.check_takes_boxes()
        if options.caption:
            _check_captions(options.caption, model)
        done = sample_to_folder(
            Sampler(
                model,
                dtype=dtype_of(options),
                batch_size=options.batch_size or "auto",
            ),
            captions,
            options.output,
            settings,
            overwrite=options.overwrite,
            quiet=options.quiet,
        )
    if options.stats:
        say(done.table())
    if done.process > 0:
        return 0
    with_sheet = ""
    of_files = settings.format in ("png", "jpeg", "webp")
    if options.caption and done.images and of_files and not options.no_sheet:
        # About eight columns, and the images of a caption are never split over two rows
        columns = settings.per_caption * max(1, 8 // settings.per_caption)
        rows = read_manifest(options.output, _MAX_SHEET_IMAGES)
        images = [np.asarray(read_picture(options.output / row["file"], "sheet")) for row in rows]
        write_sheet(options.output / SHEET, images, columns=min(len(images), columns))
        with_sheet = f" and {SHEET}"
    print_line(f"{done.images} images{with_sheet} in {printable(str(options.output))}")
    if not done.refused:
        return 0
    errors = printable(str(options.output / ERRORS))
    say(f"{done.refused} captions made no image: {errors}")
    return 3 if done.processes == 1 else 0  # torchrun would treat 3 as a failure


def _texts(options: argparse.Namespace) -> Captions | TextVectors:
    """Return what to sample from."""
    if options.box and options.text_vectors:
        raise InputError("sample: --box is for captions, not for text vectors; leave it out")
    if options.box and not options.caption:
        raise InputError(
            'sample: --box is for captions that are arguments; a "box" in the lines of a file says '
            "where to draw"
        )
    if len(options.box) > 1:
        raise InputError("sample: --box can be given twice only with --walk")
    if options.text_vectors:
        return TextVectors.open(options.text_vectors)
    if options.captions:
        return Captions.open(options.captions)
    return Captions.of(options.caption, *options.box)


def _walk(options: argparse.Namespace) -> int:
    if options.text_vectors:
        raise InputError("--walk: goes between captions, not between text vectors; leave it out")
    if options.captions:
        raise InputError("--walk: give one or two captions as arguments, not a file")
    for name in _NOT_WITH_WALK:
        if getattr(options, name) != options.default_of(name):
            flag = "-n" if name == "per_caption" else "--" + name.replace("_", "-")
            raise InputError(f"--walk: cannot be combined with {flag}; leave out {flag}")
    check_output(options)
    check_animation(options.output)
    model = _load_model(options)
    _check_captions(options.caption, model)
    with warnings.catch_warnings():  # _check_captions has reported unknown words
        warnings.simplefilter("ignore", UnknownWordsWarning)
        images = walk(model, options.caption, options.walk, options.seed, options.psi, options.box)
    write_walk(options.output, images)
    print_line(f"{len(images)} images, back and forth, in {printable(str(options.output))}")
    return 0


def _check_captions(captions: Sequence[str], model: TextToImage) -> None:
    """Report the words that the model does not know, before any image is made."""
    for caption, unknown in zip(captions, model.encode(captions).unknown, strict=True):
        if unknown:
            say(f"unknown words skipped: {listed(unknown)} (in {caption!r:.60})")
