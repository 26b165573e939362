"""Mixed precision: in which data types a training step computes."""

from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp16", "fp32"]
COMPUTED: tuple[Precision, ...] = ("bf16", "fp16", "fp32")
"""The precisions that a step can compute in; "auto" is one of them."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the autocast context of a precision.

    ``auto`` is bf16 where the processor computes in it, else fp32.
    """
    if precision == "auto":
        precision = fastest_precision(device)
    dtype = _DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def fastest_precision(device: torch.device) -> Precision:
    """Return "bf16" if its products are faster than fp32's on this device, else "fp32"."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return "bf16" if fast else "fp32"
