"""Inception-v3 (Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision").

DAMSM reads image features from it, the Inception Score its classes. The state dict has the names
and shapes of torchvision's ``inception_v3``, so that published weights load.
"""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.weights import load_backbone

_INPUT_SIZE = 299

# A branch is the convolutions (channels, kernel) it applies in turn. A list of kernels stands for
# convolutions side by side, which only end a branch.
_Kernel = int | tuple[int, int]
_Branches = dict[str, list[tuple[int, _Kernel | list[_Kernel]]]]

_A: _Branches = {
    "branch1x1": [(64, 1)],
    "branch5x5": [(48, 1), (64, 5)],
    "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
}
_B: _Branches = {
    "branch3x3": [(384, 3)],
    "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
}


def _c(width: int) -> _Branches:
    row: tuple[int, _Kernel] = (width, (1, 7))
    column: tuple[int, _Kernel] = (width, (7, 1))
    return {
        "branch1x1": [(192, 1)],
        "branch7x7": [(width, 1), row, (192, (7, 1))],
        "branch7x7dbl": [(width, 1), column, row, column, (192, (1, 7))],
    }


_D: _Branches = {
    "branch3x3": [(192, 1), (320, 3)],
    "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)],
}
_E: _Branches = {
    "branch1x1": [(320, 1)],
    "branch3x3": [(384, 1), (384, [(1, 3), (3, 1)])],
    "branch3x3dbl": [(448, 1), (384, 3), (384, [(1, 3), (3, 1)])],
}

# Channels in, branches, channels of the pooling branch (none: the block halves the resolution).
_BLOCKS: dict[str, tuple[int, _Branches, int | None]] = {
    "Mixed_5b": (192, _A, 32),
    "Mixed_5c": (256, _A, 64),
    "Mixed_5d": (288, _A, 64),
    "Mixed_6a": (288, _B, None),
    "Mixed_6b": (768, _c(128), 192),
    "Mixed_6c": (768, _c(160), 192),
    "Mixed_6d": (768, _c(160), 192),
    "Mixed_6e": (768, _c(192), 192),
    "Mixed_7a": (768, _D, None),
    "Mixed_7b": (1280, _E, 192),
    "Mixed_7c": (2048, _E, 192),
}


class InceptionV3(nn.Module):
    """Inception-v3 without the auxiliary classifier, which only its own training needs.

    ``classifier=False`` leaves out ``fc``, which only ``logits`` needs.
    """

    region_channels = 768
    pooled_size = 2048

    def __init__(self, *, classifier: bool = True) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3)
        for name, (channels, branches, pool_channels) in _BLOCKS.items():
            self.add_module(name, _Mixed(channels, branches, pool_channels))
        if classifier:
            self.fc = nn.Linear(self.pooled_size, 1000)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Return the network with the weights in a file, in evaluation mode; see ``load``."""
        network = cls()
        network.load(path)
        return network.eval()

    def load(self, path: str | Path) -> None:
        """Load torchvision's weights from a .pth, .pt or .safetensors file.

        Raises:
            InputError: the file cannot be read or is of another network.
        """
        ignore = ("AuxLogits.",) if hasattr(self, "fc") else ("AuxLogits.", "fc.")
        load_backbone(self, path, ignore)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images (N, 3, H, W), resized to 299 x 299 if they are of another size.

        The values are in [-1, 1] and not ImageNet-normalised: that is what the published weights
        were trained on. (torchvision takes normalised images and maps them back to this range.)

        Returns:
            regions (N, 768, 17, 17), the output of Mixed_6e, and the pooled feature (N, 2048).
        """
        if image.shape[2:] != (_INPUT_SIZE, _INPUT_SIZE):
            image = functional.interpolate(image, size=_INPUT_SIZE, mode="bilinear")
        x = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(image))
        x = functional.max_pool2d(self.Conv2d_2b_3x3(x), 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = functional.max_pool2d(x, 3, stride=2)
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)
            if name == "Mixed_6e":
                regions = x
        return regions, x.mean(dim=(2, 3))

    def logits(self, pooled: Tensor) -> Tensor:
        """Return the logits (N, 1000) of the ImageNet classes for pooled features (N, 2048)."""
        logits: Tensor = self.fc(pooled)
        return logits


class _Mixed(nn.Module):
    """Branches of convolutions and one of pooling, concatenated.

    Each branch is a list of steps, each step the names of the convolutions it has side by side.
    """

    def __init__(self, in_channels: int, branches: _Branches, pool_channels: int | None) -> None:
        super().__init__()
        self.branches: list[list[list[str]]] = []
        for branch, convolutions in branches.items():
            channels = in_channels
            steps = []
            for number, (out_channels, kernels) in enumerate(convolutions, start=1):
                name = branch if len(convolutions) == 1 else f"{branch}_{number}"
                halves = pool_channels is None and number == len(convolutions)
                kernels = kernels if isinstance(kernels, list) else [kernels]
                step = [name] if len(kernels) == 1 else [name + "a", name + "b"]
                for part, kernel in zip(step, kernels, strict=True):
                    convolution = _Convolution(
                        channels,
                        out_channels,
                        kernel,
                        stride=2 if halves else 1,
                        padding=0 if halves else _half(kernel),
                    )
                    self.add_module(part, convolution)
                steps.append(step)
                channels = out_channels
            self.branches.append(steps)
        self.branch_pool = (
            None if pool_channels is None else _Convolution(in_channels, pool_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for *trunk, ends in self.branches:
            y = x
            for (name,) in trunk:
                y = self.get_submodule(name)(y)
            outputs += [self.get_submodule(name)(y) for name in ends]
        if self.branch_pool is None:
            outputs.append(functional.max_pool2d(x, 3, stride=2))
        else:
            outputs.append(self.branch_pool(functional.avg_pool2d(x, 3, stride=1, padding=1)))
        return torch.cat(outputs, dim=1)


def _half(kernel: _Kernel) -> _Kernel:
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


class _Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: _Kernel,
        stride: int = 1,
        padding: _Kernel = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)
