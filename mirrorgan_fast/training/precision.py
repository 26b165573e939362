"""Mixed precision: in which data types a training step computes."""

from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp32"]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the autocast context of a precision.

    ``auto`` is bf16 where the processor computes in it, else fp32.
    """
    enabled = precision == "bf16" or (precision == "auto" and computes_in_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether bf16 products are faster than fp32 ones on this device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
