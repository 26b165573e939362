"""The judge: a CNN that reads attributes of a picture, such as the colors of a bird's parts."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.errors import InputError, listed
from mirrorgan_fast.files import StrPath, parse_json, whole_file
from mirrorgan_fast.models.layers import Conv2d
from mirrorgan_fast.pictures import to_signed
from mirrorgan_fast.tensor_files import read_header, read_safetensors
from mirrorgan_fast.weights import PRETRAINED, load_state

FILE_NAME = "attributes.safetensors"
INPUT_SIZE = 128
MOST_ATTRIBUTES, MOST_VALUES, LONGEST = 64, 1000, 80
"""Most attributes, most values of each of them, and most characters of a name or a value."""
_CHANNELS = 128
_NAMES = "attributes"  # of the text in the file that has them with their values


class AttributeClassifier(nn.Module):
    """A CNN of 0.5 M parameters that tells attributes of a picture, such as a bird's or a garment.

    Each attribute looks where it is to be seen (a softmax over an 8 x 8 map) and is read from what
    is there by a linear layer of its own.

    Args:
        attributes: the values that each attribute may have, by its name.
    """

    def __init__(self, attributes: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.attributes = {name: tuple(values) for name, values in attributes.items()}
        self.features = nn.Sequential(
            *_convolution(3, 24, stride=2),
            *_convolution(24, 48, stride=2),
            *_convolution(48, 96, stride=2),
            *_convolution(96, 96, stride=1),
            *_convolution(96, _CHANNELS, stride=2),
            *_convolution(_CHANNELS, _CHANNELS, stride=1),
            *_convolution(_CHANNELS, _CHANNELS, stride=1),
        )
        self.look = nn.Conv2d(_CHANNELS, len(attributes), 1)
        self.heads = nn.ModuleList(
            nn.Linear(_CHANNELS, len(values)) for values in self.attributes.values()
        )

    @property
    def names(self) -> Sequence[str]:
        """The attributes that are read."""
        return [*self.attributes]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Judge images (N, 3, H, W) in [-1, 1]; other sizes than 128 x 128 are resized.

        Returns:
            for each attribute the logits (N, K) of its K values, in the order of ``attributes``.
        """
        if images.shape[-2:] != (INPUT_SIZE, INPUT_SIZE):
            images = functional.interpolate(
                images, size=(INPUT_SIZE, INPUT_SIZE), mode="bilinear", antialias=True
            )
        features = self.features(images)
        looks = self.look(features).flatten(2).softmax(dim=2)
        seen = looks @ features.flatten(2).transpose(1, 2)  # (N, attributes, channels)
        heads = zip(self.attributes, self.heads, strict=True)
        return {name: head(seen[:, i]) for i, (name, head) in enumerate(heads)}

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
                {name: values[found[name][i]] for name, values in self.attributes.items()}
                for i in range(len(batch))
            ]
        return readings

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write attributes.safetensors, in float16 and with the names of values, into ``folder``.

        Raises:
            InputError: the folder cannot be written.
        """
        tensors = {
            name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in self.state_dict().items()
        }
        with whole_file(Path(folder) / FILE_NAME) as partial:
            partial.write_bytes(save(tensors, {_NAMES: json.dumps(self.attributes)}))

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = "birds-painted",
        reads: Iterable[str] = (),
    ) -> Self:
        """Load the classifier in a folder, or the one that comes with a model of the package.

        Args:
            name_or_path: of the folder, or of a model of the package.
            reads: names of attributes that it must have been trained to read.

        Raises:
            InputError: there is none, it does not read these attributes, or its file is damaged or
                has NaN or infinity.
        """
        paths = [folder / FILE_NAME for folder in (Path(name_or_path), PRETRAINED / name_or_path)]
        path = next((path for path in paths if os.path.exists(path)), None)
        if path is None:
            raise InputError(
                f"{paths[0]}: there is no such attribute classifier; name a folder that has one, "
                f"or train it (mirrorgan-fast train attributes)"
            )
        attributes = _attributes_in(read_header(path).about.get(_NAMES, ""), path)
        missing = [name for name in reads if name not in attributes]
        if missing:
            raise InputError(
                f"{path}: this classifier reads {listed([*attributes], 80)}, but not "
                f"{listed(missing, 80)}; use another (--judge)"
            )
        classifier = cls(attributes)
        load_state(classifier, read_safetensors(path), path)
        return classifier.eval()


def _attributes_in(text: str, path: StrPath) -> dict[str, list[str]]:
    """Return the attributes and their values that a file was saved with."""
    try:
        attributes = parse_json(text)
        within = 0 < len(attributes) <= MOST_ATTRIBUTES and all(
            isinstance(values, list)
            and 1 < len(set(values)) == len(values) <= MOST_VALUES
            and all(isinstance(each, str) and len(each) <= LONGEST for each in (name, *values))
            for name, values in attributes.items()
        )
    except (ValueError, TypeError, AttributeError):
        within = False
    if not within:
        raise InputError(
            f"{path}: does not name the attributes that it reads, with their values; train it "
            f"again (mirrorgan-fast train attributes)"
        )
    return dict(attributes)


def _convolution(in_channels: int, out_channels: int, *, stride: int) -> list[nn.Module]:
    return [
        Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]
