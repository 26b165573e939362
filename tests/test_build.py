"""The build: the extension is built where possible; otherwise the package works and says why."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import import_module
from pathlib import Path

import pytest
import torch

from mirrorgan_fast.ops import build_info, why_not_compiled

ROOT = Path(__file__).parent.parent


def test_extension_is_built_where_there_is_a_compiler():
    compiler = os.environ.get("CXX", "c++")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if shutil.which(compiler) is None or not header.is_file():
        pytest.skip("no compiler, or no Python header files")
    assert why_not_compiled() is None
    # Also in a process in which nothing has loaded torch yet.
    script = "from mirrorgan_fast.ops import why_not_compiled as why; print(why())"
    output = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True)
    assert output.stdout == "None\n"


@pytest.mark.skipif(why_not_compiled() is not None, reason=str(why_not_compiled()))
def test_build_info():
    info = build_info()
    assert re.match(r"(gcc|clang) \d+", info.compiler)
    assert info.cpp_standard >= 17
    assert info.instruction_sets[0] == "baseline"
    assert set(info.processor_instruction_sets) <= set(info.instruction_sets)
    assert info.instruction_set in info.processor_instruction_sets
    target = tuple(map(int, info.torch_target.split(".")))
    assert target == (2, 11), "the oldest torch that pyproject.toml asks for"
    assert tuple(map(int, torch.__version__.split(".")[:2])) >= target


def test_kernels_are_part_of_the_package():
    assert import_module("mirrorgan_fast.kernels").__doc__


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("/nowhere/c++", "no C++ compiler: `/nowhere/c++` was not found; install g++ or clang"),
        (shutil.which("false"), "the compiler failed"),
    ],
)
def test_without_a_working_compiler(tmp_path, compiler, reason):
    environment = os.environ | {"CXX": compiler, "CC": compiler}
    environment.pop("MIRRORGAN_FAST_REQUIRE_EXTENSION", None)
    build = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path)]

    result = subprocess.run(build, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert f"mirrorgan-fast: installed WITHOUT compiled kernels: {reason}" in result.stderr
    strict = environment | {"MIRRORGAN_FAST_REQUIRE_EXTENSION": "1"}
    assert subprocess.run(build, cwd=ROOT, env=strict, capture_output=True).returncode != 0

    (library,) = tmp_path.glob("lib*")
    script = """
import json, torch
from mirrorgan_fast import ops
out = ops.glam_attention(torch.ones(1, 2, 3, 3), torch.ones(1, 1, 2), torch.ones(1, 1) > 0)
choice = ops.report()["glam_attention", "cpu", "float32"]
facts = ops.__file__, ops.why_not_compiled(), ops.build_info(), out.sum().item(), choice
print(json.dumps(facts))
"""
    # -S: without the .pth file of an editable install, whose extension would be found.
    paths = [str(library), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    output = subprocess.run(
        [sys.executable, "-S", "-c", script],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
        check=True,
        text=True,
        capture_output=True,
    ).stdout
    where, why, info, total, (implementation, because) = json.loads(output)
    assert Path(where).is_relative_to(library)
    assert reason in why
    assert info is None
    assert total == 36
    assert implementation == "reference"
    assert reason in because


# A compiler that writes empty output files, but fails for CUDA.
COMPILER = """#!/bin/sh
case "$*" in *.cu*) echo "no CUDA here" >&2; exit 1;; esac
while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done
"""
# Runs setup.py as if PyTorch were built for CUDA.
SETUP = """
import runpy, sys
import torch
from torch.utils import cpp_extension
torch.version.cuda, cpp_extension.CUDA_HOME, of_nvcc = "13.0", *sys.argv[1:3]

def check(*compiler):  # raises the same error as PyTorch's
    if of_nvcc != torch.version.cuda:
        raise RuntimeError("nvcc is of\\nCUDA %s, PyTorch of %s", of_nvcc, torch.version.cuda)

cpp_extension._check_cuda_version = check
sys.argv[:3] = ["setup.py"]
runpy.run_path("setup.py")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the compiler is a shell script")
@pytest.mark.parametrize(
    ("of_nvcc", "reason"),
    [("13.0", ""), ("12.4", "(nvcc is of CUDA 12.4, PyTorch of 13.0)")],
)
def test_without_a_working_nvcc_the_others_are_built(tmp_path, of_nvcc, reason):
    for name in ("c++", "nvcc"):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(COMPILER)
        script.chmod(0o755)
    environment = os.environ | dict.fromkeys(("CC", "CXX"), str(tmp_path / "bin" / "c++"))
    environment.pop("FORCE_CUDA", None)
    build = ["build", "--build-base", str(tmp_path / "build")]
    command = [sys.executable, "-c", SETUP, str(tmp_path), of_nvcc, *build]

    result = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    failed = f"the compiler failed {reason}"
    assert f"mirrorgan-fast: installed WITHOUT CUDA kernels: {failed}" in result.stderr
    (package,) = tmp_path.glob("build/lib*/mirrorgan_fast")
    assert list(package.glob("_C*"))
    assert (package / "build_failure.txt").read_text().startswith(failed)
    forced = environment | {"FORCE_CUDA": "1"}
    result = subprocess.run(command, cwd=ROOT, env=forced, text=True, capture_output=True)
    assert result.returncode != 0
    assert f"mirrorgan-fast: CUDA kernels were not built: {failed}" in result.stderr


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch has CUDA")
def test_cuda_cannot_be_forced_on_a_pytorch_without():
    command = [sys.executable, "setup.py", "build_ext"]
    forced = os.environ | {"FORCE_CUDA": "1"}
    result = subprocess.run(command, cwd=ROOT, env=forced, text=True, capture_output=True)
    assert result.returncode != 0
    assert "mirrorgan-fast: FORCE_CUDA=1 needs a PyTorch with CUDA, and nvcc" in result.stderr
