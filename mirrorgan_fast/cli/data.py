"""mirrorgan-fast data prepare: make an image folder of a public repository of pictures."""

import argparse
from pathlib import Path

from mirrorgan_fast.cli.options import Commands, Parser, add_command, positive
from mirrorgan_fast.cli.output import print_line, say
from mirrorgan_fast.errors import listed, printable

_NAMED = 20  # rows and pictures that are named; all are counted


def add_to(commands: Commands) -> None:
    """Add the command."""
    text = "make an image folder of a public repository of pictures"
    data = commands.add_parser("data", help=text, description=text)
    prepare = data.add_subparsers(required=True, metavar="prepare", parser_class=Parser)
    repositories = prepare.add_parser("prepare", help=text, description=text).add_subparsers(
        required=True, metavar="REPOSITORY", parser_class=Parser
    )
    for name, meaning in (
        ("clothing", "photographs of garments: github.com/alexeygrigorev/clothing-dataset"),
        (
            "watercolors",
            "paintings of fruit: github.com/jwilber/USDA_Pomological_Watercolors",
        ),
    ):
        parser = add_command(repositories, name, _run, meaning)
        parser.set_defaults(repository=name)
        parser.add_argument("path", type=Path, help="a copy of the repository, which is only read")
        parser.add_argument("output", type=Path, help="a new folder")
        parser.add_argument(
            "--size",
            type=positive,
            default=256,
            help="scale pictures down to at most this many pixels a side (default: 256)",
        )
        parser.add_argument("--workers", type=positive, default=None, help="default: one per core")
        parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _run(options: argparse.Namespace) -> None:
    # Imported here, so that other commands do not pay for it
    from mirrorgan_fast.data.prepare.clothing import Clothing
    from mirrorgan_fast.data.prepare.watercolors import Watercolors
    from mirrorgan_fast.data.prepare.writer import prepare

    report = prepare(
        Clothing() if options.repository == "clothing" else Watercolors(),
        options.path,
        options.output,
        size=options.size,
        workers=options.workers,
        progress=not options.quiet,
    )
    for fault in report.faults[:_NAMED]:
        say(f"left out: {printable(fault)}")
    if len(report.faults) > _NAMED:
        say(f"left out: {len(report.faults) - _NAMED:,} more")
    for reason, count in sorted(report.unused.items()):
        if count:
            print_line(f"not used: {count:,} {reason}")
    if report.faults:
        print_line(f"missing or damaged: {len(report.faults):,}")
    train, test = report.pictures["train"], report.pictures["test"]
    pairs = [f"{color} {name}" for name, color in report.held_out]
    print_line(f"{options.output}: {train:,} pictures to train and {test:,} to test")
    if pairs:
        print_line(f"only in test: {listed(pairs, limit=100)}")
