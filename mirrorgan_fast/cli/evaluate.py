"""mirrorgan-fast evaluate: measure a model on a test split."""

import argparse
import json
from pathlib import Path

from mirrorgan_fast.cli.options import (
    Commands,
    add_command,
    add_max_pixels,
    add_model,
    device_of,
    model_of,
    positive,
    seed,
)
from mirrorgan_fast.cli.output import print_line, say
from mirrorgan_fast.data.layouts import open_images
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.memory import keep_memory
from mirrorgan_fast.models.cyclegan import CycleGAN
from mirrorgan_fast.recipes import load_description
from mirrorgan_fast.weights import find_pretrained


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "evaluate", _run, "measure a model on a test split")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="with a test split; none for CycleGAN, whose birds are painted",
    )
    parser.add_argument(
        "--split-field", help="the field of metadata.jsonl that names the split (default: split)"
    )
    parser.add_argument(
        "--count",
        type=positive,
        metavar="N",
        help="number of captions (default: 1000, or one of each picture if there are fewer), or of "
        "birds for CycleGAN (default: 200)",
    )
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument(
        "--judge",
        metavar="NAME_OR_FOLDER",
        help="the model or folder with attributes.safetensors (default: of painted birds, "
        "birds-painted; of other pictures, none)",
    )
    parser.add_argument("--json", action="store_true")
    add_max_pixels(parser)
    add_model(parser)


def _run(options: argparse.Namespace) -> None:
    from mirrorgan_fast.evaluation.features import FeatureReader
    from mirrorgan_fast.evaluation.judges import judge_of
    from mirrorgan_fast.evaluation.report import as_table, evaluate

    keep_memory()
    if load_description(find_pretrained(options.model)).system == CycleGAN.SYSTEM:
        _evaluate_translation(options)
        return
    if options.data is None:
        raise InputError("evaluate: needs --data FOLDER, with a test split")
    images = open_images(options.data, "test", options.split_field, options.max_pixels)
    features = FeatureReader.if_installed()
    if features is None and not options.quiet:
        say(
            "mirrorgan-fast: the kernel distance is left out; to measure it, "
            "pip install 'mirrorgan-fast[imagenet]'"
        )
    figures = evaluate(
        model_of(options),
        images,
        judge=judge_of(images, options.judge, device_of(options)),
        features=features,
        count=options.count,
        seed=options.seed,
        quiet=options.quiet,
    )
    print_line(json.dumps(figures, indent=2) if options.json else as_table(figures))


def _evaluate_translation(options: argparse.Namespace) -> None:
    from mirrorgan_fast.data.painted_birds.bird import ATTRIBUTES
    from mirrorgan_fast.evaluation.translation import evaluate_translation, translation_table
    from mirrorgan_fast.models.attribute_classifier import AttributeClassifier

    for option in ("data", "split_field"):
        if getattr(options, option) is not None:
            raise InputError(
                f"evaluate: a {CycleGAN.SYSTEM} model is measured on painted birds; leave out "
                f"--{option.replace('_', '-')}"
            )
    device = device_of(options)
    figures = evaluate_translation(
        CycleGAN.from_pretrained(options.model).to(device),
        AttributeClassifier.from_pretrained(options.judge or "birds-painted", ATTRIBUTES).to(
            device
        ),
        count=options.count or 200,
        seed=options.seed,
        quiet=options.quiet,
    )
    print_line(json.dumps(figures, indent=2) if options.json else translation_table(figures))
