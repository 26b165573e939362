"""Which attributes a picture of a painted bird shows, and how many that a caption names are there.

The judge is a small CNN trained on real painted birds, apart from every network it judges. It reads
all of `ATTRIBUTES` from one picture; a generated picture is right where the judge sees in it what
its caption names.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.data.captioned_images import ImageFolder, TrainingExamples
from mirrorgan_fast.data.painted_birds import ATTRIBUTES
from mirrorgan_fast.data.vocabulary import Vocabulary
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import whole_file
from mirrorgan_fast.tensor_files import read_safetensors
from mirrorgan_fast.training.precision import autocast
from mirrorgan_fast.training.pretraining import to_signed
from mirrorgan_fast.training.run import Run
from mirrorgan_fast.weights import PRETRAINED, load_state

FILE_NAME = "attributes.safetensors"
INPUT_SIZE = 128
_CHANNELS = 128


class AttributeClassifier(nn.Module):
    """A CNN of 0.5 M parameters that tells every attribute of a painted bird.

    Each attribute looks where it is to be seen (a softmax over an 8 x 8 map) and is read from what
    is there by a linear layer of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(3, 24, stride=2),
            *_convolution(24, 48, stride=2),
            *_convolution(48, 96, stride=2),
            *_convolution(96, 96, stride=1),
            *_convolution(96, _CHANNELS, stride=2),
            *_convolution(_CHANNELS, _CHANNELS, stride=1),
            *_convolution(_CHANNELS, _CHANNELS, stride=1),
        )
        self.look = nn.Conv2d(_CHANNELS, len(ATTRIBUTES), 1)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(_CHANNELS, len(values)) for name, values in ATTRIBUTES.items()}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Judge images (N, 3, H, W) in [-1, 1]; other sizes than 128 x 128 are resized.

        Returns:
            for each attribute the logits (N, K) of its K values, in the order of `ATTRIBUTES`.
        """
        if images.shape[-2:] != (INPUT_SIZE, INPUT_SIZE):
            images = functional.interpolate(
                images, size=(INPUT_SIZE, INPUT_SIZE), mode="bilinear", antialias=True
            )
        features = self.features(images)
        looks = self.look(features).flatten(2).softmax(dim=2)
        seen = looks @ features.flatten(2).transpose(1, 2)  # (N, attributes, channels)
        return {name: head(seen[:, i]) for i, (name, head) in enumerate(self.heads.items())}

    @torch.no_grad()
    def read(
        self,
        images: Tensor,  # (N, 3, H, W)
        batch_size: int = 64,
    ) -> list[dict[str, str]]:
        """Return the value of every attribute in each image, uint8 or floats in [-1, 1]."""
        device = self.look.weight.device
        readings: list[dict[str, str]] = []
        for batch in images.split(batch_size):
            signed = to_signed(batch, device) if batch.dtype == torch.uint8 else batch.to(device)
            found = {name: logits.argmax(dim=1).tolist() for name, logits in self(signed).items()}
            readings += [
                {name: ATTRIBUTES[name][found[name][i]] for name in ATTRIBUTES}
                for i in range(len(batch))
            ]
        return readings

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write attributes.safetensors, in float16, into ``folder``.

        Raises:
            InputError: the folder cannot be written.
        """
        tensors = {
            name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in self.state_dict().items()
        }
        with whole_file(Path(folder) / FILE_NAME) as partial:
            partial.write_bytes(save(tensors))

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str] = "birds-painted") -> Self:
        """Load the classifier in a folder, or the one that comes with a model of the package.

        Raises:
            InputError: there is none, or its file is damaged or has NaN or infinity.
        """
        paths = [folder / FILE_NAME for folder in (Path(name_or_path), PRETRAINED / name_or_path)]
        path = next((path for path in paths if os.path.exists(path)), None)
        if path is None:
            raise InputError(
                f"{paths[0]}: there is no such attribute classifier; name a folder that has one, "
                f"or train it (mirrorgan-fast train attributes)"
            )
        classifier = cls()
        load_state(classifier, read_safetensors(path), path)
        return classifier.eval()


@dataclass(frozen=True)
class AttributeAccuracy:
    """How many claims about attributes there are, and how many of them are right."""

    claims: dict[str, int]
    right: dict[str, int]

    @classmethod
    def count(cls, judged: Iterable[tuple[str, bool]]) -> Self:
        """Count claims: the attribute each is about, and whether it is right."""
        claims: Counter[str] = Counter()
        right: Counter[str] = Counter()
        for name, is_right in judged:
            claims[name] += 1
            right[name] += is_right
        return cls(dict(claims), dict(right))

    @property
    def overall(self) -> float:
        """Share of all claims that are right; 0 if there are none, because nothing was shown."""
        return sum(self.right.values()) / max(1, sum(self.claims.values()))

    @property
    def by_attribute(self) -> dict[str, float]:
        """Share of each attribute's claims that are right, in the order of `ATTRIBUTES`."""
        return {
            name: self.right[name] / self.claims[name] for name in ATTRIBUTES if name in self.claims
        }


