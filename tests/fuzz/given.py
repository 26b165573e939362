"""What the cases start with: a small model, a data set and a training run, all quick to make."""

import json
import os
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image

from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.vocabulary import END, Vocabulary
from tests.fuzz.cases import call

WORDS = ("a", "red", "blue", "green", "bird", "with", "wings", "and", "bill")
_STAGES = ("cnn", "stem", "stream", "gan")
_SIZES = {
    "image_size": 32,
    "stages": 2,
    "generator_channels": 4,
    "discriminator_channels": 4,
    "residual_blocks": 1,
    "noise_size": 6,
    "condition_size": 5,
    "embedding_size": 16,
    "word_embedding_size": 8,
    "caption_length": 8,
    "stream_hidden_size": 8,
}


def model(folder: Path) -> Path:
    """Write an untrained model."""
    torch.manual_seed(0)
    config = MirrorGANConfig(**_SIZES, image_encoder="small", stream_encoder="small")
    MirrorGAN(config, Vocabulary([END, *WORDS])).save_pretrained(folder)
    return folder


def caption(randomly: random.Random) -> str:
    """Return a caption of words that the model knows."""
    return " ".join(randomly.choices(WORDS, k=randomly.randint(1, 8)))


def picture(randomly: random.Random, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Return a picture, mode "RGB"."""
    small = Image.frombytes("RGB", (4, 4), randomly.randbytes(48))
    return small.resize(size, Image.Resampling.BICUBIC)


def data_set(folder: Path, train: int, test: int = 0) -> Path:
    """Write an image folder."""
    randomly = random.Random(0)
    folder.mkdir()
    with (folder / "metadata.jsonl").open("w") as rows:
        for number in range(train + test):
            picture(randomly).save(folder / f"{number}.png")
            split = "train" if number < train else "test"
            captions = [caption(randomly), caption(randomly)]
            row = {"file_name": f"{number}.png", "captions": captions, "split": split}
            rows.write(json.dumps(row) + "\n")
    return folder


def train(stage: str, data: Path | str, steps: int, workers: int = 0) -> list[str]:
    """Return a command that trains in the folder "run"."""
    values = _SIZES | {"cnn.phrases": 8, "gan.last_stage_from": 0, "gan.decay_steps": 0}
    for part in _STAGES:
        values |= {f"{part}.steps": steps, f"{part}.batch_size": 2}
    sets = [f"--set={name}={value}" for name, value in values.items()]
    how = [f"--data={data}", "--recipe=birds-painted", "--run=run", f"--workers={workers}"]
    return ["train", stage, *how, "--quiet", *sets]


def made(arguments: list[str], folder: Path) -> None:
    """Run a command that must succeed."""
    outcome = call(arguments, folder)
    assert outcome.status in (0, 3), f"{arguments}: {outcome.stderr.decode()}"


def copy(source: Path, target: Path, linked: Iterable[str] = ()) -> Path:
    """Copy a folder; files with the names ``linked`` become hard links, which is faster."""

    def copy_file(one: str, other: str) -> None:
        (os.link if os.path.basename(one) in linked else shutil.copy2)(one, other)

    shutil.copytree(source, target, symlinks=True, copy_function=copy_file)
    return target
