"""Which implementation each op takes: the measured table, the override, and the reason.

Every op has its plain-PyTorch meaning, called ``reference``. A faster implementation has a row in
`TABLE` for the inputs on which it was measured to be faster; on everything else the reference runs.
``MIRRORGAN_FAST_OPS=<name>`` in the environment, or ``with use("<name>")``, asks for one
implementation by name wherever it can run at all.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops.build_info import (
    build_info,
    instruction_set,
    why_no_cuda_kernels,
    why_not_compiled,
)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

REFERENCE = "reference"
TRITON = "triton"
CUDA = "cuda"
COMPILED = ("cpu", CUDA)
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None  # once, not in every call
_LEAST_CAPABILITY = 8  # of NVIDIA's GPUs: before it there is no bfloat16


class Row(NamedTuple):
    """An implementation of an op, and the inputs on which it is faster than the reference."""

    implementation: str
    """Name in ``MIRRORGAN_FAST_OPS``: ``cpu`` and ``cuda`` are compiled, ``triton`` is in
    kernels/."""
    device: str
    """Device type it runs on."""
    dtypes: tuple[torch.dtype, ...]
    """Data types it takes."""
    measured: str
    """How much faster than the reference, and where. Empty: not measured, so only asked for."""
    trains: bool = False
    """Whether forward and backward together are faster too."""
    needs: str = ""
    """Instruction set that the processor must have."""
    differentiable: bool = True
    """Whether it has a gradient at all."""


# Measured by benchmarks/ (sizes in shapes.py), whose results/ have all figures, on two cores of a
# Xeon with AMX and of an EPYC without it (Zen 4); of the generator's ops the rows of AVX-512's
# products and of float32 are the EPYC's. In bfloat16 against torch.compile in bfloat16, in float32
# and of STEM against PyTorch without it. A row stays only while it wins somewhere; elsewhere, and
# for ops without a row, PyTorch runs, whose convolutions and products on the CPU are oneDNN's.
_BOTH = (torch.bfloat16, torch.float32)
# On a GPU nothing has been timed yet. For inference Triton runs all the same, as the reference
# takes packed weights apart in every call; for training it has to be asked for. Attention in
# float32 spills.
_NARROW = (torch.bfloat16, torch.float16)
_ANY = (*_NARROW, torch.float32)
_FOR_INFERENCE = Row(TRITON, "cuda", _NARROW, "not timed yet", differentiable=False)
_IN_CUDA = Row(CUDA, "cuda", (torch.bfloat16,), "", differentiable=False)
_FOR_TRAINING = Row(TRITON, "cuda", _NARROW, "", trains=True)
TABLE: dict[str, tuple[Row, ...]] = {
    # Forward and backward, which is where it is used
    "batch_norm_glu": (
        Row(
            "cpu", "cpu", _BOTH, "1.4 to 2.0 times in bfloat16, 1.8 to 2.6 in float32", trains=True
        ),
        _FOR_TRAINING._replace(dtypes=_ANY),
    ),
    "batch_norm_leaky_relu": (_FOR_TRAINING._replace(dtypes=_ANY),),
    "bidirectional_lstm": (
        Row(
            "cpu",
            "cpu",
            _BOTH,
            "as STEM with the gates of all words known: 2.8 to 4.9 times",
            differentiable=False,
        ),
        _FOR_INFERENCE._replace(dtypes=(torch.float32,)),
    ),
    "conv_add": (
        Row(
            "cpu",
            "cpu",
            _BOTH,
            "2.1 times in bfloat16 with AMX, 1.5 with AVX-512, 2.8 in float32",
            differentiable=False,
        ),
        _FOR_INFERENCE._replace(dtypes=_ANY),
        _IN_CUDA,
    ),
    "conv_glu": (
        Row(
            "cpu",
            "cpu",
            _BOTH,
            "2.2 to 3.2 times in bfloat16 with AMX, 1.5 to 1.8 with AVX-512, 3.0 in float32",
            differentiable=False,
        ),
        _FOR_INFERENCE._replace(dtypes=_ANY),
        _IN_CUDA,
    ),
    "glam": (
        Row(
            "cpu",
            "cpu",
            (torch.bfloat16,),
            "6.0 to 6.1 times",
            needs="amx",
            differentiable=False,
        ),
    ),
    # Its backward recomputes the reference, so that it does not win where it trains
    "glam_attention": (
        Row("cpu", "cpu", _BOTH, "1.4 to 2.9 times in bfloat16, 2.4 to 4.1 in float32"),
    ),
    "glam_attention_mix": (
        Row(
            "cpu",
            "cpu",
            _BOTH,
            "9.2 to 9.6 times in bfloat16 with AMX, 2.8 to 3.1 with AVX-512, 6.2 in float32",
            differentiable=False,
        ),
        _FOR_TRAINING,
        _FOR_INFERENCE,
        _IN_CUDA,
    ),
    "glam_stage": (
        Row(
            "cpu",
            "cpu",
            (torch.bfloat16,),
            "3.7 to 4.4 times",
            needs="amx",
            differentiable=False,
        ),
    ),
    "image_head": (
        Row(
            "cpu",
            "cpu",
            _BOTH,
            "2.3 to 3.1 times in bfloat16 with AMX, 1.9 with AVX-512, 4.7 in float32",
            differentiable=False,
        ),
        _FOR_INFERENCE._replace(dtypes=_ANY),
    ),
    "word_similarity": (_FOR_TRAINING,),
}


class Choice(NamedTuple):
    """The implementation an op takes, and why."""

    implementation: str
    reason: str


_override: str = os.environ.get("MIRRORGAN_FAST_OPS", "")


@contextmanager
def use(implementation: str) -> Iterator[None]:
    """Ask for one implementation by name, for the whole process, while the context lasts.

    Args:
        implementation: ``reference``, or a name in `TABLE`. An op without such an implementation,
            or whose inputs it does not take, runs the reference; `choose` says why.

    Raises:
        InputError: There is no implementation of that name.
    """
    global _override
    before = _override
    _override = implementation
    try:
        _check_override()
        yield
    finally:
        _override = before


def asked_for() -> str:
    """Return the implementation that is asked for by name, empty where none is."""
    return _override


def choose(op: str, device: str, dtype: torch.dtype, *, needs_grad: bool) -> Choice:
    """Choose the implementation of ``op``.

    Args:
        op: Name of the op, a key of `TABLE`.
        device: Device type of the inputs, e.g. ``cpu``.
        dtype: Data type of the inputs; of a layer with packed weights, of those.
        needs_grad: Whether a gradient will be asked for.

    Raises:
        InputError: ``MIRRORGAN_FAST_OPS`` names no implementation.
    """
    _check_override()
    if _override == REFERENCE:
        return Choice(REFERENCE, "asked for by name")
    # Tensors with a tangent do not require a gradient, and an op without a rule would drop it; nor
    # has an op rules for what torch.func makes of tensors.
    if forward_ad._current_level >= 0 or _in_torch_func():
        return Choice(REFERENCE, "torch.func and forward mode go through the reference alone")
    reason = ""  # why the first of them does not run
    for row in TABLE[op]:
        runs_here = row.device == device or (row.implementation == TRITON and _interpreted(device))
        if not runs_here or _override not in ("", row.implementation):
            continue
        if dtype not in row.dtypes:
            reason = reason or f"{row.implementation} does not take this data type"
        elif row.implementation in COMPILED and (why := _why_not_built(row.implementation)):
            reason = reason or f"{row.implementation} was not built: {why}"
        elif row.implementation == TRITON and (why := why_not_triton(device)):
            reason = reason or f"triton does not run here: {why}"
        elif row.needs and instruction_set() != row.needs:
            reason = reason or f"{row.implementation} is for processors with {row.needs}"
        elif needs_grad and not row.differentiable:
            reason = reason or f"{row.implementation} has no gradient, and one is needed"
        elif _override:
            return Choice(row.implementation, "asked for by name")
        elif not row.measured:
            reason = (
                reason
                or f"{row.implementation} was not measured yet, and runs if asked for by name"
            )
        elif needs_grad and not row.trains:
            reason = reason or f"{row.implementation} is for inference: a gradient is needed"
        else:
            return Choice(row.implementation, row.measured)
    if not reason:
        reason = "nothing of ours is faster here than PyTorch"
        if _override:
            reason = f"{_override} was asked for, which does not exist for it on this device"
    return Choice(REFERENCE, reason)


def run_reference(
    reference: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
) -> Result:
    """Run an op's reference without autocast: it chooses its own precision.

    Args:
        reference: The plain-PyTorch meaning of an op.
        arguments: Of the op; the first one is a tensor.
        options: Of the op.
    """
    first = arguments[0]
    assert isinstance(first, Tensor)
    with torch.autocast(first.device.type, enabled=False):
        return reference(*arguments, **options)


def needs_grad(*tensors: Tensor | None) -> bool:
    """Return whether a gradient will be asked for of what is computed from the tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def report() -> dict[tuple[str, str, str], Choice]:
    """What each op takes on this machine in inference, by (op, device, data type)."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {
        (op, device, str(dtype).removeprefix("torch.")): choose(op, device, dtype, needs_grad=False)
        for op in TABLE
        for device in devices
        for dtype in (torch.float32, torch.bfloat16)
    }


def _in_torch_func() -> bool:
    active: bool = torch._C._are_functorch_transforms_active()
    return active and not torch.compiler.is_compiling()


def _why_not_built(implementation: str) -> str | None:
    return why_no_cuda_kernels() if implementation == CUDA else why_not_compiled()


def has_wgmma(device: torch.device) -> bool:
    """Return whether the CUDA kernels were built for Hopper's products of warpgroups, and run."""
    built = build_info()
    if built is None or "9.0a" not in built.cuda_architectures:
        return False
    return torch.cuda.get_device_capability(device) == (9, 0)


def why_not_triton(device: str) -> str | None:
    """Why Triton has no kernels for a device type here, in one line; None if it has."""
    if not _TRITON_INSTALLED:
        return "it is not installed"
    if device == "cuda" and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        if major < _LEAST_CAPABILITY:
            return f"the GPU is of compute capability {major}.{minor}, and 8.0 is the least"
    return None


def _interpreted(device: str) -> bool:
    """Whether Triton runs its kernels on the CPU, in Python, to test them."""
    return device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def _check_override() -> None:
    if not _override:
        return
    names = {REFERENCE, *(row.implementation for rows in TABLE.values() for row in rows)}
    if _override not in names:
        raise InputError(
            f"MIRRORGAN_FAST_OPS: found {_override!r}, wanted one of {', '.join(sorted(names))}"
        )
