"""The compiled extension: loads it, and says what it was built with or why it is not here."""

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch  # noqa: F401  the extension needs its libraries loaded


class BuildInfo(NamedTuple):
    """What the compiled extension was built with and for."""

    compiler: str
    """Name and version, e.g. ``gcc 12.2.0``."""
    cpp_standard: int
    """20 for C++20."""
    instruction_sets: list[str]
    """Those the CPU kernels were compiled for, the narrowest first."""
    processor_instruction_sets: list[str]
    """Those of them that this processor has."""
    instruction_set: str
    """The one in use: the widest of those, or what ``ATEN_CPU_CAPABILITY`` limits it to."""
    cuda_architectures: str
    """As in ``TORCH_CUDA_ARCH_LIST``; empty without CUDA kernels."""
    torch_target: str
    """The oldest PyTorch the extension runs on, e.g. ``2.11``."""


def build_info() -> BuildInfo | None:
    """What the extension was built with, or None where there is none (see `why_not_compiled`)."""
    return _info


def instruction_set() -> str:
    """Which instruction set the CPU kernels use; empty where there is no extension."""
    return "" if _info is None else _info.instruction_set


def why_not_compiled() -> str | None:
    """Why there is no compiled extension, in one line, or None where there is one."""
    return _reason


def why_no_cuda_kernels() -> str | None:
    """Why the extension has no CUDA kernels, in one line, or None where it has some."""
    if _info is None or _info.cuda_architectures:
        return _reason
    return _note() or "a PyTorch with CUDA and nvcc were not both there"


def _note() -> str:
    """What could not be built and why, as setup.py left it; empty where all could."""
    note = _PACKAGE / "build_failure.txt"
    return note.read_text(encoding="utf-8").strip() if note.is_file() else ""


def _load() -> tuple[BuildInfo | None, str | None]:
    try:
        extension = import_module("mirrorgan_fast._C")  # registers the compiled ops
        return BuildInfo(**extension.build_info()), None
    except ModuleNotFoundError:
        sources = f"{_PACKAGE} has no extension: start elsewhere, or `pip install -e .` in there"
        return None, _note() or sources
    except ImportError as error:  # built, but not loadable
        return None, str(error)


_PACKAGE = Path(__file__).parent.parent
_info, _reason = _load()
