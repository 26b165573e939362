"""The ``mirrorgan-fast`` command: parses, calls the library, prints."""

import argparse
import dataclasses
import io
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

import numpy as np
import torch
from tqdm import tqdm

from mirrorgan_fast.data.captioned_images import ImageFolder
from mirrorgan_fast.data.open_images import open_images
from mirrorgan_fast.errors import InputError, UnknownWordsWarning, listed, printable
from mirrorgan_fast.fields import field_kinds
from mirrorgan_fast.files import reason
from mirrorgan_fast.interrupts import Terminated, sigterm_raises
from mirrorgan_fast.models.config import ModelConfig
from mirrorgan_fast.models.mirrorgan import SEEDS, MirrorGAN
from mirrorgan_fast.ops import build_info, report, why_no_cuda_kernels, why_not_compiled
from mirrorgan_fast.pictures import MAX_PIXELS, read_picture, square
from mirrorgan_fast.sampling.caption_files import Captions
from mirrorgan_fast.sampling.journal import ERRORS, SHEET, read_manifest
from mirrorgan_fast.sampling.run import SamplingSettings, sample_to_folder
from mirrorgan_fast.sampling.sampler import Sampler, is_out_of_memory
from mirrorgan_fast.sampling.sheet import write_sheet
from mirrorgan_fast.sampling.sinks import FORMATS
from mirrorgan_fast.sampling.walk import check_animation, walk, write_walk
from mirrorgan_fast.training import settings as training_settings
from mirrorgan_fast.training.precision import keep_memory
from mirrorgan_fast.training.pretraining import BackboneWeights
from mirrorgan_fast.training.settings import STAGES, Stage, TrainingSettings
from mirrorgan_fast.weights import PRETRAINED, find_pretrained, load_description

