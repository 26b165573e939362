"""PyTorch's LSTM, on every processor."""

from typing import Any

import torch
from torch import nn

_CPU = torch.cpu.get_capabilities()
_WITHOUT_BFLOAT16 = _CPU.get("architecture") == "x86_64" and not _CPU.get("avx512_f")


class LSTM(nn.LSTM):
    """``nn.LSTM``, that under autocast computes in float32 where PyTorch fails in bfloat16.

    That is on x86-64 without AVX-512, for which oneDNN has no such LSTM.
    """

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Do what ``nn.LSTM`` does, for a tensor or a packed sequence."""
        if not (_WITHOUT_BFLOAT16 and torch.is_autocast_enabled("cpu")):
            return super().forward(input, hx)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float(), hx)
