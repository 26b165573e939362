"""A small untrained model that generates images quickly, captions for it, and its output files."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mirrorgan_fast.models.config import GawwnConfig, MirrorGANConfig, StackGANConfig
from mirrorgan_fast.models.gawwn import Gawwn
from mirrorgan_fast.models.layers import BatchNormActivation
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.models.stackgan import StackGAN
from mirrorgan_fast.models.systems import SYSTEMS
from mirrorgan_fast.models.text_to_image import TextToImage
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


def small_model_of(system: str) -> TextToImage:
    """Return an untrained model of a text-to-image system, of 32 pixels."""
    kind = SYSTEMS[system]
    fields = {field.name for field in dataclasses.fields(kind.CONFIG)}
    sizes: dict[str, Any] = {k: v for k, v in dataclasses.asdict(SMALL).items() if k in fields}
    if "first_size" in fields:
        sizes |= {"first_size": 16, "generator_channels": 8}
    torch.manual_seed(0)
    return kind(kind.CONFIG(**sizes), Vocabulary([END, *WORDS])).eval()


def vectors_model(**sizes: int) -> StackGAN:
    """Return an untrained StackGAN that reads text vectors of 12 numbers."""
    torch.manual_seed(0)
    default = {"image_size": 32, "first_size": 16, "generator_channels": 8, "embedding_size": 12}
    small = {"condition_size": 5, "noise_size": 6, "residual_blocks": 1}
    config = StackGANConfig(text="vectors", **(default | small | sizes))
    model = StackGAN(config, Vocabulary([END])).eval()
    enliven(model.generator)
    return model


@torch.no_grad()
def enliven(generator: nn.Module) -> None:
    """Give an untrained generator random weights of which images are not nearly gray."""
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | BatchNormActivation):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.bias.normal_(0, 0.3)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.normal_(0, 1.5 / module.weight[0].numel() ** 0.5)
        elif isinstance(module, nn.ConvTranspose2d):
            module.weight.normal_(0, 3 / module.weight[:, 0].numel() ** 0.5)


def pickle_of_python_2(images: np.ndarray) -> bytes:
    """Pickle a list of float32 arrays as Python 2 does in protocol 2: their bytes are a string."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K%cK%c\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T%btb"
    )
    parts = [
        array % (*image.shape, len(image.tobytes()).to_bytes(4, "little") + image.tobytes())
        for image in images
    ]
    return b"\x80\x02](%be." % b"".join(parts)


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
