"""Runs of the command that are killed at random moments, compared with an undisturbed run."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mirrorgan_fast.models.systems import SYSTEMS
from mirrorgan_fast.models.text_to_image import TextToImage
from tests.small import captions, files, small_model_of, written


@pytest.mark.parametrize(
    ("system", "format", "images", "kills"),
    [
        ("mirrorgan", "png", 2000, 2),
        ("mirrorgan", "tar", 2000, 2),
        *(
            pytest.param("mirrorgan", format, 5000, 20, marks=pytest.mark.slow)
            for format in ("png", "tar", "npy")
        ),
        *(
            pytest.param(system, "npy", 5000, 20, marks=pytest.mark.slow)
            for system in SYSTEMS
            if system != "mirrorgan"
        ),
    ],
)
def test_killed_runs_resume(
    system: str, format: str, images: int, kills: int, tmp_path: Path
) -> None:
    assert kill_and_resume(small_model_of(system), images, kills, format, tmp_path) > 0


def kill_and_resume(
    model: TextToImage, images: int, kills: int, format: str, folder: Path, seed: int = 0
) -> int:
    """Kill the command at random moments, then let it finish; return how often it was killed.

    Raises:
        AssertionError: the output files differ from those of a run without kills.
    """
    randomly = random.Random(seed)
    model.save_pretrained(folder / "model")
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
