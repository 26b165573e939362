"""The registers and shared memory that every CUDA kernel takes, from nvcc; no GPU is needed.

python -m benchmarks.cuda_resources            # prints the table
python -m benchmarks.cuda_resources --write    # also records it for benchmarks/tests to compare

Shared memory is a kernel's static shared memory. conv_wgmma's launch requests all of a
multiprocessor's dynamically, and its source compiles only if that is enough. On GPUs other than
Hopper, conv_wgmma is empty.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

from torch.utils import cpp_extension

from tests.nvcc import nvcc

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "benchmarks" / "results" / "cuda-resources.json"
ARCHITECTURES = ("80", "90a", "100a")


def version(compiler: str) -> str:
    """Return the compiler's version, e.g. ``13.0.88``."""
    command = [compiler, "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"V([\d.]+)", printed)[0]


def resources(compiler: str, source: Path) -> dict[str, dict[str, int]]:
    """Compile a source with warnings as errors; return the resources of its kernels, by name.

    Raises:
        subprocess.CalledProcessError: it does not compile; ``stderr`` says why.
    """
    includes = cpp_extension.include_paths()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            compiler, "-c", str(source), "-o", f"{folder}/kernels.o", "-O3", "-std=c++20",
            "-Xcompiler", "-fPIC,-Wall,-Wextra", "--Werror", "all-warnings", "-Xptxas", "-v",
            "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000",
            *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES),
            *(part for path in includes for part in ("-isystem", path)),
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {}
    entry = re.compile(
        r"Compiling entry function '\w*\d([a-z_]+_kernel)IL[ib](\d)E\w*' for 'sm_(\w+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores.*?"
        r"Used (\d+) registers, used \d+ barriers(?:, (\d+) bytes smem)?",
        re.DOTALL,
    )
    for kernel, argument, architecture, stack, spilled, registers, shared in entry.findall(
        result.stdout + result.stderr
    ):
        found[f"{kernel}<{argument}>, sm_{architecture}"] = {
            "registers": int(registers),
            "shared": int(shared or 0),
            "spilled": int(stack) + int(spilled),
        }
    return found


def table(compiler: str) -> dict[str, dict[str, int]]:
    """Return the resources of every kernel in csrc/cuda/."""
    found = {}
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        found.update(resources(compiler, source))
    return found


def main() -> None:
    """Print the table, and record it with ``--write``."""
    parser = argparse.ArgumentParser(description="Registers and shared memory of CUDA kernels.")
    parser.add_argument("--write", action="store_true", help=f"record the table in {RECORDED.name}")
    options = parser.parse_args()
    compiler = nvcc()
    if compiler is None:
        parser.error("nvcc was not found: install the CUDA toolkit, or set CUDA_HOME")
    found = table(compiler)
    for name, used in found.items():
        print(f"{name:50} " + "  ".join(f"{key} {value:6}" for key, value in used.items()))
    if options.write:
        recorded = {"nvcc": version(compiler), "kernels": found}
        RECORDED.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
