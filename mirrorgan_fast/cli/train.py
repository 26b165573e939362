"""mirrorgan-fast train: train one stage of a model, or all of them."""

import argparse
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from mirrorgan_fast.cli.options import (
    Commands,
    add_command,
    add_device,
    add_max_pixels,
    device_of,
    workers,
)
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.layouts import open_images
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.fields import field_kinds
from mirrorgan_fast.memory import keep_memory
from mirrorgan_fast.models.config import CascadeConfig
from mirrorgan_fast.processes import Processes
from mirrorgan_fast.recipes import find_recipe
from mirrorgan_fast.training.backbones import BackboneWeights
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.settings import STAGES, Stage, TrainingSettings

_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


Record = TypeVar("Record", CascadeConfig, TrainingSettings)


def _backbone_weights(text: str) -> BackboneWeights:
    return "random" if text == "random" else Path(text)


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "train", _run, "train on captioned images", resumes=True)
    parser.add_argument(
        "stage",
        choices=(*STAGES, "all", "attributes"),
        help="one stage, all stages, or the classifier of painted birds' attributes",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--split-field", help="the field of metadata.jsonl that names the split (default: split)"
    )
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER", dest="folder")
    parser.add_argument(
        "--recipe",
        default="birds-painted",
        metavar="NAME",
        help="sizes of the networks and training settings (default: birds-painted)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change the recipe: image_size=64, gan.steps=5000, precision=fp32, ...",
    )
    for stage, encoder in (("stem", "Inception-v3"), ("stream", "ResNet-152")):
        parser.add_argument(
            f"--{stage}-weights",
            type=_backbone_weights,
            metavar="FILE",
            help=f"ImageNet weights of {encoder}; or random: train it from scratch",
        )
    parser.add_argument(
        "--compile",
        action="store_true",
        default=None,
        help="use torch.compile for the GAN: slower to start",
    )
    parser.add_argument(
        "--workers", type=workers, default=1, metavar="N", help="processes that read images"
    )
    caching = parser.add_mutually_exclusive_group()
    caching.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="keep decoded and scaled pictures there, for any runs on the same data (default: "
        "RUN/cache, which goes when the run is deleted)",
    )
    caching.add_argument("--no-cache", action="store_true", help="decode pictures in each epoch")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop if a picture cannot be read or has no caption with a word, instead of leaving "
        "it out",
    )
    add_max_pixels(parser)
    parser.add_argument("--quiet", action="store_true")
    add_device(parser)


def _run(options: argparse.Namespace) -> None:
    # Imported here: importing TensorBoard takes longer than generating an image
    from mirrorgan_fast.training.chain import stages_of, train

    if options.stage == "attributes":
        _train_attributes(options)
        return
    config, settings = find_recipe(options.recipe)
    model_fields = {field.name for field in dataclasses.fields(config)}
    for assignment in options.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment}: expected NAME=VALUE")
        if name in model_fields:
            config = _changed(config, name, value)
        else:
            settings = _changed(settings, name, value)
    backbone_weights: dict[Stage, BackboneWeights] = {}
    if options.stem_weights:
        backbone_weights["stem"] = options.stem_weights
    if options.stream_weights:
        backbone_weights["stream"] = options.stream_weights
    keep_memory()
    with _execution(options) as execution:
        train(
            stages_of(config) if options.stage == "all" else (options.stage,),
            config,
            settings,
            open_images(options.data, "train", options.split_field, options.max_pixels),
            options.folder,
            execution,
            backbone_weights=backbone_weights,
        )


def _train_attributes(options: argparse.Namespace) -> None:
    from mirrorgan_fast.training.attributes import train_attribute_classifier

    if options.set:
        raise InputError("train attributes: has no settings; leave out --set")
    keep_memory()
    images = ImageFolder(options.data, "train", options.split_field or "split", options.max_pixels)
    with _execution(options) as execution:
        folder = options.folder / "attributes"
        classifier = train_attribute_classifier(images, folder, execution)
        execution.processes.once(lambda: classifier.save_pretrained(options.folder))


@contextmanager
def _execution(options: argparse.Namespace) -> Iterator[Execution]:
    """Join the processes of ``torchrun``, and leave them at the end."""
    processes = Processes.join()
    try:
        yield Execution(
            device_of(options),
            workers=options.workers,
            compiled=options.compile,
            quiet=options.quiet or processes.rank > 0,
            processes=processes,
            cache=None if options.no_cache else options.cache or options.folder / "cache",
            strict=options.strict,
        )
    finally:
        processes.close()


def _changed(record: Record, name: str, value: str, within: str = "") -> Record:
    """Return a copy of a dataclass with one field, possibly nested (``gan.steps``), set from text.

    ``within`` is the path to the dataclass, for error messages.

    Raises:
        InputError: there is no such field, or the text is not a value for it.
    """
    first, _, rest = name.partition(".")
    fields = {field.name: field for field in dataclasses.fields(record)}
    if first not in fields:
        there = ", ".join(within + field for field in fields)
        raise InputError(f"--set {within}{name}: there is no such setting; there are: {there}")
    current = getattr(record, first)
    if dataclasses.is_dataclass(current) == (not rest):
        if rest:
            found, advice = "is a single setting", f"use {within}{first}=VALUE"
        else:
            found, advice = "is a group of settings", f"set one of them, {within}{first}.NAME"
        raise InputError(f"--set {within}{name}: {within}{first} {found}; {advice}")
    if rest:
        changed: Any = _changed(current, rest, value, f"{within}{first}.")
    else:
        changed = _parsed(within + name, value, field_kinds(type(record))[first])
    return dataclasses.replace(record, **{first: changed})


def _parsed(name: str, text: str, kind: Any) -> Any:
    try:
        if get_origin(kind) is Literal and text in get_args(kind):
            return text
        if kind is bool:
            return {"true": True, "false": False}[text]
        if get_origin(kind) is tuple:
            first, second = text.split(",")
            return float(first), float(second)
        if kind in (int, float):
            return kind(text)
    except (ValueError, KeyError):
        pass
    if get_origin(kind) is tuple:
        expected = "two numbers, such as 0.5,0.999"
    else:
        expected = ", ".join(map(str, get_args(kind))) or _KINDS[kind]
    raise InputError(f"--set {name}={text}: expected {expected}")
