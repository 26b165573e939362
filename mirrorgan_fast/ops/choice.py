"""Which implementation each op takes: the measured table, the override, and the reason.

Every op has its plain-PyTorch meaning, called ``reference``. A faster implementation has a row in
`TABLE` for the inputs on which it was measured to be faster; on everything else the reference runs.
``MIRRORGAN_FAST_OPS=<name>`` in the environment, or ``with use("<name>")``, asks for one
implementation by name wherever it can run at all.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops.build_info import why_not_compiled

REFERENCE = "reference"
COMPILED = ("cpu",)


class Row(NamedTuple):
    """An implementation of an op, and the inputs on which it is faster than the reference."""

    implementation: str
    """Name in ``MIRRORGAN_FAST_OPS``: ``cpu`` is the compiled C++."""
    device: str
    """Device type it runs on."""
    dtypes: tuple[torch.dtype, ...]
    """Data types it takes."""
    measured: str
    """How much faster than the reference, and where."""
    trains: bool = False
    """Whether forward and backward together are faster too."""


# How many times faster than the reference, from benchmarks/ with C = 32, T = 18, N = 1 and 8,
# H = W = 32, 64 and 128, on one thread of an AMD EPYC with AVX-512 and torch 2.13. A row stays only
# while it wins.
TABLE: dict[str, tuple[Row, ...]] = {
    # Forward and backward, channels_last, on two cores of an Intel Xeon with AMX, bfloat16 and
    # float32: 6.6 and 3.8 at 16x64x128x128, 5.7 and 3.9 at 16x128x64x64, 3.7 and 2.8 at
    # 16x128x32x32, 2.7 and 2.0 at 16x256x8x8. The step of birds-painted's GAN: 0.88 of its time.
    "batch_norm_glu": (
        Row(
            "cpu",
            "cpu",
            (torch.float32, torch.bfloat16),
            "2.0 to 6.6 times plain PyTorch",
            trains=True,
        ),
    ),
    # Its backward recomputes the reference, so that it does not win where it trains:
    # float32 contiguous 2.3 to 7.7, channels_last 4.6 to 8.5; bfloat16 3.8 to 4.5 and 4.1 to 8.6.
    # The most is at 8x128x128, where the reference's temporaries are fresh memory in every call.
    # It also won with two threads on a busy machine, where ratios mean little.
    "glam_attention": (
        Row("cpu", "cpu", (torch.float32, torch.bfloat16), "2.3 to 8.6 times plain PyTorch"),
    ),
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


def choose(op: str, device: str, dtype: torch.dtype, *, needs_grad: bool) -> Choice:
    """Choose the implementation of ``op``.

    Args:
        op: Name of the op, a key of `TABLE`.
        device: Device type of the inputs, e.g. ``cpu``.
        dtype: Data type of the inputs.
        needs_grad: Whether a gradient will be asked for.

    Raises:
        InputError: ``MIRRORGAN_FAST_OPS`` names no implementation.
    """
    _check_override()
    if _override == REFERENCE:
        return Choice(REFERENCE, "asked for by name")
    reason = "no faster implementation for this device"
    if _override:
        reason = f"{_override} was asked for, which does not exist for it on this device"
    for row in TABLE[op]:
        if row.device != device or _override not in ("", row.implementation):
            continue
        if dtype not in row.dtypes:
            reason = f"{row.implementation} does not take this data type"
        elif row.implementation in COMPILED and why_not_compiled() is not None:
            reason = f"{row.implementation} was not built: {why_not_compiled()}"
        elif _override:
            return Choice(row.implementation, "asked for by name")
        elif needs_grad and not row.trains:
            reason = f"{row.implementation} is for inference: a gradient is needed"
        else:
            return Choice(row.implementation, row.measured)
    return Choice(REFERENCE, reason)


def report() -> dict[tuple[str, str, str], Choice]:
    """What each op takes on this machine in inference, by (op, device, data type)."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {
        (op, device, str(dtype).removeprefix("torch.")): choose(op, device, dtype, needs_grad=False)
        for op in TABLE
        for device in devices
        for dtype in (torch.float32, torch.bfloat16)
    }


def _check_override() -> None:
    if not _override:
        return
    names = {REFERENCE, *(row.implementation for rows in TABLE.values() for row in rows)}
    if _override not in names:
        raise InputError(
            f"MIRRORGAN_FAST_OPS: found {_override!r}, wanted one of {', '.join(sorted(names))}"
        )
