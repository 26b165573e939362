"""mirrorgan-fast train: train one stage of a model, or all of them."""

import argparse
import dataclasses
import logging
import os
import shlex
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirrorgan_fast.cli.options import (
    Commands,
    add_command,
    add_device,
    add_max_pixels,
    device_of,
    workers,
)
from mirrorgan_fast.cli.output import print_line, say
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.layouts import open_images
from mirrorgan_fast.data.painted_birds.data_set import is_painted
from mirrorgan_fast.data.unpaired import open_unpaired
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.fields import describe_fields
from mirrorgan_fast.memory import keep_memory
from mirrorgan_fast.models.config import CycleGANConfig, TextToImageConfig
from mirrorgan_fast.models.cyclegan import CycleGAN
from mirrorgan_fast.pictures import MAX_PIXELS
from mirrorgan_fast.processes import Processes
from mirrorgan_fast.recipes import DEFAULT_RECIPE, PHOTOS, load
from mirrorgan_fast.run_settings import RunSettings, check_changes, model_name
from mirrorgan_fast.training.backbones import BackboneWeights
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.fine_tuning import START
from mirrorgan_fast.training.settings import (
    GAN_STAGES,
    SETTINGS,
    STAGES,
    CycleGANTrainingSettings,
    TrainingSettings,
)

if TYPE_CHECKING:
    from mirrorgan_fast.evaluation.validation import Validation
    from mirrorgan_fast.models.text_to_image import TextToImage


