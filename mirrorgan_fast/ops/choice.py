"""Which implementation each op runs: a table of measured facts, a request by name, and the reason.

Every op has a plain-PyTorch definition, called ``reference``. A faster implementation has a row in
`TABLE` for the inputs on which it was measured to be faster. On all other inputs the reference
runs. ``MIRRORGAN_FAST_OPS=<name>`` in the environment, or ``with use("<name>")``, requests one
implementation by name, wherever it can run at all.
"""

import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None  # looked up once
_MIN_CAPABILITY = 8  # NVIDIA's compute capability: older GPUs have no bfloat16


class Row(NamedTuple):
    """An implementation of an op, and the inputs on which it is faster than the reference."""

    implementation: str
    """Name to request it by: ``cpu`` and ``cuda`` are compiled, ``triton`` is in kernels/."""
    device: str
    """Device type it runs on."""
    dtypes: tuple[torch.dtype, ...]
    """Data types it accepts."""
    measured: str
    """How much faster than the reference, and where. Empty: not measured, so it runs only if
    requested by name."""
    needs: str = ""
    """Instruction set that the processor must have."""
    differentiable: bool = True
    """Whether it has a gradient; then forward and backward together are faster too."""


# Measured by benchmarks/ (sizes in shapes.py, all figures in results/) on two cores of a Xeon with
# AMX and two cores of an EPYC without it (Zen 4). For the generator's ops the figures for AVX-512
# and float32 are from the EPYC. The comparison is with torch.compile for bfloat16, and with eager
# PyTorch for float32 and for STEM. A row stays only while it wins on some shape. For everything
# else PyTorch runs, whose convolutions and products on the CPU are oneDNN's.
_BOTH = (torch.bfloat16, torch.float32)
# No implementation has been timed on a GPU yet. For inference Triton is the default all the same,
# because the reference unpacks the packed weights in every call. For training it must be requested.
# The attention spills registers in float32.
_NARROW = (torch.bfloat16, torch.float16)
_ANY = (*_NARROW, torch.float32)
_FOR_INFERENCE = Row(TRITON, "cuda", _NARROW, "not timed yet", differentiable=False)
_IN_CUDA = Row(CUDA, "cuda", (torch.bfloat16,), "", differentiable=False)
_FOR_TRAINING = Row(TRITON, "cuda", _NARROW, "")
TABLE: dict[str, tuple[Row, ...]] = {
    # Measured forward and backward: it is only used in training
    "batch_norm_glu": (
        Row(
            "cpu",
            "cpu",
            _BOTH,
            "1.4 to 2.0 times as fast in bfloat16, 1.8 to 2.6 in float32",
        ),
        _FOR_TRAINING._replace(dtypes=_ANY),
    ),
    "batch_norm_leaky_relu": (_FOR_TRAINING._replace(dtypes=_ANY),),
    "bidirectional_lstm": (
        Row(
            "cpu",
            "cpu",
            _BOTH,
            "in STEM, with the gates of all words precomputed: 2.8 to 4.9 times as fast",
            differentiable=False,
        ),
        _FOR_INFERENCE._replace(dtypes=(torch.float32,)),
    ),
    "conv_add": (
        Row(
            "cpu",
            "cpu",
            _BOTH,
            "2.1 times as fast in bfloat16 with AMX, 1.5 with AVX-512, 2.8 in float32",
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
            "2.2 to 3.2 times as fast in bfloat16 with AMX, 1.5 to 1.8 with AVX-512,"
            " 3.0 in float32",
            differentiable=False,
        ),
        _FOR_INFERENCE._replace(dtypes=_ANY),
        _IN_CUDA,
    ),
    "conv_relu": (
        Row(
            "cpu",
            "cpu",
            _BOTH,
            "1.4 to 1.6 times as fast in bfloat16 with AVX-512, 2.5 to 3.0 in float32",
            differentiable=False,
        ),
    ),
    # With AVX-512 oneDNN computes it in another way, and it was not measured there
    "conv2d": (
        Row(
            "cpu",
            "cpu",
            (torch.float32,),
            "the gradient of the weight is 1.1 to 2.5 times as fast with AVX2 (Zen 3)",
            needs="avx2",
        ),
    ),
    "glam": (
        Row(
            "cpu",
            "cpu",
            (torch.bfloat16,),
            "6.0 to 6.1 times as fast",
            needs="amx",
            differentiable=False,
        ),
    ),
    # Forward and backward, two cores of an EPYC with AVX2 only (Zen 3): 1.6 to 1.9 times as fast
    # as eager PyTorch in the same data type
    "glam_attention": (
        Row(
            "cpu",
            "cpu",
            _BOTH,
            "1.4 to 2.9 times as fast in bfloat16, 2.4 to 4.1 in float32",
        ),
    ),
    "glam_attention_mix": (
        Row(
            "cpu",
            "cpu",
            _BOTH,
            "9.2 to 9.6 times as fast in bfloat16 with AMX, 2.8 to 3.1 with AVX-512,"
            " 6.2 in float32",
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
            "3.7 to 4.4 times as fast",
            needs="amx",
            differentiable=False,
        ),
    ),
    "image_head": (
        Row(
            "cpu",
            "cpu",
            _BOTH,
            "2.3 to 3.1 times as fast in bfloat16 with AMX, 1.9 with AVX-512, 4.7 in float32",
            differentiable=False,
        ),
        _FOR_INFERENCE._replace(dtypes=_ANY),
    ),
    # One thread of a Xeon with AMX, CPU time: 2.4 times as fast as eager PyTorch in bfloat16
    "instance_norm": (
        Row(
            "cpu",
            "cpu",
            _BOTH,
            "in CycleGAN's generator, forward and backward: 1.1 to 1.2 times as fast in bfloat16,"
            " 1.4 in float32",
        ),
    ),
    # Forward and backward, small maps and kernels of many numbers only (see the op's file)
    "unfolded_conv2d": (
        Row(
            "unfolded",
            "cpu",
            _BOTH,
            "forward and backward together 1.0 to 4.8 times as fast in bfloat16, 1.05 to 2.7 in"
            " float32 (Zen 4, one thread)",
        ),
    ),
    "word_similarity": (_FOR_TRAINING,),
}


