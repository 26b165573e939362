"""What the fused generator of `cub` takes beside its weights and its images, at its peak; Linux.

python benchmarks/memory.py [--dtype float32] [--batch 8]
"""

import argparse
import ctypes
from pathlib import Path

import torch

from mirrorgan_fast.data.vocabulary import END, Vocabulary
from mirrorgan_fast.models.config import ModelConfig
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.training.precision import keep_memory

STATUS = Path("/proc/self/status")


def kilobytes(name: str) -> int:
    """Return an entry of the process's status."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Print the peak of two calls."""
    parser = argparse.ArgumentParser(description="Memory of the generator of cub.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    config = ModelConfig.preset("cub")
    vocabulary = Vocabulary([END, *(f"word{i}" for i in range(5449))])
    model = MirrorGAN(config, vocabulary).eval().fused(getattr(torch, options.dtype))
    tokens = torch.randint(1, 5000, (options.batch, config.caption_length))
    lengths = torch.full((options.batch,), config.caption_length)
    noise = torch.randn(options.batch, config.noise_size)
    condition_noise = torch.randn(options.batch, config.condition_size)
    ctypes.CDLL(None).malloc_trim(0)  # what building the model has left
    keep_memory()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak is now
    before = kilobytes("VmRSS")
    images = [model.render(tokens, lengths, noise, condition_noise) for _ in range(2)]
    taken = (kilobytes("VmHWM") - before) * 1024 - sum(image.nbytes for image in images)
    print(f"{options.dtype}, batch {options.batch}: {taken / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