def attribute_accuracy(
    readings: Sequence[Mapping[str, str]], named: Sequence[Mapping[str, str]]
) -> AttributeAccuracy:
    """Count which attributes that N captions name are seen in their images.

    Args:
        readings: what ``AttributeClassifier.read`` sees in each image.
        named: what each caption asserts.
    """
    return AttributeAccuracy.count(
        (name, reading[name] == value)
        for reading, claims in zip(readings, named, strict=True)
        for name, value in claims.items()
    )


def _convolution(in_channels: int, out_channels: int, *, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


def train_attribute_classifier(
    images: ImageFolder,
    folder: Path,
    *,
    steps: int = 1200,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    device: torch.device,
    workers: int = 1,
    quiet: bool = False,
) -> AttributeClassifier:
    """Train the classifier on exported painted birds, and write it into ``folder``.

    Pictures are never flipped or moved, because direction and size are attributes, and only
    disturbed as far as every color keeps its name.

    Args:
        images: the training split of an exported folder, whose rows have "attributes".
        folder: gets checkpoints, curves and attributes.safetensors; goes on from the checkpoint
            there is.
        steps: of the optimizer.
        batch_size: pictures a step.
        learning_rate: at the start; falls to 0 in a straight line.
        seed: of the weights, the order and the disturbances.
        precision: see ``autocast``.
        device: to train on.
        workers: processes that read pictures.
        quiet: no progress bar.

    Raises:
        InputError: a row has no such attributes, or see ``Run``.
    """
    vocabulary = Vocabulary.build(c for i in range(len(images)) for c in images.captions(i))
    examples = TrainingExamples(images, vocabulary, INPUT_SIZE, seed=seed)
    settings = {
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "data": examples.digest(),
    }
    run = Run(folder, steps, settings, quiet=quiet)
    truth = _as_numbers(true_attributes(images, range(len(images))))
    torch.manual_seed(seed)
    classifier = AttributeClassifier().to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), learning_rate)
    run.restore({"model": classifier, "optimizer": optimizer})
    with run:
        for step, _, batch in run.batches(examples, batch_size, seed, workers):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - step / steps)
            values = truth[batch["index"]].to(device)
            with autocast(device, precision):
                logits = classifier(_disturb(to_signed(batch["image"], device)))
            losses = [
                functional.cross_entropy(of_attribute.float(), values[:, i])
                for i, of_attribute in enumerate(logits.values())
            ]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found = torch.stack([of_attribute.argmax(dim=1) for of_attribute in logits.values()])
            run.log(step, {"loss": loss.detach(), "right": (values == found.T).float().mean()})
            if run.saving(step):
                state = {"model": classifier.state_dict(), "optimizer": optimizer.state_dict()}
                run.save(step, state)
    classifier.save_pretrained(folder)
    return classifier.eval()


def _disturb(images: Tensor) -> Tensor:
    """Blur, light, tint and noise, each image by its own amount.

    A color moves by a fifth of the way to the next one at most; the blur has a standard deviation
    of up to 0.8 pixels and the noise of up to 8 grey levels.
    """

    def amount(*shape: int) -> Tensor:
        return torch.rand(len(images), *shape, device=images.device)

    blurred = functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.lerp(images, blurred, amount(1, 1, 1))
    gain = 1 + 0.08 * (2 * amount(1, 1, 1) - 1)
    shift = 0.06 * (2 * amount(1, 1, 1) - 1) + 0.03 * (2 * amount(3, 1, 1) - 1)
    noise = 0.06 * amount(1, 1, 1) * torch.randn_like(images)
    return (images * gain + shift + noise).clamp(-1, 1)


def true_attributes(images: ImageFolder, indices: Iterable[int]) -> list[dict[str, str]]:
    """Return what the pictures show, from the "attributes" of their rows.

    Raises:
        InputError: a row has none, or not those of a painted bird.
    """
    found = []
    for index in indices:
        record = images.record(index)
        if not is_painted(record):
            raise InputError(
                f"picture {images.name(index)!r} has no attributes of a painted bird in "
                f"metadata.jsonl; export painted birds (mirrorgan-fast paint)"
            )
        found.append(record["attributes"])
    return found


def is_painted(record: Mapping[str, Any]) -> bool:
    """Return whether a row of metadata.jsonl has the attributes of a painted bird."""
    attributes = record.get("attributes")
    return isinstance(attributes, dict) and all(
        attributes.get(name) in values for name, values in ATTRIBUTES.items()
    )


def _as_numbers(attributes: Sequence[Mapping[str, str]]) -> Tensor:
    """Return int64 (N, attributes): which of its values each attribute has."""
    return torch.tensor(
        [[values.index(of[name]) for name, values in ATTRIBUTES.items()] for of in attributes]
    )
