"""The one way in which the public functions of ops refuse what they are given."""

from typing import NoReturn

import torch
from torch import Tensor, nn

from mirrorgan_fast.errors import InputError


def refuse(op: str, argument: str, tensor: Tensor, wanted: str) -> NoReturn:
    """Raise the error of an argument: what was found, and what is wanted."""
    raise InputError(
        f"{op}: {argument}: found {tensor.dtype} of shape {tuple(tensor.shape)} on"
        f" {tensor.device}, wanted {wanted}"
    )


def check_beside(
    op: str, argument: str, tensor: Tensor, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Check a tensor that is read or written beside ``x``."""
    if tensor.shape != shape or tensor.dtype != dtype:
        refuse(op, argument, tensor, f"{dtype} of shape {shape}")
    if tensor.device != x.device:
        refuse(op, argument, tensor, f"device {x.device}, that of the others")


def check_out(
    op: str,
    out: Tensor,
    x: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.channels_last,
) -> None:
    """Check a map that is written while ``x`` is read."""
    check_beside(op, "out", out, x, shape, dtype)
    if not out.is_contiguous(memory_format=memory_format):
        refuse(op, "out", out, f"dense {memory_format} memory")
    if share_memory(out, x):
        refuse(op, "out", out, "memory that is not x's, which is read while out is written")


def write_to(out: Tensor | None, result: Tensor) -> Tensor:
    """Return ``out`` with the result written to it, or the result where there is no ``out``."""
    return result if out is None else out.copy_(result)


def at_hand(tensor: Tensor) -> bool:
    """Whether there are values to look at, without waiting for a GPU.

    There are none while a graph is traced, nor of tensors that stand for others.
    """
    real = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"
    return real and not torch.compiler.is_compiling()


def share_memory(out: Tensor, x: Tensor) -> bool:
    """Whether a dense ``out`` lies within the memory that ``x`` spans.

    While a graph is traced, and of tensors that stand for others, there is no memory: then, whether
    they are one tensor.
    """
    if torch.compiler.is_compiling() or not {type(out), type(x)} <= {Tensor, nn.Parameter}:
        return out is x
    try:
        start, read = out.data_ptr(), x.data_ptr()
    except RuntimeError:
        return out is x
    if start == 0 or read == 0 or out.numel() == 0 or x.numel() == 0:
        return out is x
    steps = zip(x.shape, x.stride(), strict=True)
    span = (1 + sum((size - 1) * stride for size, stride in steps)) * x.element_size()
    return start < read + span and read < start + out.nbytes
