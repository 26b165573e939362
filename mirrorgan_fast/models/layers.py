"""Layers that the networks share: norms, LSTM, up-blocks, residual blocks, augmentation."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.models.config import CascadeConfig
from mirrorgan_fast.ops import batch_norm_glu, batch_norm_leaky_relu


class BatchNormActivation(nn.Module):
    """Batch norm together with the activation behind it, which in training are one op.

    Its parameters and buffers have the names of those of ``nn.BatchNorm2d``. It is not a subclass:
    ``nn.SyncBatchNorm.convert_sync_batchnorm``, which replaces every batch norm, would lose the
    activation.

    Args:
        channels: of the input.
        momentum: of the running averages; None: they are the mean of all batches, as
            ``torch.optim.swa_utils.update_bn`` has it.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, *, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.eps = 1e-5
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def extra_repr(self) -> str:
        """Return what distinguishes it from others of its class."""
        return str(len(self.weight))

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize (N, channels, H, W) with the running averages, without the activation."""
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    @torch.no_grad()
    def update_averages(self, x: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Move the running averages towards a batch's statistics, as ``nn.BatchNorm2d`` does.

        Args:
            x: the batch, (N, channels, H, W).
            mean: its mean, (channels,).
            variance: its biased variance, (channels,).
        """
        count = x.numel() // x.shape[1]
        self.num_batches_tracked += 1
        pace = self.momentum
        if pace is None:
            pace = 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), pace)
        unbiased = (variance * (count / (count - 1))).to(self.running_var.dtype)
        self.running_var.lerp_(unbiased, pace)


class BatchNormGLU(BatchNormActivation):
    """Batch norm, then the first half of the channels gated by the sigmoid of the second."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 2C, H, W) to (N, C, H, W)."""
        if not self.training:
            values, gates = self.normalize(x).chunk(2, dim=1)
            return values * gates.sigmoid()
        out, mean, variance = batch_norm_glu(x, self.weight, self.bias, self.eps)
        self.update_averages(x, mean, variance)
        return out


class BatchNormLeakyReLU(BatchNormActivation):
    """Batch norm, then a leaky ReLU."""

    SLOPE = 0.2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        if not self.training:
            return functional.leaky_relu(self.normalize(x), self.SLOPE)
        out, mean, variance = batch_norm_leaky_relu(x, self.weight, self.bias, self.SLOPE, self.eps)
        self.update_averages(x, mean, variance)
        return out


_CPU = torch.cpu.get_capabilities()


_WITHOUT_BFLOAT16 = _CPU.get("architecture") == "x86_64" and not _CPU.get("avx512_f")


class LSTM(nn.LSTM):
    """``nn.LSTM`` that stays in float32 under autocast where PyTorch has no bfloat16 LSTM.

    On x86-64 without AVX-512, oneDNN has no LSTM in bfloat16, and PyTorch fails.
    """

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Do what ``nn.LSTM`` does, for a tensor or a packed sequence."""
        if not (_WITHOUT_BFLOAT16 and torch.is_autocast_enabled("cpu")):
            return super().forward(input, hx)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float(), hx)


class ConditioningAugmentation(nn.Module):
    """s_ca = mu(s) + sigma(s) * eps (StackGAN, section 3.2)."""

    def __init__(self, config: CascadeConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.embedding_size, config.condition_size * 4)

    def forward(
        self,
        sentence: Tensor,  # (N, D)
        noise: Tensor,  # (N, condition)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return s_ca, mu and log sigma^2, each (N, condition), for standard normal ``noise``."""
        mu, log_var = functional.glu(self.linear(sentence), dim=1).chunk(2, dim=1)
        noise = noise.to(self.linear.weight.dtype)
        return mu + torch.exp(0.5 * log_var) * noise, mu, log_var


class UpBlock(nn.Sequential):
    """Nearest 2x upsampling, 3x3 convolution, batch norm, GLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            UpConv2d(in_channels, out_channels * 2, 3, padding=1, bias=False),
            BatchNormGLU(out_channels * 2),
        )


class UpConv2d(nn.Conv2d):
    """Nearest 2x upsampling and a 3x3 convolution.

    On large maps in sub-pixel form: a transposed 4x4 convolution with summed weights is the same
    with 16/36 of the multiplications, and the upsampled map never exists. Forward and backward it
    takes half the time from 64 to 128 px (64 channels, batch 16, bf16, two cores), two thirds from
    32 to 64 px, and more than the plain form below 16 px.
    """

    _SUB_PIXEL_FROM = 16

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', 2H, 2W)."""
        if min(x.shape[2:]) < self._SUB_PIXEL_FROM:
            return super().forward(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        # These sums are in the weights' data type, also under autocast.
        weight = _sub_pixel(_sub_pixel(self.weight, 2), 3).transpose(0, 1)
        return functional.conv_transpose2d(x, weight, stride=2, padding=1)


def _sub_pixel(weight: Tensor, dim: int) -> Tensor:
    """Sum the 3 taps of a dimension to the 4 of the transposed convolution."""
    first, second, third = weight.unbind(dim)
    return torch.stack([third, second + third, first + second, first], dim)


class ResidualBlock(nn.Module):
    """x + BN(conv(GLU(BN(conv(x)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels * 2, 3, padding=1, bias=False),
            BatchNormGLU(channels * 2),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        residual: Tensor = self.block(x)
        return x + residual


def initialize(network: nn.Module, gain: float = 1.0) -> None:
    """Initialize as the authors do: orthogonal weights, batch norm scales around one."""
    for module in network.modules():
        if next((weight.is_meta for weight in module.parameters()), False):
            continue  # weights will be loaded; an orthogonal matrix would take long to draw
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(module.weight, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | BatchNormActivation):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
