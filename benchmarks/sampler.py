"""From captions to files: the speed of each sink, growth with the number of images, startup time.

python -m benchmarks.sampler sinks      # birds-painted; each sink in turns with the generator alone
python -m benchmarks.sampler growth     # a small model, 10 to 100,000 images: time and memory
python -m benchmarks.sampler start      # time to the first image, and to import torch
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.harness import OtherProcesses
from mirrorgan_fast.memory import keep_memory
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.ops import build_info
from mirrorgan_fast.sampling.caption_files import Captions
from mirrorgan_fast.sampling.run import SamplingSettings, sample_to_folder
from mirrorgan_fast.sampling.sampler import Sampler
from mirrorgan_fast.sampling.sinks import FORMATS
from tests.small import captions, small_model

CAPTIONS = [
    "a red bird",
    "this bird has a yellow crown and a white belly",
    "a small blue bird with a black bill, white wing bars and a long tail, facing left",
]
COMMAND = [sys.executable, "-m", "mirrorgan_fast", "sample"]
Figures = dict[str, dict[str, float]]


def sinks(images: int = 192, rounds: int = 5) -> Figures:
    """Return each sink's images per second, and the median of its ratios to the generator."""
    keep_memory()
    sampler = Sampler(MirrorGAN.from_pretrained())
    texts = [CAPTIONS[i % len(CAPTIONS)] for i in range(images)]
    rates: dict[str, list[float]] = {"generator": []} | {format: [] for format in FORMATS}
    generator(sampler, texts[: sampler.batch_size])
    for _ in range(rounds):
        rates["generator"].append(images / generator(sampler, texts))
        for format in FORMATS:
            with tempfile.TemporaryDirectory() as folder, Captions.of(texts) as opened:
                settings = SamplingSettings(format=format)
                start = time.perf_counter()
                sample_to_folder(sampler, opened, folder, settings)
                rates[format].append(images / (time.perf_counter() - start))
    return {
        name: {
            "images/s": statistics.median(found),
            "of the generator": statistics.median(
                a / b for a, b in zip(found, rates["generator"], strict=True)
            ),
        }
        for name, found in rates.items()
    }


def generator(sampler: Sampler, texts: list[str]) -> float:
    """Return the seconds of the text encoder and the generator alone, from tokens to pixels."""
    encoded = sampler.model.encode(texts)
    noise, condition_noise = sampler.model.noise(0, range(len(texts)))
    start = time.perf_counter()
    for first in range(0, len(texts), sampler.batch_size):
        rows = slice(first, first + sampler.batch_size)
        sampler.renderer.render(
            encoded.tokens[rows], encoded.lengths[rows], noise[rows], condition_noise[rows]
        )
    return time.perf_counter() - start


def growth(max_count: int = 100_000) -> Figures:
    """Return time and peak memory of the command for more and more images of a small model."""
    found: Figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small_model().save_pretrained(folder / "model")
        count = 10
        while count <= max_count:
            text = "".join(f"{caption}\n" for caption in captions(count, random.Random(0)))
            (folder / "captions.txt").write_text(text, encoding="utf-8")
            given = f"--captions captions.txt --model model --quiet --format npy -o {count}"
            seconds, kilobytes = taken([*COMMAND, *given.split()], folder)
            found[f"{count:,}"] = {"seconds": seconds, "peak MB": kilobytes / 1000}
            count *= 10
    return found


def start(rounds: int = 5) -> Figures:
    """Return the seconds to make one image and to import PyTorch, measured in turns."""
    seconds: dict[str, list[float]] = {"import torch": [], "one image": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            importing = [sys.executable, "-c", "import torch"]
            seconds["import torch"].append(taken(importing, Path(folder))[0])
            command = [*COMMAND, CAPTIONS[0], "-o", "out"]
            seconds["one image"].append(taken(command, Path(folder))[0])
    beyond = [a - b for a, b in zip(seconds["one image"], seconds["import torch"], strict=True)]
    return {name: {"seconds": statistics.median(found)} for name, found in seconds.items()} | {
        "beyond": {"seconds": statistics.median(beyond)}
    }


def taken(command: list[str], folder: Path) -> tuple[float, int]:
    """Run a command; return its seconds and its peak memory in kB, up to 20 ms before its end."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        # Not the usage from wait4, which starts at the usage of this process
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        found = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
        peak = max([peak, *found])
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: failed")
    return time.perf_counter() - began, peak


def markdown(figures: Figures) -> str:
    """Return figures as a table."""
    names = list(next(iter(figures.values())))
    lines = [["", *names], ["---"] * (len(names) + 1)]
    lines += [[name, *map(_cell, values.values())] for name, values in figures.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: float) -> str:
    return f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def of_file(path: Path) -> str:
    """Return the table of a result file."""
    return markdown(json.loads(path.read_text(encoding="utf-8"))["figures"])


def main() -> None:
    """Measure, print the table and write the result file."""
    parser = argparse.ArgumentParser(description="Measure the sampler.")
    parser.add_argument("what", choices=("sinks", "growth", "start"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    others = OtherProcesses()
    figures = {"sinks": sinks, "growth": growth, "start": start}[options.what]()
    print(markdown(figures))
    if options.what == "sinks":
        print(f"other processes took {others.share():.0%} of the cores")
    if options.json:
        built = build_info()
        found = {
            "what": options.what,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "build": None if built is None else built._asdict(),
            "figures": figures,
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
