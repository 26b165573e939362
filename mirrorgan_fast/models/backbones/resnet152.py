"""ResNet-152 (He et al. 2016, "Deep Residual Learning for Image Recognition").

STREAM reads image features from it. The state dict has the names and shapes of torchvision's
``resnet152``, so that published weights load.
"""

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.weights import load_backbone

_EXPANSION = 4


class ResNet152(nn.Module):
    """ResNet-152, with the stride of a block in its 3x3 convolution as torchvision has it.

    ``classifier=False`` leaves out ``fc``, which only ``logits`` needs.
    """

    pooled_size = 2048

    def __init__(self, *, classifier: bool = True) -> None:
        super().__init__()
        self.conv1 = _convolution(3, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _layer(64, 64, blocks=3, stride=1)
        self.layer2 = _layer(256, 128, blocks=8, stride=2)
        self.layer3 = _layer(512, 256, blocks=36, stride=2)
        self.layer4 = _layer(1024, 512, blocks=3, stride=2)
        if classifier:
            self.fc = nn.Linear(self.pooled_size, 1000)

    def load(self, path: str | Path) -> None:
        """Load torchvision's weights from a .pth, .pt or .safetensors file.

        Raises:
            InputError: the file cannot be read or is of another network.
        """
        load_backbone(self, path, ignore=() if hasattr(self, "fc") else ("fc.",))

    def forward(self, image: Tensor) -> Tensor:
        """Return the pooled features (N, 2048) of images (N, 3, H, W), usually 224 x 224.

        torchvision's weights were trained on ImageNet-normalised images (of values in [0, 1],
        mean 0.485, 0.456, 0.406 and deviation 0.229, 0.224, 0.225 of red, green and blue);
        MirrorGAN's captioner was trained on top of them with values in [-1, 1].
        """
        x = functional.relu(self.bn1(self.conv1(image)), inplace=True)
        x = functional.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        pooled: Tensor = x.mean(dim=(2, 3))
        return pooled

    def logits(self, pooled: Tensor) -> Tensor:
        """Return the logits (N, 1000) of the ImageNet classes for pooled features (N, 2048)."""
        logits: Tensor = self.fc(pooled)
        return logits


class _Bottleneck(nn.Module):
    """Narrow with 1x1, convolve with 3x3, widen with 1x1, and add the input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = _EXPANSION * channels
        self.conv1 = _convolution(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _convolution(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _convolution(channels, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Sequential(
                _convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = functional.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return functional.relu(y + self.downsample(x), inplace=True)


def _layer(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (_Bottleneck(_EXPANSION * channels, channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(_Bottleneck(in_channels, channels, stride), *rest)


def _convolution(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return conv
