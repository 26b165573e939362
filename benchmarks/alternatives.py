"""The alternatives in plain PyTorch: a model's own module, eager and with torch.compile."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cub_model import Inputs
from benchmarks.harness import Work
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.ops import use


def alternatives(module: nn.Module, *inputs: Tensor) -> dict[str, Callable[[], object]]:
    """Return ``eager`` (float32) and ``compiled`` (bfloat16, channels_last), on the same inputs.

    Every op runs its reference implementation in plain PyTorch.
    """
    narrow = copy.deepcopy(module).to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled = torch.compile(narrow)
    narrow_inputs = [as_map(tensor, torch.bfloat16) for tensor in inputs]
    return {
        "eager": lambda: _plainly(module, inputs),
        "compiled": lambda: _plainly(compiled, narrow_inputs),
    }


def work(module: nn.Module, dtype: torch.dtype, tensors: list[Tensor], *inputs: Tensor) -> Work:
    """Count a module's operations, and the bytes of ``tensors``, which are read or written."""
    counter = FlopCounterMode(display=False)
    with counter:
        _plainly(module, inputs)
    return Work(counter.get_total_flops(), sum(tensor.nbytes for tensor in tensors), dtype)


def generator_work(model: MirrorGAN, dtype: torch.dtype, inputs: Inputs) -> Work:
    """Do what ``work`` does for a call from tokens to gray levels."""
    noise, size = inputs[2], model.config.image_size
    images = torch.empty(len(noise), size, size, 3, dtype=torch.uint8)
    tensors = [*model.glam.parameters(), *inputs[2:], images]
    return work(_Renders(model), dtype, tensors, *inputs)


class _Renders(nn.Module):
    def __init__(self, model: MirrorGAN) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, lengths: Tensor, noise: Tensor, condition_noise: Tensor
    ) -> Tensor:
        return self.model.render(tokens, lengths, noise, condition_noise)


def as_map(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a floating-point tensor to ``dtype`` and a feature map to channels_last."""
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _plainly(module: Callable[..., object], inputs: tuple[Tensor, ...] | list[Tensor]) -> object:
    with use("reference"):
        return module(*inputs)
