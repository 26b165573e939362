"""mirrorgan-fast info: show versions, device, implementations and models."""

import argparse
import json
import platform
from importlib.metadata import version

import torch

from mirrorgan_fast.cli.options import Commands, add_command
from mirrorgan_fast.cli.output import print_line
from mirrorgan_fast.errors import InputError, printable
from mirrorgan_fast.models.config import CycleGANConfig, TextToImageConfig
from mirrorgan_fast.ops import build_info, report, why_no_cuda_kernels, why_not_compiled
from mirrorgan_fast.recipes import load_description
from mirrorgan_fast.weights import PRETRAINED, find_pretrained, load_vocabulary


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "info", _run, "show versions, device, implementations and models"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--words", action="store_true", help="list only the words that the model knows"
    )
    parser.add_argument("--model", default="birds-painted", metavar="NAME_OR_FOLDER")


def _run(options: argparse.Namespace) -> None:
    folder = find_pretrained(options.model)
    model = load_description(folder)
    config = model.config
    about: dict[str, object] = {
        "name": options.model,
        "system": model.system,
        "image_size": config.image_size,
    }
    if isinstance(config, CycleGANConfig):
        if options.words:
            raise InputError(f"info: {options.model} is a {model.system} model, which has no words")
        about["domains"] = [config.x, config.y]
    elif isinstance(config, TextToImageConfig):
        vocabulary = load_vocabulary(folder)
        if options.words:
            config.check_text(None)
            words = vocabulary.words[1:]
            print_line(json.dumps(words) if options.json else "\n".join(map(printable, words)))
            return
        reads_words = config.vector_size is None
        about |= {"words": len(vocabulary)} if reads_words else {"vector_size": config.vector_size}
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
        "model": about,
        "models": sorted(folder.parent.name for folder in PRETRAINED.glob("*/config.json")),
    }
    if options.json:
        print_line(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            print_line(f"{name}:")
            for key, entry in value.items():
                print_line(f"  {key}: {_listed(entry)}")
        else:
            print_line(f"{name}: {_listed(value)}")


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
