"""Builds the compiled extension `mirrorgan_fast._C`; the rest of the package is in pyproject.toml.

The CPU kernels are always built, the CUDA ones when torch has CUDA and nvcc is there. Where these
cannot be built, the others are; where none can, the package is installed without: every op runs in
plain PyTorch then. `mirrorgan-fast info` repeats the reason given here. That there are none is an
error with MIRRORGAN_FAST_REQUIRE_EXTENSION=1, and that there are none for CUDA with FORCE_CUDA=1.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Command, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

try:
    from torch import version as torch_version
    from torch.utils import cpp_extension
except ImportError:
    cpp_extension = None

# The oldest PyTorch the extension runs on: 2.11, in the form of torch/csrc/stable/version.h.
TORCH_TARGET_VERSION = "0x020b000000000000"


def has_cuda() -> bool:
    """Whether CUDA kernels can run and be compiled: there is a torch for them, and nvcc."""
    return bool(cpp_extension and torch_version.cuda and cpp_extension.CUDA_HOME)


def extension(cuda: bool) -> Extension:
    """The extension, with CUDA kernels or without."""
    cpp_flags = ["-O3", "-g0", "-fvisibility=hidden"]
    macros = [("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)]
    sources = sorted(map(str, [*Path("csrc").glob("*.cpp"), *Path("csrc/cpu").glob("*.cpp")]))
    headers = sorted(map(str, Path("csrc").rglob("*.h")))
    if cpp_extension is None:
        return Extension("mirrorgan_fast._C", sources, depends=headers)

    if not cuda:
        return cpp_extension.CppExtension(
            "mirrorgan_fast._C",
            sources,
            depends=headers,
            define_macros=macros,
            extra_compile_args=cpp_flags,
        )
    # Without a list torch asks the GPU, and a build must not need one. PTX is for what comes later.
    newest = tuple(map(int, (torch_version.cuda or "0.0").split(".")[:2]))
    # Hopper's products of warpgroups are in 9.0a alone.
    default = "8.0;9.0a;10.0+PTX" if newest >= (12, 8) else "8.0+PTX;9.0a"
    architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default)
    macros += [("USE_CUDA", None), ("MIRRORGAN_CUDA_ARCHITECTURES", architectures)]
    if "9.0a" in architectures:
        macros.append(("MIRRORGAN_HAS_WGMMA", None))
    return cpp_extension.CUDAExtension(
        "mirrorgan_fast._C",
        sources + sorted(map(str, Path("csrc/cuda").glob("*.cu"))),
        depends=headers,
        define_macros=macros,
        extra_compile_args={"cxx": cpp_flags, "nvcc": ["-O3", "-std=c++20"]},
    )


def what_is_missing() -> str | None:
    """What this machine lacks to build the extension, in one line, or None."""
    if cpp_extension is None:
        return "torch is not installed where the package is built"
    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(compiler.split()[0]) is None:
        return f"no C++ compiler: `{compiler}` was not found; install g++ or clang, or set CXX"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return f"{header} was not found; install the development package of Python (python3-dev)"
    return None


class BuildOrExplain(build_ext if cpp_extension is None else cpp_extension.BuildExtension):
    """Builds the extension, or leaves the reason why not in the package, as build_failure.txt."""

    def run(self) -> None:
        """Build, or print and leave the reason."""
        in_place = self.inplace or self.editable_mode
        note = Path("." if in_place else self.build_lib) / "mirrorgan_fast" / "build_failure.txt"
        forced = os.environ.get("FORCE_CUDA") == "1"
        if forced and not has_cuda():
            raise SystemExit("mirrorgan-fast: FORCE_CUDA=1 needs a PyTorch with CUDA, and nvcc")
        lost, reason = "compiled", what_is_missing()
        if reason is None:
            reason = self.failure()
            if reason is not None and has_cuda():
                # The extension stays the one that this command and others have made notes of.
                vars(self.extensions[0]).update(vars(extension(cuda=False)))
                of_the_rest = self.failure()
                lost, reason = ("compiled", of_the_rest) if of_the_rest else ("CUDA", reason)
        if reason is None:
            note.unlink(missing_ok=True)
            return
        required = os.environ.get("MIRRORGAN_FAST_REQUIRE_EXTENSION") == "1"
        if forced or (required and lost == "compiled"):
            raise SystemExit(f"mirrorgan-fast: {lost} kernels were not built: {reason}")
        print(f"mirrorgan-fast: installed WITHOUT {lost} kernels: {reason}", file=sys.stderr)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(reason + "\n", encoding="utf-8")

    def failure(self) -> str | None:
        """Build; return in one line why that failed, or None."""
        before = dict(vars(self))
        try:
            super().run()
        except Exception as error:
            # Whatever the compiler driver raises, the package stays usable.
            vars(self).update(before)  # or it could not run again
            text = str(error)
            if len(error.args) > 1 and "%s" in str(error.args[0]):
                text = error.args[0] % error.args[1:]  # which torch leaves to others
            text = " ".join(text.split())
            return f"the compiler failed ({text}); `pip install -v .` shows its output"
        return None


commands: dict[str, type[Command]] = {"build_ext": BuildOrExplain}

setup(
    packages=[
        *find_packages(include=["mirrorgan_fast", "mirrorgan_fast.*"]),
        "mirrorgan_fast.kernels",
    ],
    package_dir={"mirrorgan_fast.kernels": "kernels"},
    ext_modules=[extension(has_cuda())],
    cmdclass=commands,
)
