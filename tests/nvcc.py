"""Finds CUDA's compiler."""

import shutil

from torch.utils import cpp_extension


def nvcc() -> str | None:
    """Return the path of the compiler, or None if there is none."""
    home = cpp_extension.CUDA_HOME
    return shutil.which("nvcc") or (home and shutil.which("nvcc", path=f"{home}/bin"))