_BATCH_SIZE = 16
_BAR_AFTER = 2  # seconds; a bar only for what takes longer than people wait
_MOST_ON_SHEET = 256
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
_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}
Record = TypeVar("Record", ModelConfig, TrainingSettings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        the exit status: 0, or 2 for bad input, 3 if some of many captions made no image or some of
        many pictures could not be described, 130 for Ctrl-C, 143 for SIGTERM, 141 if what it prints
        is not read to its end.
    """
    for stream in (sys.stdout, sys.stderr):  # a character that they cannot show is escaped
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    goes_on = False
    try:
        try:
            options = _parser().parse_args(arguments)
        finally:
            _flush()  # what --help prints
        goes_on = (
            options.goes_on
            and getattr(options, "walk", None) is None
            and getattr(options, "layout", "folder") == "folder"
        )
        with sigterm_raises():
            status: int | None = options.run(options)
    except InputError as error:
        return _fail(str(error))
    except KeyboardInterrupt as error:
        advice = "; the same command goes on from here" if goes_on else ""
        return _fail(f"stopped{advice}", 143 if isinstance(error, Terminated) else 130)
    except _OutputError as error:
        # Python flushes at its end what is not printed yet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error.__cause__, BrokenPipeError):
            return 141
        return _fail(f"standard output: cannot be written ({error})")
    except OSError as error:
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return _fail(printable(f"{place}{reason(error)}"))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail("out of memory; free some of it, or ask for smaller sizes or batches")
    return status or 0


class _OutputError(Exception):
    """What is printed cannot be written: the disk is full, or nobody reads the pipe."""


def _print(text: str) -> None:
    """Print to standard output, at once: another program may wait for it."""
    try:
        print(text)
    except OSError as error:
        raise _OutputError(reason(error)) from error
    _flush()


def _flush() -> None:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        raise _OutputError(reason(error)) from error


def _say(text: str) -> None:
    """Print to standard error, whether anybody reads it or not."""
    with suppress(OSError):
        print(text, file=sys.stderr)


def _fail(message: str, status: int = 2) -> int:
    _say(f"mirrorgan-fast: {message}")
    return status


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage of all options."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        command = self.prog.partition(" ")[2]
        raise InputError(f"{command}: {message}" if command else message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mirrorgan-fast", description=(__doc__ or ""))
    parser.add_argument(
        "--version", action="version", version=f"mirrorgan-fast {version('mirrorgan-fast')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str,
        run: Callable[[argparse.Namespace], int | None],
        text: str,
        goes_on: bool = False,  # where it was stopped
    ) -> Any:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run, goes_on=goes_on, default_of=added.get_default)
        return added

    sample = command("sample", _sample, "make images from captions", goes_on=True)
    sample.add_argument("caption", nargs="*", help="what to paint")
    sample.add_argument(
        "--captions",
        metavar="FILE",
        help="text (a caption a line), JSON lines, a JSON array, CSV or TSV; -: standard input",
    )
    sample.add_argument(
        "-n", "--per-caption", type=_positive, default=1, metavar="N", help="images of each caption"
    )
    sample.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="or FILE with --walk"
    )
    sample.add_argument("--format", choices=FORMATS, default="png", help="default: png")
    sample.add_argument(
        "--quality", type=int, default=95, help="of JPEG and WebP, 1 to 100 (default: 95)"
    )
    sample.add_argument(
        "--shard-size",
        type=_positive,
        default=1000,
        metavar="N",
        help="images of a folder, tar or array (default: 1000)",
    )
    sample.add_argument("--seed", type=_seed, default=0, help="0 or more (default: 0)")
    sample.add_argument(
        "--psi",
        type=float,
        default=1.0,
        help="0 to 1: less noise makes images more alike (default: 1)",
    )
    sample.add_argument(
        "--batch-size", type=_positive, metavar="N", help="images made together (default: auto)"
    )
    sample.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="in which the generator computes (default: what is fastest here)",
    )
    sample.add_argument(
        "--overwrite", action="store_true", help="replace the images of another run"
    )
    sample.add_argument(
        "--walk",
        type=int,
        metavar="FRAMES",
        help="an animation (-o FILE.webp or .gif) between two captions, or two images of one",
    )
    sample.add_argument(
        "--no-sheet",
        action="store_true",
        help=f"without the contact sheet, {SHEET}, of captions given as arguments",
    )
    sample.add_argument("--stats", action="store_true", help="tell the speed of each stage")
    _add_model(sample)

    describe = command("describe", _describe, "say what is in images")
    describe.add_argument("image", nargs="+", type=Path)
    describe.add_argument("--json", action="store_true", help="print one JSON object a line")
    _add_max_pixels(describe)
    _add_model(describe)

    exporting = command("export", _export, "write the model as one file that runs without us")
    exporting.add_argument("--format", choices=("onnx", "aoti"), required=True)
    exporting.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    exporting.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    _add_model(exporting)

    info = command("info", _info, "versions, device, implementations and models")
    info.add_argument("--json", action="store_true")
    info.add_argument("--words", action="store_true", help="only list the words the model knows")
    info.add_argument("--model", default="birds-painted", metavar="NAME_OR_FOLDER")

    paint = command("paint", _paint, "paint a data set of captioned birds", goes_on=True)
    paint.add_argument("output", type=Path, help="a new folder")
    paint.add_argument("--train", type=_positive, default=20_000, metavar="N")
    paint.add_argument("--test", type=_positive, default=2_000, metavar="N")
    paint.add_argument("--size", type=int, default=128, help="pixels a side, 64 to 512")
    paint.add_argument("--seed", type=_seed, default=0)
    paint.add_argument(
        "--layout",
        choices=("folder", "cub"),
        default="folder",
        help="an image folder with metadata.jsonl, or the layout of CUB-200-2011",
    )
    paint.add_argument("--masks", action="store_true", help="with the parts' masks (folder)")
    paint.add_argument("--workers", type=_positive, default=None, help="default: one a core")
    paint.add_argument("--quiet", action="store_true")

    evaluate = command("evaluate", _evaluate, "measure a model on a test split")
    evaluate.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    evaluate.add_argument("--split-field", help="of metadata.jsonl's rows (default: split)")
    evaluate.add_argument(
        "--count", type=_positive, metavar="N", help="of captions (default: 1000, or all if fewer)"
    )
    evaluate.add_argument("--seed", type=_seed, default=0)
    evaluate.add_argument(
        "--judge",
        default="birds-painted",
        metavar="NAME_OR_FOLDER",
        help="where attributes.safetensors is (default: that of the package)",
    )
    evaluate.add_argument("--json", action="store_true")
    _add_max_pixels(evaluate)
    _add_model(evaluate)

    training = command("train", _train, "train on captioned images", goes_on=True)
    training.add_argument(
        "stage",
        choices=(*STAGES, "all", "attributes"),
        help="a part, the whole chain, or the judge of painted birds' attributes",
    )
    training.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    training.add_argument("--split-field", help="of metadata.jsonl's rows (default: split)")
    training.add_argument("--run", type=Path, required=True, metavar="FOLDER", dest="folder")
    training.add_argument("--preset", default="birds-painted", help="sizes and recipe")
    training.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change the preset: image_size=64, gan.steps=5000, precision=fp32, ...",
    )
    for stage, encoder in (("stem", "Inception-v3"), ("stream", "ResNet-152")):
        training.add_argument(
            f"--{stage}-weights",
            type=_backbone_weights,
            metavar="FILE",
            help=f"ImageNet weights of {encoder}; or random: train it from nothing",
        )
    training.add_argument(
        "--compile",
        action="store_true",
        default=None,
        help="torch.compile for the GAN: slower to begin",
    )
    training.add_argument(
        "--workers", type=_workers, default=1, metavar="N", help="processes that read images"
    )
    _add_max_pixels(training)
    training.add_argument("--quiet", action="store_true")
    _add_device(training)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="birds-painted",
        metavar="NAME_OR_FOLDER",
        help="a model of the package, or a folder (default: birds-painted)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: auto)")


def _add_max_pixels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-pixels",
        type=_positive,
        default=MAX_PIXELS,
        metavar="N",
        help=f"refuse larger pictures before they are decoded (default: {MAX_PIXELS:,})",
    )


def _positive(text: str) -> int:
    return _whole(text, 1, 10**9)


def _workers(text: str) -> int:
    return _whole(text, 0, 1024)


def _seed(text: str) -> int:
    return _whole(text, 0, SEEDS - 1, "2^128 - 1")


def _whole(text: str, least: int, most: int, told: str = "") -> int:
    # digits are counted first: Python refuses to convert very many
    if not text.isdecimal() or len(text) > 40 or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(
            f"found {text!r:.60}, expected a whole number from {least} to {told or f'{most:,}'}"
        )
    return int(text)


def _backbone_weights(text: str) -> BackboneWeights:
    return "random" if text == "random" else Path(text)


def _device(options: argparse.Namespace) -> torch.device:
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


def _model(options: argparse.Namespace) -> MirrorGAN:
    return MirrorGAN.from_pretrained(options.model).to(_device(options))


def _painter(options: argparse.Namespace) -> MirrorGAN:
    """Return the model, and say if it takes longer than it could."""
    model, why = _model(options), why_not_compiled()
    if why and next(model.parameters()).device.type == "cpu" and not options.quiet:
        _say(f"mirrorgan-fast: without compiled kernels, so slower: {why}")
    return model


def _sample(options: argparse.Namespace) -> int:
    if bool(options.caption) == bool(options.captions):
        raise InputError("sample: give captions as arguments, or a file of them with --captions")
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
    captions = Captions.of(options.caption) if options.caption else Captions.open(options.captions)
    with captions:
        keep_memory()
        model = _painter(options)
        if options.caption:
            _check_captions(options.caption, model)
        done = sample_to_folder(
            Sampler(
                model,
                dtype=None if options.dtype is None else getattr(torch, options.dtype),
                batch_size=options.batch_size or "auto",
            ),
            captions,
            options.output,
            settings,
            overwrite=options.overwrite,
            quiet=options.quiet,
        )
    if options.stats:
        _say(done.table())
    if done.process > 0:
        return 0
    with_sheet = ""
    of_files = settings.format in ("png", "jpeg", "webp")
    if options.caption and done.images and of_files and not options.no_sheet:
        # about eight, and no caption's images in two rows
        columns = settings.per_caption * max(1, 8 // settings.per_caption)
        rows = read_manifest(options.output, _MOST_ON_SHEET)
        images = [np.asarray(read_picture(options.output / row["file"], "sheet")) for row in rows]
        write_sheet(options.output / SHEET, images, columns=min(len(images), columns))
        with_sheet = f" and {SHEET}"
    _print(f"{done.images} images{with_sheet} in {printable(str(options.output))}")
    if not done.refused:
        return 0
    errors = printable(str(options.output / ERRORS))
    _say(f"{done.refused} captions made no image: {errors}")
    return 3 if done.processes == 1 else 0  # torchrun takes it for a failure


def _walk(options: argparse.Namespace) -> int:
    if options.captions:
        raise InputError("--walk: give one or two captions as arguments, not a file")
    for name in _NOT_WITH_WALK:
        if getattr(options, name) != options.default_of(name):
            flag = "-n" if name == "per_caption" else "--" + name.replace("_", "-")
            raise InputError(f"--walk: makes one animation, for which there is no {flag}")
    _check_output(options)
    check_animation(options.output)
    model = _painter(options)
    _check_captions(options.caption, model)
    with warnings.catch_warnings():  # of unknown words, which were told
        warnings.simplefilter("ignore", UnknownWordsWarning)
        images = walk(model, options.caption, options.walk, options.seed, options.psi)
    write_walk(options.output, images)
    _print(f"{len(images)} images, forth and back, in {printable(str(options.output))}")
    return 0


def _check_output(options: argparse.Namespace) -> None:
    if os.path.lexists(options.output) and not options.overwrite:
        raise InputError(f"{options.output}: is there already; use another -o, or --overwrite")


def _check_captions(captions: Sequence[str], model: MirrorGAN) -> None:
    """Tell what of captions the model does not know, before anything is made."""
    for caption, unknown in zip(captions, model.encode(captions).unknown, strict=True):
        if unknown:
            _say(f"unknown words skipped: {listed(unknown)} (in {caption!r:.60})")


def _describe(options: argparse.Namespace) -> int:
    model = _model(options)
    size = model.config.image_size
    count, failed = len(options.image), 0
    bar = tqdm(
        total=count, desc="describing", unit="image", delay=_BAR_AFTER, disable=options.quiet
    )
    with bar:
        for start in range(0, count, _BATCH_SIZE):
            paths, pictures = [], []
            for path in options.image[start : start + _BATCH_SIZE]:
                bar.update()
                try:  # one at a time at its full size
                    whole = read_picture(path, "describe", options.max_pixels)
                    pictures.append(square(whole, size))
                    paths.append(path)
                except InputError as error:
                    if count == 1:
                        raise
                    failed += 1
                    if bar.format_dict["elapsed"] > _BAR_AFTER:  # it is in the way
                        bar.clear()
                    _say(f"mirrorgan-fast: {error}")
            for path, text in zip(paths, model.describe(pictures), strict=True):
                if options.json:
                    _print(json.dumps({"image": str(path), "description": text}))
                else:
                    _print(f"{printable(str(path))}: {text}")
    if not failed:
        return 0
    _say(f"{failed} of {count} pictures could not be described")
    return 3


def _export(options: argparse.Namespace) -> None:
    # PyTorch's exporters take longer to import than an image
    from mirrorgan_fast.export import export

    _check_output(options)
    model = _model(options)
    if not options.quiet:
        _say("exporting, which takes up to a minute")
    export(model, options.output, options.format)
    _print(f"{printable(str(options.output))}: {options.output.stat().st_size / 1e6:.1f} MB")


def _info(options: argparse.Namespace) -> None:
    _, vocabulary = load_description(find_pretrained(options.model))
    if options.words:
        words = vocabulary.words[1:]
        _print(json.dumps(words) if options.json else "\n".join(map(printable, words)))
        return
    built = build_info()
    extension: object = f"not built: {why_not_compiled()}"
    if built:
        missing = why_no_cuda_kernels()
        extension = built._asdict() | ({"without_cuda": missing} if missing else {})
    facts = {
        "mirrorgan-fast": version("mirrorgan-fast"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "extension": extension,
        "ops": {
            f"{op} ({device}, {dtype})": f"{choice.implementation}: {choice.reason}"
            for (op, device, dtype), choice in report().items()
        },
        "models": sorted(folder.parent.name for folder in PRETRAINED.glob("*/config.json")),
    }
    if options.json:
        _print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            _print(f"{name}:")
            for key, entry in value.items():
                _print(f"  {key}: {_listed(entry)}")
        else:
            _print(f"{name}: {_listed(value)}")


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _paint(options: argparse.Namespace) -> None:
    # Pillow's and NumPy's drawing only: importing it is not every command's cost
    from mirrorgan_fast.data.cub import write_cub
    from mirrorgan_fast.data.painted_birds import PaintedBirds, export_image_folder

    if options.layout == "cub":
        if options.masks:
            raise InputError("paint: the cub layout has no place for masks; use --layout folder")
        write_cub(
            PaintedBirds("train", options.train, options.size, options.seed),
            PaintedBirds("test", options.test, options.size, options.seed),
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
        )


def _evaluate(options: argparse.Namespace) -> None:
    from mirrorgan_fast.evaluation.attributes import AttributeClassifier, is_painted
    from mirrorgan_fast.evaluation.report import as_table, evaluate

    keep_memory()
    images = open_images(options.data, "test", options.split_field, options.max_pixels)
    judge: AttributeClassifier | None = None
    if isinstance(images, ImageFolder) and is_painted(images.record(0)):
        judge = AttributeClassifier.from_pretrained(options.judge).to(_device(options))
    figures = evaluate(
        _model(options),
        images,
        classifier=judge,
        count=options.count,
        seed=options.seed,
        quiet=options.quiet,
    )
    _print(json.dumps(figures, indent=2) if options.json else as_table(figures))


def _train(options: argparse.Namespace) -> None:
    # TensorBoard and what it imports take longer than an image
    from mirrorgan_fast.training.chain import train

    if options.stage == "attributes":
        _train_attributes(options)
        return
    config = ModelConfig.preset(options.preset)
    settings = training_settings.PRESETS[options.preset]
    model_fields = {field.name for field in dataclasses.fields(ModelConfig)}
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
    train(
        STAGES if options.stage == "all" else (options.stage,),
        config,
        settings,
        open_images(options.data, "train", options.split_field, options.max_pixels),
        options.folder,
        device=_device(options),
        backbone_weights=backbone_weights,
        workers=options.workers,
        compiled=options.compile,
        quiet=options.quiet,
    )


def _train_attributes(options: argparse.Namespace) -> None:
    from mirrorgan_fast.evaluation.attributes import train_attribute_classifier

    if options.set:
        raise InputError("train attributes: has no settings; leave out --set")
    keep_memory()
    classifier = train_attribute_classifier(
        ImageFolder(options.data, "train", options.split_field or "split", options.max_pixels),
        options.folder / "attributes",
        device=_device(options),
        workers=options.workers,
        quiet=options.quiet,
    )
    classifier.save_pretrained(options.folder)


def _changed(record: Record, name: str, value: str, within: str = "") -> Record:
    """Return the dataclass with one field, of itself or of a part (``gan.steps``), set from text.

    What it is ``within`` is told in errors.

    Raises:
        InputError: there is no such field, or the text is no value for it.
    """
    first, _, rest = name.partition(".")
    fields = {field.name: field for field in dataclasses.fields(record)}
    if first not in fields:
        there = ", ".join(within + field for field in fields)
        raise InputError(f"--set {within}{name}: there is no such setting; there are: {there}")
    current = getattr(record, first)
    if dataclasses.is_dataclass(current) == (not rest):
        parts = f"; give one of its parts, {within}{first}.NAME" if not rest else ""
        raise InputError(f"--set {within}{name}: {within}{first} is no single setting{parts}")
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
        expected = "two numbers, as 0.5,0.999"
    else:
        expected = ", ".join(map(str, get_args(kind))) or _KINDS[kind]
    raise InputError(f"--set {name}={text}: expected {expected}")
