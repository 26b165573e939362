"""Layers that the networks share: norms, LSTM, up-blocks, residual blocks, augmentation."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from mirrorgan_fast.models.config import Norm, TextToImageConfig
from mirrorgan_fast.ops import batch_norm_glu, batch_norm_leaky_relu, conv2d
from mirrorgan_fast.processes import ALONE, Processes


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
    processes: Processes = ALONE
    """Those over which the statistics are taken (``share_batches``)."""

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
        _update_averages(self, x.numel() // x.shape[1] * self.processes.count, mean, variance)


@torch.no_grad()
def _update_averages(
    norm: BatchNormActivation | nn.modules.batchnorm._BatchNorm,
    count: int,
    mean: Tensor,  # (C,)
    variance: Tensor,  # (C,)
) -> None:
    """Move the running averages towards the statistics of ``count`` values a channel."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    pace = norm.momentum
    if pace is None:
        pace = 1 / int(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), pace)
    unbiased = (variance * (count / (count - 1))).to(norm.running_var.dtype)
    norm.running_var.lerp_(unbiased, pace)


class BatchNormGLU(BatchNormActivation):
    """Batch norm, then the first half of the channels gated by the sigmoid of the second."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 2C, H, W) to (N, C, H, W)."""
        if not self.training:
            values, gates = self.normalize(x).chunk(2, dim=1)
            return values * gates.sigmoid()
        if self.processes.count > 1:
            y, mean, variance = _synced_batch_norm(x, self)
            values, gates = y.chunk(2, dim=1)
            out = (values * gates.sigmoid()).to(x.dtype)
        else:
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
        if self.processes.count > 1:
            y, mean, variance = _synced_batch_norm(x, self)
            out = functional.leaky_relu(y, self.SLOPE).to(x.dtype)
        else:
            weights = (self.weight, self.bias)
            out, mean, variance = batch_norm_leaky_relu(x, *weights, self.SLOPE, self.eps)
        self.update_averages(x, mean, variance)
        return out


class BatchNormReLU(BatchNormLeakyReLU):
    """Batch norm, then a ReLU."""

    SLOPE = 0.0


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """``nn.BatchNorm1d`` or ``2d`` with the statistics of the batch of all processes.

    ``nn.SyncBatchNorm`` refuses tensors on the CPU and has no second-order gradient.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, processes: Processes) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.processes = processes
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.training = norm.training

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C) or (N, C, H, W) to the same shape."""
        if not self.training:
            return super().forward(input)
        y, mean, variance = _synced_batch_norm(input, self)
        count = input.numel() // input.shape[1] * self.processes.count
        _update_averages(self, count, mean, variance)
        return y.to(input.dtype)


def _synced_batch_norm(
    x: Tensor,  # (N, C) or (N, C, H, W)
    norm: "BatchNormActivation | SyncedBatchNorm",
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize by the statistics of the batch of all processes.

    Gradients of any order exist, through the statistics to the rows of all processes.

    Returns:
        y, and each channel's mean and biased variance without a gradient, float32 or wider.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        others = [dim for dim in range(x.dim()) if dim != 1]
        per_channel = (slice(None), *[None] * (x.dim() - 2))
        count = x.numel() // x.shape[1] * norm.processes.count
        mean = norm.processes.summed(wide.sum(others)) / count
        centered = wide - mean[per_channel]
        variance = norm.processes.summed(centered.square().sum(others)) / count
        normalized = centered * (variance + norm.eps).rsqrt()[per_channel]
        y = normalized * norm.weight[per_channel] + norm.bias[per_channel]
    return y, mean.detach(), variance.detach()


class Dropout(nn.Dropout):
    """``nn.Dropout`` whose mask is drawn for the batch of all processes."""

    processes: Processes = ALONE

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, ...) to the same shape."""
        if not self.training or not self.p:
            return input
        options = {"dtype": input.dtype, "device": input.device}
        kept = self.processes.drawn(self._mask, len(input), *input.shape[1:], **options)
        return input * (kept / (1 - self.p))

    def _mask(self, *shape: int, **options: Any) -> Tensor:
        return torch.empty(shape, **options).bernoulli_(1 - self.p)


def share_batches(network: nn.Module, processes: Processes, *, sync_batch_norm: bool) -> None:
    """Have a network compute its part of a batch as if it saw the batch of all processes.

    Args:
        network: is changed in place; its parameters, buffers and their names stay.
        processes: the processes that share each batch.
        sync_batch_norm: whether batch norms take the statistics of the whole batch. Otherwise each
            process takes those of its own rows.
    """
    if processes.count == 1:
        return
    for module in list(network.modules()):
        if isinstance(module, Dropout):
            module.processes = processes
        if not sync_batch_norm:
            continue
        if isinstance(module, BatchNormActivation):
            module.processes = processes
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, SyncedBatchNorm(child, processes))


_CPU = torch.cpu.get_capabilities()


_WITHOUT_BFLOAT16 = _CPU.get("architecture") == "x86_64" and not _CPU.get("avx512_f")


class LSTM(nn.LSTM):
    """``nn.LSTM`` that stays in float32 under autocast on CPUs where oneDNN has no narrower one.

    On x86-64 without AVX-512, oneDNN has no LSTM in bfloat16, and most processors have none in
    float16; PyTorch fails there.
    """

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Do what ``nn.LSTM`` does, for a tensor or a packed sequence."""
        device = (input.data if isinstance(input, PackedSequence) else input).device.type
        if device != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(input, hx)
        if torch.get_autocast_dtype("cpu") == torch.bfloat16 and not _WITHOUT_BFLOAT16:
            return super().forward(input, hx)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float(), hx)


