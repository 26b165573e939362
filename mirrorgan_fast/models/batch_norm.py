"""Batch norm together with what follows it: in training one op, in evaluation two layers."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.ops import batch_norm_glu, batch_norm_leaky_relu


class _BatchNorm(nn.BatchNorm2d):
    """With what follows it; ``convert_sync_batchnorm`` would make a batch norm alone of it."""

    @torch.no_grad()
    def _follow(self, x: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Move the running averages towards a batch's statistics, as batch norm does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        count = x.numel() // x.shape[1]
        self.num_batches_tracked += 1
        pace = self.momentum
        if pace is None:  # the mean of all batches, as torch.optim.swa_utils.update_bn has it
            pace = 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), pace)
        unbiased = (variance * (count / (count - 1))).to(self.running_var.dtype)
        self.running_var.lerp_(unbiased, pace)


class BatchNormGLU(_BatchNorm):
    """Batch norm, then the first half of the channels gated by the sigmoid of the second."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 2C, H, W) to (N, C, H, W)."""
        if not self.training:
            values, gates = super().forward(x).chunk(2, dim=1)
            return values * gates.sigmoid()
        out, mean, variance = batch_norm_glu(x, self.weight, self.bias, self.eps)
        self._follow(x, mean, variance)
        return out


class BatchNormLeakyReLU(_BatchNorm):
    """Batch norm, then a leaky ReLU."""

    SLOPE = 0.2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        if not self.training:
            return functional.leaky_relu(super().forward(x), self.SLOPE)
        out, mean, variance = batch_norm_leaky_relu(x, self.weight, self.bias, self.SLOPE, self.eps)
        self._follow(x, mean, variance)
        return out
