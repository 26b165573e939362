"""How a training step computes: on which device, in which precision, with which processes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirrorgan_fast.models.layers import share_batches
from mirrorgan_fast.processes import ALONE, Processes
from mirrorgan_fast.training.precision import Precision, autocast


@dataclass(frozen=True)
class Computation:
    """How a training step computes."""

    device: torch.device
    precision: Precision = "fp32"
    processes: Processes = ALONE
    """The processes that share each batch."""
    sync_batch_norm: bool = False
    """Whether batch norms take the statistics of the whole batch, not of each process's rows."""
    accumulate: int = 1
    """The number of parts that a batch is computed in, one after the other."""

    def autocast(self) -> torch.autocast:
        """Return the context in which losses are computed."""
        return autocast(self.device, self.precision)

    def share(self, network: nn.Module) -> None:
        """Prepare a network that learns for its part of each batch (``share_batches``)."""
        share_batches(network, self.processes, sync_batch_norm=self.sync_batch_norm)

    def on_device(self, batch: dict[str, Tensor], *names: str) -> list[Tensor]:
        """Return tensors of a batch on the device."""
        return [batch[name].to(self.device, non_blocking=True) for name in names]


FP32 = Computation(torch.device("cpu"))
"""In this process, on the CPU, in fp32."""