def _backbone_weights(text: str) -> BackboneWeights:
    return "random" if text == "random" else Path(text)


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "train", _run, "train on captioned images", resumes=True)
    parser.add_argument(
        "stage",
        nargs="?",
        choices=(*STAGES, "all", "attributes"),
        help="one stage, all stages, or the classifier of attributes that judges images",
    )
    parser.add_argument(
        "--run",
        type=Path,
        metavar="FOLDER",
        dest="folder",
        help=f"of the run; its {SETTINGS} remembers the settings, the data and the weights",
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the pictures and captions")
    parser.add_argument(
        "--data-y",
        type=Path,
        metavar="FOLDER",
        help="of CycleGAN: the pictures of the second domain, if --data has those of the first",
    )
    parser.add_argument(
        "--domains",
        metavar="FIELD=VALUE,VALUE",
        help="of CycleGAN: the field of metadata.jsonl that tells the domains apart, such as "
        "attributes.background=sky,sunset",
    )
    parser.add_argument(
        "--split-field", help="the field of metadata.jsonl that names the split (default: split)"
    )
    parser.add_argument(
        "--attributes",
        metavar="NAME,NAME",
        help="of train attributes: what to read (default: all whose values are texts)",
    )
    parser.add_argument(
        "--judge",
        metavar="NAME_OR_FOLDER",
        help="the model or folder with attributes.safetensors that judges images on the held-out "
        "split (default: of painted birds, birds-painted; of other pictures, none)",
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"sizes of the networks and training settings (default: of painted birds "
        f"{DEFAULT_RECIPE}, of other pictures {PHOTOS})",
    )
    parser.add_argument(
        "--init-from",
        metavar="MODEL",
        help="start from a trained model: a folder, or the name of one of the package",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"a {SETTINGS} to start from, or a part of one"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting: image_size=64, gan.steps=5000, precision=fp32, ...",
    )
    parser.add_argument(
        "--change",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a setting of a stage that has begun: gan.learning_rate=1e-4, ...",
    )
    parser.add_argument(
        "--settings",
        action="store_true",
        help="list every setting with its value, its bounds and its meaning, and train nothing",
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
    parser.add_argument(
        "--no-real-row", action="store_true", help="no real pictures on the sheets of samples"
    )
    parser.add_argument(
        "--no-validation", action="store_true", help="do not measure on the held-out split"
    )
    add_max_pixels(parser)
    parser.add_argument("--quiet", action="store_true")
    add_device(parser)
    parser.set_defaults(max_pixels=None)  # the run remembers it


def _run(options: argparse.Namespace) -> None:
    # Imported here: importing TensorBoard takes longer than generating an image
    from mirrorgan_fast.training.chain import stages_of, train

    if options.stage == "attributes":
        _refuse_what_attributes_have_not(options)
    elif options.attributes is not None:
        raise InputError("train: --attributes is for train attributes; leave it out")
    if options.settings:
        _list_settings(options)
        return
    if options.stage is None or options.folder is None:
        raise InputError(
            f"train: needs a stage ({', '.join(STAGES)}, all or attributes) and --run FOLDER"
        )
    if options.stage == "attributes":
        _train_attributes(options)
        return
    settings, on_purpose = _settings(options)
    if settings.data is None:
        raise InputError("train: needs --data FOLDER, with the pictures to train on")
    if isinstance(settings.config, CycleGANConfig):
        _train_cyclegan(options, settings, on_purpose)
        return
    for option, value in (("--data-y", settings.data_y), ("--domains", settings.domains)):
        if value is not None:
            raise InputError(f"train: {option} is for CycleGAN (--recipe cyclegan-...)")
    assert isinstance(settings.config, TextToImageConfig)
    assert isinstance(settings.training, TrainingSettings)
    keep_memory()
    with _execution(options, on_purpose) as execution:
        train(
            stages_of(settings.config) if options.stage == "all" else (options.stage,),
            settings.config,
            settings.training,
            open_images(settings.data, "train", settings.split_field, settings.max_pixels),
            options.folder,
            execution,
            backbone_weights=settings.weights,
            init_from=_starting_model(options, settings),
            begin=lambda: settings.save(options.folder),
            validate=_validation(options, settings, execution),
        )
        if execution.processes.rank == 0 and not options.quiet:
            say(_what_next(options, settings))


def _train_cyclegan(
    options: argparse.Namespace, settings: RunSettings, on_purpose: frozenset[str]
) -> None:
    """Train on two sets of pictures without captions."""
    from mirrorgan_fast.training.cyclegan import train_cyclegan

    config, training = settings.config, settings.training
    assert isinstance(config, CycleGANConfig)
    assert isinstance(training, CycleGANTrainingSettings)
    assert settings.data is not None
    if options.stage not in ("gan", "all"):
        raise InputError(f"train {options.stage}: CycleGAN has one stage: train gan")
    if options.judge is not None:
        raise InputError("train: CycleGAN has no captions to judge by; leave --judge out")
    if settings.weights:
        raise InputError("train: CycleGAN has no CNN that starts from a file of weights")
    unpaired = open_unpaired(
        settings.data,
        settings.data_y,
        settings.domains,
        split_field=settings.split_field,
        max_pixels=settings.max_pixels,
    )
    if (config.x, config.y) == (CycleGANConfig.x, CycleGANConfig.y):
        config = dataclasses.replace(config, x=unpaired.names[0], y=unpaired.names[1])
    settings = dataclasses.replace(settings, config=config)
    start = None
    if settings.init_from is not None and not os.path.lexists(options.folder / START):
        start = CycleGAN.from_pretrained(settings.init_from)
    keep_memory()
    with _execution(options, on_purpose) as execution:
        train_cyclegan(
            config,
            training,
            unpaired,
            options.folder,
            execution,
            init_from=start,
            begin=lambda: settings.save(options.folder),
        )
        if execution.processes.rank == 0 and not options.quiet:
            folder = shlex.quote(str(options.folder))
            say(
                f"mirrorgan-fast: the model is in {folder}; next: mirrorgan-fast translate "
                f"PICTURES --model {folder} --to {shlex.quote(config.y)} -o out/"
            )


def _starting_model(options: argparse.Namespace, settings: RunSettings) -> "TextToImage | None":
    """Return the model that a new run starts from; a run that has begun has its own copy."""
    if settings.init_from is None or os.path.lexists(options.folder / START):
        return None
    return load(settings.init_from)


def _settings(options: argparse.Namespace) -> tuple[RunSettings, frozenset[str]]:
    """Return the settings that the options and the run's folder give together.

    Returns:
        the settings, and the names of those that change on purpose.
    """
    before = None
    if options.folder is not None and os.path.lexists(options.folder / SETTINGS):
        before = RunSettings.load(options.folder / SETTINGS)
    if options.config is not None and options.recipe is not None:
        raise InputError("--config FILE names its own recipe; leave out --recipe")
    if options.config is not None:
        now = RunSettings.load(options.config)
    elif options.recipe is not None or (before is None and options.init_from is None):
        now = _of_recipe(options)
    elif before is None:
        now = RunSettings.of_model(options.init_from)
    else:
        now = before
    if before is not None and now is not before:
        now = dataclasses.replace(
            now,
            data=now.data or before.data,
            data_y=now.data_y or before.data_y,
            domains=now.domains or before.domains,
            weights=before.weights,
            init_from=now.init_from or before.init_from,
        )
    for assignment in (*options.set, *options.change):
        name, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment}: expected NAME=VALUE")
        now = now.changed(name, value)
    given: dict[str, Any] = {
        "data": options.data,
        "data_y": options.data_y,
        "domains": options.domains,
        "split_field": options.split_field,
        "max_pixels": options.max_pixels,
        "init_from": None if options.init_from is None else model_name(options.init_from),
    }
    weights = {"stem": options.stem_weights, "stream": options.stream_weights}
    weights = {stage: file for stage, file in weights.items() if file is not None}
    given["weights"] = {**now.weights, **weights} if weights else None
    now = dataclasses.replace(now, **{k: v for k, v in given.items() if v is not None})
    on_purpose = frozenset(assignment.partition("=")[0] for assignment in options.change)
    if before is not None:
        check_changes(before, now, options.folder, on_purpose)
    elif on_purpose:
        raise InputError(f"--change: {options.folder} has no run yet; use --set")
    return now, on_purpose


def _of_recipe(options: argparse.Namespace) -> RunSettings:
    """Return the settings of the recipe that is asked for, or of the one for the pictures."""
    name, images = options.recipe, None
    if options.data is not None and name in (None, PHOTOS):
        pixels = MAX_PIXELS if options.max_pixels is None else options.max_pixels
        images = open_images(options.data, "train", options.split_field, pixels)
    if name is None:
        painted = isinstance(images, ImageFolder) and is_painted(images.record(0))
        name = DEFAULT_RECIPE if images is None or painted else PHOTOS
    return RunSettings.of_recipe(name, None if images is None else len(images))


def _validation(
    options: argparse.Namespace, settings: RunSettings, execution: Execution
) -> "Validation | None":
    """Return what measures a model on the held-out split, if the data set has one."""
    from mirrorgan_fast.evaluation.features import FeatureReader
    from mirrorgan_fast.evaluation.judges import judge_of
    from mirrorgan_fast.evaluation.validation import Validation

    assert settings.data is not None
    if options.stage not in (*GAN_STAGES, "all") or options.no_validation:
        return None
    try:
        images = open_images(settings.data, "test", settings.split_field, settings.max_pixels)
    except InputError as error:
        if not options.quiet:
            say(f"mirrorgan-fast: there is no held-out split to validate on ({error})")
        return None
    assert isinstance(settings.training, TrainingSettings)
    needed = settings.training.best_by == "kernel_distance"
    features = FeatureReader() if needed else FeatureReader.if_installed()
    return Validation(images, judge_of(images, options.judge, execution.device), features)


def _what_next(options: argparse.Namespace, settings: RunSettings) -> str:
    """Return what was trained, and what to type next."""
    from mirrorgan_fast.training.chain import stages_of

    run = f"--run {shlex.quote(str(options.folder))}"
    later = stages_of(settings.config)
    if options.stage in ("all", later[-1]):
        folder = shlex.quote(str(options.folder))
        return (
            f"mirrorgan-fast: the model is in {folder}; next: mirrorgan-fast sample "
            f'"a caption" --model {folder} -o out/, or evaluate --data '
            f"{shlex.quote(str(settings.data))} --model {folder}"
        )
    following = later[later.index(options.stage) + 1]
    command = f"mirrorgan-fast train {following} {run}"
    return f"mirrorgan-fast: {options.stage} is trained; next: {command}"


def _list_settings(options: argparse.Namespace) -> None:
    settings, _ = _settings(options)
    rows = [*describe_fields(settings.config), *describe_fields(settings.training)]
    for name, value, expected, meaning in rows:
        print_line(f"{name} = {value}  ({expected})")
        if meaning:
            print_line(textwrap.indent(textwrap.fill(meaning, 96), "    "))


def _refuse_what_attributes_have_not(options: argparse.Namespace) -> None:
    """Raise InputError for options that the training of the classifier would ignore."""
    for name in (
        *("recipe", "config", "set", "change", "settings", "init_from"),  # it has no settings
        *("data_y", "domains"),
        *("stem_weights", "stream_weights", "compile", "no_real_row", "no_validation", "judge"),
    ):
        if getattr(options, name):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"train attributes: {option} has no meaning here; leave it out")


