"""The moving average of a generator's weights, which is what is kept of its training."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class MovingAverage(Generic[Network]):
    """An exponential moving average of a network's parameters.

    In step t, from 0, its decay is at most (1 + t) / (10 + t), so that it soon forgets the
    network's beginning. The statistics of batch norms are copied, not averaged.

    Args:
        network: is copied.
        decay: of the average.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network: Network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: Network, step: int) -> None:
        """Move the average towards a network, after its step ``step``."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step)) if step else 1.0
        averages: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(averages, list[Tensor](network.parameters()), weight)
        for buffer, current in zip(self.network.buffers(), network.buffers(), strict=True):
            buffer.copy_(current)
