"""Mixed precision and memory: what makes a step fast on the device at hand."""

import ctypes
import platform
from typing import Literal

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


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


def keep_memory() -> None:
    """Make the C library keep the memory that tensors free, instead of returning it to the system.

    Getting each large tensor's pages anew costs more than most layers compute (1.6 to 2.2 times
    the generator's time at batch 8 on two cores). A no-op where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_ARENA_MAX, 1)  # an arena of another thread cannot grow beyond 64 MB
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 2**26)
