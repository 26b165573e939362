"""Checks that the public functions of the ops share, and the form of their errors."""

from typing import NoReturn

import torch
from torch import Tensor, nn

from mirrorgan_fast.errors import InputError


def refuse(op: str, argument: str, tensor: Tensor, wanted: str) -> NoReturn:
    """Raise the error for an argument: what was found, and what is wanted."""
    raise InputError(
        f"{op}: {argument}: found {tensor.dtype} of shape {tuple(tensor.shape)} on"
        f" {tensor.device}, wanted {wanted}"
    )


def check_tensor(
    op: str, argument: str, tensor: Tensor, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Check a tensor's shape and data type, and that it is on the same device as ``x``."""
    if tensor.shape != shape or tensor.dtype != dtype:
        refuse(op, argument, tensor, f"{dtype} of shape {shape}")
    if tensor.device != x.device:
        refuse(op, argument, tensor, f"device {x.device}, as the other tensors")


def check_out(
    op: str,
    out: Tensor,
    x: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.channels_last,
) -> None:
    """Check a tensor that the op writes while it reads ``x``."""
    check_tensor(op, "out", out, x, shape, dtype)
    if not out.is_contiguous(memory_format=memory_format):
        refuse(op, "out", out, f"dense {memory_format} memory")
    if share_memory(out, x):
        refuse(op, "out", out, "memory that does not overlap x's: x is read while out is written")


def write_to(out: Tensor | None, result: Tensor) -> Tensor:
    """Return ``out`` after copying the result into it, or the result if ``out`` is None."""
    return result if out is None else out.copy_(result)


def at_hand(tensor: Tensor) -> bool:
    """Whether the tensor's values can be read now, without waiting for a GPU.

    While a graph is traced, and in tensor subclasses such as fake tensors, there are no values.
    """
    real = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"
    return real and not torch.compiler.is_compiling()


def share_memory(out: Tensor, x: Tensor) -> bool:
    """Whether the memory of a dense ``out`` overlaps the memory that ``x`` spans.

    While a graph is traced, and for tensor subclasses such as fake tensors, there is no memory to
    compare. The answer is then whether both are the same tensor object.
    """
    if torch.compiler.is_compiling() or not {type(out), type(x)} <= {Tensor, nn.Parameter}:
        return out is x
    try:
        out_start, x_start = out.data_ptr(), x.data_ptr()
    except RuntimeError:
        return out is x
    if out_start == 0 or x_start == 0 or out.numel() == 0 or x.numel() == 0:
        return out is x
    steps = zip(x.shape, x.stride(), strict=True)
    x_span = (1 + sum((size - 1) * stride for size, stride in steps)) * x.element_size()
    return out_start < x_start + x_span and x_start < out_start + out.nbytes
