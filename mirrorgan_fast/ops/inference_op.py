"""Ops that write into memory which they are given, and through which no gradient comes.

``torch.library.custom_op`` does the same, but what it runs in Python before an op with such an
argument takes 15 microseconds, and 100 with fifty tensors.
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import increment_version


def inference_op(
    name: str, writes: tuple[str, ...] = ("out",)
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Define ``mirrorgan::<name>`` with the schema of a function, which runs where nothing else is.

    The decorated function becomes the op. It must not be given what requires a gradient.

    Args:
        name: of the op.
        writes: the arguments, tensors, that the function writes.
    """

    def define(function: Callable[..., None]) -> Callable[..., None]:
        qualified = f"mirrorgan::{name}"
        schema = torch.library.infer_schema(function, mutates_args=writes)
        torch.library.define(qualified, schema)
        torch.library.impl(qualified, "default", function)
        torch.library.register_fake(qualified, _does_nothing)
        op = getattr(torch.ops.mirrorgan, name).default
        parameters = list(inspect.signature(function).parameters)
        places = [parameters.index(argument) for argument in writes]

        def call(*arguments: object) -> None:
            op(*arguments)
            if torch.compiler.is_compiling():
                return
            for place in places:  # so that a backward pass finds what was overwritten
                written = arguments[place]
                assert isinstance(written, Tensor)
                if not written.is_inference():
                    increment_version(written)

        return call

    return define


def _does_nothing(*_: object) -> None:
    pass
