"""Mixed precision where the processor has it, and memory that stays with the process."""

import ctypes
import platform
import subprocess
import sys
import textwrap

import pytest
import torch

from mirrorgan_fast.memory import keep_memory
from mirrorgan_fast.training.precision import autocast, fastest_precision

CPU = torch.device("cpu")


def product_dtype() -> torch.dtype:
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize(
    ("capabilities", "computes"),
    [
        ({}, False),
        ({"avx512_f": True, "avx2": True}, False),
        ({"amx_bf16": False, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
    ],
)
def test_auto_is_bf16_where_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], computes: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert fastest_precision(CPU) == ("bf16" if computes else "fp32")
    with autocast(CPU, "auto"):
        assert product_dtype() == (torch.bfloat16 if computes else torch.float32)


@pytest.mark.parametrize("there", [True, False])
def test_a_precision_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": there})
    with autocast(CPU, "fp32"):
        assert product_dtype() == torch.float32
    with autocast(CPU, "bf16"):
        assert product_dtype() == torch.bfloat16
    assert product_dtype() == torch.float32


def test_this_processor_has_an_answer() -> None:
    assert fastest_precision(CPU) in ("bf16", "fp32")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_stays_with_the_process() -> None:
    """Freed tensors of 64 MB leave the process as large as they made it."""
    program = textwrap.dedent("""
        import sys, torch
        from mirrorgan_fast.memory import keep_memory

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096

        def kept():
            before = resident()
            torch.ones(2**24)
            return (resident() - before) / 2**26

        first = kept()
        keep_memory()
        print(first, kept())
    """)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    without, with_it = map(float, result.stdout.split())
    assert without < 0.5
    assert with_it > 0.9


def test_nothing_is_done_to_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("it was opened"))
    keep_memory()