class Choice(NamedTuple):
    """The implementation that an op runs, and why."""

    implementation: str
    reason: str


_DEFAULT = os.environ.get("MIRRORGAN_FAST_OPS", "")


class _Request:
    """One call of `use`. Each is its own object, so that leaving one context removes only that."""

    def __init__(self, implementation: str) -> None:
        self.implementation = implementation


_requests: ContextVar[tuple[_Request, ...]] = ContextVar("mirrorgan_fast.requests", default=())
"""The requests of this thread or asyncio task; the last one decides."""
_requests_of_all: list[_Request] = []
"""The requests of all threads and tasks, in the order in which they were entered."""
_names_of_all: tuple[str, ...] = ()
"""Their implementations. Traced code reads this, so that Dynamo guards on it."""
_lock = threading.Lock()


@contextmanager
def use(implementation: str) -> Iterator[None]:
    """Request one implementation by name while the context lasts.

    The request holds in the current thread or asyncio task, not in others. Where contexts are
    nested or overlap, the one that was entered last decides.

    A function compiled by ``torch.compile`` follows: when a context of any thread is entered or
    left, Dynamo traces it again, or uses an earlier trace for the same contexts. One case is not
    covered. If two threads call the same compiled function at the same time, one of them inside a
    context and the other not, both run what the first of them traced.

    A request does not reach autograd's own threads, in which the backward pass runs on a GPU. This
    does not matter to the ops, which choose in the forward pass only. It does matter to what
    ``torch.utils.checkpoint`` recomputes on a GPU: set ``MIRRORGAN_FAST_OPS`` there instead.

    Args:
        implementation: ``reference``, or a name in `TABLE`. An op without such an implementation,
            or whose inputs it does not take, runs the reference; `choose` says why.

    Raises:
        InputError: There is no implementation of that name.
    """
    _check_name("use: implementation", implementation)
    request = _Request(implementation)
    _requests.set((*_requests.get(), request))
    with _lock:
        _requests_of_all.append(request)
        _publish_names()
    try:
        yield
    finally:
        _requests.set(tuple(other for other in _requests.get() if other is not request))
        with _lock:
            _requests_of_all.remove(request)
            _publish_names()


