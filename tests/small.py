"""A small untrained model that generates images quickly, captions for it, and its output files."""

import random
from pathlib import Path

import torch

from mirrorgan_fast.models.config import GawwnConfig, MirrorGANConfig
from mirrorgan_fast.models.gawwn import Gawwn
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.vocabulary import END, Vocabulary

SMALL = MirrorGANConfig(
    image_size=32,
    stages=2,
    generator_channels=4,
    residual_blocks=1,
    embedding_size=16,
    word_embedding_size=8,
    caption_length=8,
    image_encoder="small",
    stream_encoder="small",
    stream_hidden_size=8,
)
WORDS = ["a", "red", "blue", "green", "bird", "with", "wings", "and", "bill"]


def small_model() -> MirrorGAN:
    """Return an untrained model."""
    torch.manual_seed(0)
    return MirrorGAN(SMALL, Vocabulary([END, *WORDS])).eval()


def small_gawwn(config: GawwnConfig) -> Gawwn:
    """Return an untrained GAWWN whose images are not nearly gray."""
    torch.manual_seed(2)
    model = Gawwn(config, Vocabulary([END, *WORDS])).eval()
    with torch.no_grad():
        for name, weight in model.G.named_parameters():
            if weight.dim() > 1:
                fan_in = weight[:, 0].numel() if "path" in name else weight[0].numel()
                weight.normal_(0, 2 / fan_in**0.5)
    return model


def captions(count: int, randomly: random.Random) -> list[str]:
    """Return captions of one to eight words."""
    return [" ".join(randomly.choices(WORDS, k=randomly.randint(1, 8))) for _ in range(count)]


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files in a folder, also hidden ones, except the run's progress."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".progress" not in path.parts
    }


def written(folder: Path) -> int:
    """Return how many images a run, possibly still running, has written."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(".progress/*.jsonl"))
