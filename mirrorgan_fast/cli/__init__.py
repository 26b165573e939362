"""The command line: each command parses, calls the library, prints."""

from mirrorgan_fast.cli.main import main

__all__ = ["main"]