def _publish_names() -> None:
    global _names_of_all
    _names_of_all = tuple(request.implementation for request in _requests_of_all)


def asked_for() -> str:
    """Return the implementation that is requested by name, empty where none is."""
    if torch.compiler.is_compiling():
        return _requested_while_tracing(_names_of_all)
    return _requested_here()


def _requested_here() -> str:
    requests = _requests.get()
    return requests[-1].implementation if requests else _DEFAULT


def _requested_while_tracing(names_of_all: tuple[str, ...]) -> str:
    """Return what is requested in this thread, as a constant of the traced code.

    Dynamo cannot trace a context variable and does not guard on one. It does guard on the global
    variable that is passed as ``names_of_all``, which changes whenever a request does.
    """
    return _requested_here()


# This is what torch.compiler.assume_constant_result() does, after it has imported torch._dynamo:
# that would take as long as importing torch.
_requested_while_tracing._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choose(op: str, device: str, dtype: torch.dtype, *, needs_grad: bool) -> Choice:
    """Choose the implementation of ``op``.

    Args:
        op: Name of the op, a key of `TABLE`.
        device: Device type of the inputs, e.g. ``cpu``.
        dtype: Data type of the inputs, or of the packed weights for an op that has them.
        needs_grad: Whether the result will be differentiated.

    Raises:
        InputError: ``MIRRORGAN_FAST_OPS`` names no implementation.
    """
    requested = asked_for()
    _check_name("MIRRORGAN_FAST_OPS", requested)
    if requested == REFERENCE:
        return Choice(REFERENCE, "requested by name")
    # The ops have no rules for forward-mode tangents, which they would drop, or for torch.func.
    if forward_ad._current_level >= 0 or _in_torch_func():
        return Choice(REFERENCE, "torch.func and forward mode run the reference")
    reason = ""  # why the first implementation does not run
    for row in TABLE[op]:
        runs_here = row.device == device or (row.implementation == TRITON and _interpreted(device))
        if not runs_here or requested not in ("", row.implementation):
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
        elif requested:
            return Choice(row.implementation, "requested by name")
        elif not row.measured:
            reason = (
                reason or f"{row.implementation} was not measured yet: it runs if requested by name"
            )
        else:
            return Choice(row.implementation, row.measured)
    if not reason:
        reason = "no implementation of this package is faster here than PyTorch"
        if requested:
            reason = f"{requested} was requested, but this op has none on this device"
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
    """Return whether autograd records what is computed from the tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def report() -> dict[tuple[str, str, str], Choice]:
    """Return what each op runs on this machine in inference, by (op, device, data type)."""
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
    """Return whether the CUDA kernels were built with Hopper's wgmma and the GPU is a Hopper."""
    built = build_info()
    if built is None or "9.0a" not in built.cuda_architectures:
        return False
    return torch.cuda.get_device_capability(device) == (9, 0)


def why_not_triton(device: str) -> str | None:
    """Return in one line why Triton cannot run on a device type here, or None if it can."""
    if not _TRITON_INSTALLED:
        return "it is not installed"
    if device == "cuda" and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        if major < _MIN_CAPABILITY:
            return f"the GPU has compute capability {major}.{minor}, and at least 8.0 is needed"
    return None


def _interpreted(device: str) -> bool:
    """Return whether Triton's interpreter runs the kernels on the CPU, to test them."""
    return device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def _check_name(argument: str, implementation: str) -> None:
    if not implementation:
        return
    names = {REFERENCE, *(row.implementation for rows in TABLE.values() for row in rows)}
    if implementation not in names:
        wanted = ", ".join(sorted(names))
        raise InputError(f"{argument}: found {implementation!r}, wanted one of {wanted}")
