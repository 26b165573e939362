"""Peak memory of the fused generator of `cub`, without its weights and images; Linux only.

python -m benchmarks.memory [--dtype float32] [--batch 8]
"""

import argparse
import ctypes
from pathlib import Path

import torch

from benchmarks.cub_model import inputs_of, model_of_cub
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.memory import keep_memory

STATUS = Path("/proc/self/status")


def kilobytes(name: str) -> int:
    """Return an entry of this process's status file."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Print the peak memory of two calls."""
    parser = argparse.ArgumentParser(description="Memory of the generator of cub.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    plain = model_of_cub()
    inputs = inputs_of(plain, options.batch, plain.config.caption_length)
    renderer = fuse(plain, getattr(torch, options.dtype))
    ctypes.CDLL(None).malloc_trim(0)  # free what building the model left behind
    keep_memory()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak
    before = kilobytes("VmRSS")
    images = [renderer.render(*inputs) for _ in range(2)]
    taken = (kilobytes("VmHWM") - before) * 1024 - sum(image.nbytes for image in images)
    print(f"{options.dtype}, batch {options.batch}: {taken / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
