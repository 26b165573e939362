"""Loads the compiled extension; says what it was built with, or why there is none."""

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch  # noqa: F401  loads the libraries that the extension needs


class BuildInfo(NamedTuple):
    """What the compiled extension was built with and for."""

    compiler: str
    """Name and version, e.g. ``gcc 12.2.0``."""
    cpp_standard: int
    """20 for C++20."""
    instruction_sets: list[str]
    """The instruction sets that the CPU kernels were compiled for, narrowest first."""
    processor_instruction_sets: list[str]
    """Those of them that this processor has."""
    instruction_set: str
    """The one in use: the widest of those, or what ``ATEN_CPU_CAPABILITY`` limits it to."""
    cuda_architectures: str
    """As in ``TORCH_CUDA_ARCH_LIST``; empty without CUDA kernels."""
    torch_target: str
    """The oldest PyTorch that the extension runs on, e.g. ``2.11``."""


def build_info() -> BuildInfo | None:
    """Return what the extension was built with, or None without one (see `why_not_compiled`)."""
    return _info


def instruction_set() -> str:
    """Return the instruction set that the CPU kernels use; empty without an extension."""
    return "" if _info is None else _info.instruction_set


def why_not_compiled() -> str | None:
    """Return in one line why there is no compiled extension, or None if there is one."""
    return _reason


def why_no_cuda_kernels() -> str | None:
    """Return in one line why the extension has no CUDA kernels, or None if it has some."""
    if _info is None or _info.cuda_architectures:
        return _reason
    return _note() or "the build had no PyTorch with CUDA, or no nvcc"


def _note() -> str:
    """Return what setup.py could not build and why; empty if it built everything."""
    note = _PACKAGE / "build_failure.txt"
    return note.read_text(encoding="utf-8").strip() if note.is_file() else ""


def _load() -> tuple[BuildInfo | None, str | None]:
    try:
        extension = import_module("mirrorgan_fast._C")  # registers the compiled ops
        return BuildInfo(**extension.build_info()), None
    except ModuleNotFoundError:
        sources = (
            f"{_PACKAGE} has no extension: start Python in another folder, or `pip install -e .`"
            " in that one"
        )
        return None, _note() or sources
    except ImportError as error:  # the extension exists, but cannot be loaded
        return None, str(error)


_PACKAGE = Path(__file__).parent.parent
_info, _reason = _load()
