"""Kill the sampler at random moments, go on, and compare with a run that nobody disturbed.

python benchmarks/kills.py [--images 5000] [--kills 20] [--format png]
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from shapes import SMALL

from mirrorgan_fast.data.vocabulary import END, Vocabulary
from mirrorgan_fast.models.mirrorgan import MirrorGAN

WORDS = ["a", "red", "blue", "green", "bird", "with", "wings", "and", "bill"]


def small_model() -> MirrorGAN:
    """Return an untrained model."""
    torch.manual_seed(0)
    return MirrorGAN(SMALL, Vocabulary([END, *WORDS])).eval()


def captions(count: int, randomly: random.Random) -> list[str]:
    """Return captions of one to eight words."""
    return [" ".join(randomly.choices(WORDS, k=randomly.randint(1, 8))) for _ in range(count)]


def files(folder: Path) -> dict[str, bytes]:
    """Return what is in a folder, hidden files too, except how far the run is."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".progress" not in path.parts
    }


def written(folder: Path) -> int:
    """Return how many images a run that may be going on has written."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(".progress/*.jsonl"))


def kill_and_go_on(images: int, kills: int, format: str, folder: Path, seed: int = 0) -> int:
    """Run the command to its end, killing it; return how often that was.

    Raises:
        AssertionError: the output is not, byte for byte, that of a run without kills.
    """
    randomly = random.Random(seed)
    small_model().save_pretrained(folder / "model")
    text = "".join(f"{caption}\n" for caption in captions(images, randomly))
    (folder / "captions.txt").write_text(text, encoding="utf-8")

    def command(output: str) -> list[str]:
        given = f"--captions captions.txt --model model --quiet --shard-size 700 --format {format}"
        return [sys.executable, "-m", "mirrorgan_fast", "sample", *given.split(), "-o", output]

    killed = 0
    for moment in sorted(randomly.randrange(images) for _ in range(kills)):
        process = subprocess.Popen(command("killed"), cwd=folder, stdout=subprocess.DEVNULL)
        while process.poll() is None and written(folder / "killed") <= moment:
            time.sleep(0.001)
        time.sleep(randomly.uniform(0, 0.03))
        process.kill()
        killed += process.wait() < 0
    for output in ("killed", "undisturbed"):
        subprocess.run(command(output), cwd=folder, check=True, stdout=subprocess.DEVNULL)
    assert files(folder / "killed") == files(folder / "undisturbed")
    return killed


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description="Kill the sampler and go on.")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--format", default="png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        killed = kill_and_go_on(options.images, options.kills, options.format, Path(folder))
    print(
        f"{options.images} images ({options.format}), killed {killed} times: "
        "the files of a run without kills, byte for byte"
    )


if __name__ == "__main__":
    main()
