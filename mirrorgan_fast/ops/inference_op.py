"""Defines the ops for inference: they write into tensors that they are given, without gradients.

``torch.library.custom_op`` would increment the version counters of the written tensors in Python
code that the dispatcher calls. That takes 15 microseconds per call, and 100 for an op with fifty
tensors. Here the function that calls the op does it.
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from mirrorgan_fast.errors import InputError


def inference_op(
    name: str, writes: tuple[str, ...] = ("out",)
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a function into the op ``mirrorgan::<name>``.

    The function itself runs where no compiled kernel is registered. The op must not be given
    tensors that require a gradient. A failed check of the C++ implementation raises ``InputError``.

    Args:
        name: Name of the op.
        writes: Names of the tensors among the arguments that the function writes.
    """

    def define(function: Callable[..., None]) -> Callable[..., None]:
        qualified = f"mirrorgan::{name}"
        schema = torch.library.infer_schema(function, mutates_args=writes)
        torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(qualified, "default", function)
        torch.library.register_fake(qualified, _does_nothing)
        op = getattr(torch.ops.mirrorgan, name).default
        parameters = list(inspect.signature(function).parameters)
        positions = [parameters.index(argument) for argument in writes]

        def call(*arguments: object) -> None:
            if torch.compiler.is_compiling():
                op(*arguments)
                return
            try:
                op(*arguments)
            except ValueError as error:  # from a check in C++
                raise InputError(str(error)) from error
            for position in positions:  # so that a backward pass notices what was overwritten
                written = arguments[position]
                assert isinstance(written, Tensor)
                if not written.is_inference():
                    increment_version(written)

        return call

    return define


def _does_nothing(*_: object) -> None:
    pass
