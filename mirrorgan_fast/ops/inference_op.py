"""Ops that write into memory which they are given, and through which no gradient comes.

``torch.library.custom_op`` would count what is written in the dispatcher, in Python: that takes 15
microseconds, and 100 where an op has fifty tensors. Here the function that calls the op counts it.
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
    """Make a function the op ``mirrorgan::<name>``; where no other kernel is registered it runs.

    It must not be given what requires a gradient. What its implementation in C++ refuses is an
    ``InputError``, as in Python.

    Args:
        name: of the op.
        writes: the arguments, tensors, that the function writes.
    """

    def define(function: Callable[..., None]) -> Callable[..., None]:
        qualified = f"mirrorgan::{name}"
        schema = torch.library.infer_schema(function, mutates_args=writes)
        torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(qualified, "default", function)
        torch.library.register_fake(qualified, _does_nothing)
        op = getattr(torch.ops.mirrorgan, name).default
        parameters = list(inspect.signature(function).parameters)
        places = [parameters.index(argument) for argument in writes]

        def call(*arguments: object) -> None:
            if torch.compiler.is_compiling():
                op(*arguments)
                return
            try:
                op(*arguments)
            except ValueError as error:  # what a check in C++ throws
                raise InputError(str(error)) from error
            for place in places:  # so that a backward pass finds what was overwritten
                written = arguments[place]
                assert isinstance(written, Tensor)
                if not written.is_inference():
                    increment_version(written)

        return call

    return define


def _does_nothing(*_: object) -> None:
    pass