class SentenceLinear(nn.Linear):
    """A linear layer that reads STEM's sentence, and begins larger (``gan.sentence_gain``)."""


class ConditioningAugmentation(nn.Module):
    """s_ca = mu(s) + sigma(s) * eps (StackGAN, section 3.2).

    mu and log sigma^2 are a linear layer and a GLU, as in AttnGAN's code.
    """

    def __init__(self, config: TextToImageConfig) -> None:
        super().__init__()
        self.linear = SentenceLinear(config.embedding_size, config.condition_size * 4)

    def statistics(self, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, D) to mu and log sigma^2, each (N, condition)."""
        mu, log_var = functional.glu(self.linear(sentence), dim=1).chunk(2, dim=1)
        return mu, log_var

    def forward(
        self,
        sentence: Tensor,  # (N, D)
        noise: Tensor,  # (N, condition)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return s_ca, mu and log sigma^2, each (N, condition), for standard normal ``noise``."""
        mu, log_var = self.statistics(sentence)
        noise = noise.to(self.linear.weight.dtype)
        return mu + torch.exp(0.5 * log_var) * noise, mu, log_var


class ReLUConditioningAugmentation(ConditioningAugmentation):
    """StackGAN's own: mu and log sigma^2 are a linear layer and a ReLU, so never below zero."""

    def __init__(self, config: TextToImageConfig) -> None:
        nn.Module.__init__(self)
        self.linear = SentenceLinear(config.embedding_size, config.condition_size * 2)

    def statistics(self, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, D) to mu and log sigma^2, each (N, condition)."""
        mu, log_var = functional.relu(self.linear(sentence)).chunk(2, dim=1)
        return mu, log_var


class UpBlock(nn.Sequential):
    """Nearest 2x upsampling, 3x3 convolution, batch norm, GLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            UpConv2d(in_channels, out_channels * 2, 3, padding=1, bias=False),
            BatchNormGLU(out_channels * 2),
        )


class ReLUUpBlock(nn.Sequential):
    """Nearest 2x upsampling, 3x3 convolution, batch norm, ReLU: StackGAN's up-block."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            UpConv2d(in_channels, out_channels, 3, padding=1, bias=False),
            BatchNormReLU(out_channels),
        )


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` whose weight gradient is faster on some processors (``ops.conv2d``)."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        stride, padding = self.stride[0], self.padding[0]
        assert isinstance(padding, int)
        return conv2d(input, self.weight, self.bias, stride, padding)


def convolution(
    in_channels: int,
    out_channels: int,
    kernel: int,
    norm: Norm,
    *,
    stride: int = 1,
    padding: int = 0,
    slope: float = BatchNormLeakyReLU.SLOPE,
) -> nn.Sequential:
    """Return a discriminator's convolution, and a leaky ReLU.

    Args:
        in_channels: of the map before.
        out_channels: of the map after.
        kernel: the kernel's height and width.
        norm: ``batch``: batch norm follows the convolution; ``none``: it has a bias.
        stride: of the convolution.
        padding: of the convolution, with zeros.
        slope: of the leaky ReLU, 0.2 or 0.
    """
    batch = norm == "batch"
    layer = Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=padding, bias=not batch
    )
    if not batch:
        return nn.Sequential(layer, nn.LeakyReLU(slope, inplace=True))
    return nn.Sequential(layer, (BatchNormLeakyReLU if slope else BatchNormReLU)(out_channels))


class UpConv2d(Conv2d):
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
        return conv2d(x, weight, stride=2, padding=1, transposed=True)


def _sub_pixel(weight: Tensor, dim: int) -> Tensor:
    """Sum the 3 taps of a dimension to the 4 of the transposed convolution."""
    first, second, third = weight.unbind(dim)
    return torch.stack([third, second + third, first + second, first], dim)


class ResidualBlock(nn.Module):
    """x + BN(conv(GLU(BN(conv(x)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Conv2d(channels, channels * 2, 3, padding=1, bias=False),
            BatchNormGLU(channels * 2),
            Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        residual: Tensor = self.block(x)
        return x + residual


class ReLUResidualBlock(nn.Module):
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))): StackGAN's residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Conv2d(channels, channels, 3, padding=1, bias=False),
            BatchNormReLU(channels),
            Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        residual: Tensor = self.block(x)
        return functional.relu(x + residual)


def transposed_up(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """Return a transposed 4x4 convolution that doubles the size, as DCGAN has them."""
    return nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False)


class Bottleneck(nn.Module):
    """x + BN(conv3(a(BN(conv3(a(BN(conv1(x)))))))), then a: GAN-INT-CLS's residual block.

    Args:
        channels: of the input and of the result.
        inner: channels between the convolutions.
        slope: of the leaky ReLU a; 0: a ReLU.
    """

    def __init__(self, channels: int, inner: int, slope: float) -> None:
        super().__init__()
        self.slope = slope
        activated = BatchNormLeakyReLU if slope else BatchNormReLU
        self.block = nn.Sequential(
            Conv2d(channels, inner, 1, bias=False),
            activated(inner),
            Conv2d(inner, inner, 3, padding=1, bias=False),
            activated(inner),
            Conv2d(inner, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        residual: Tensor = self.block(x)
        return functional.leaky_relu(x + residual, self.slope)


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


def initialize_normally(network: nn.Module, *, linear: bool = True) -> None:
    """Initialize as DCGAN does: weights N(0, 0.02), batch norm scales N(1, 0.02), biases 0.

    The bias of a convolution to a single channel, a discriminator's logit, stays PyTorch's.

    Args:
        network: whose layers are initialized.
        linear: whether linear layers are, too, which otherwise stay PyTorch's.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or (
            linear and isinstance(module, nn.Linear)
        ):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None and len(module.bias) > 1:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | BatchNormActivation):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