def _train_attributes(options: argparse.Namespace) -> None:
    from mirrorgan_fast.training.attributes import train_attribute_classifier

    if options.data is None:
        raise InputError(
            "train attributes: needs --data FOLDER, an image folder whose rows have attributes"
        )
    keep_memory()
    pixels = MAX_PIXELS if options.max_pixels is None else options.max_pixels
    images = ImageFolder(options.data, "train", options.split_field or "split", pixels)
    with _execution(options) as execution:
        folder = options.folder / "attributes"
        wanted = options.attributes.split(",") if options.attributes else ()
        classifier = train_attribute_classifier(images, folder, execution, attributes=wanted)
        execution.processes.once(lambda: classifier.save_pretrained(options.folder))


@contextmanager
def _execution(
    options: argparse.Namespace, on_purpose: frozenset[str] = frozenset()
) -> Iterator[Execution]:
    """Join the processes of ``torchrun``, and leave them at the end."""
    processes = Processes.join()
    if processes.rank > 0:  # process 0 says what all find
        logging.getLogger("mirrorgan_fast").setLevel(logging.ERROR)
    try:
        yield Execution(
            device_of(options),
            workers=options.workers,
            compiled=options.compile,
            quiet=options.quiet or processes.rank > 0,
            processes=processes,
            cache=None if options.no_cache else options.cache or options.folder / "cache",
            strict=options.strict,
            changes=on_purpose,
            real_row=not options.no_real_row,
        )
    finally:
        processes.close()
