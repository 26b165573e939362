"""The hardware's limits, measured next to each benchmark: products and memory copies per second."""

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch

_TILE_PRODUCT = 2 * 16 * 32 * 16
_TILE_PRODUCTS = 1_000_000
_MULTIPLY_ADDS = 20_000_000
_PAIRS = 64
_COPIED = 64 << 20


class Limits:
    """Loops that only multiply or only copy; each measurement takes a few milliseconds.

    Raises:
        OSError: there is no C++ compiler.
        subprocess.CalledProcessError: limits.cpp does not compile, e.g. not on an x86-64 processor.
    """

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp())
        try:
            library = folder / "limits.so"
            source = Path(__file__).with_name("limits.cpp")
            compiler = os.environ.get("CXX", "c++")
            options = ("-O2", "-std=c++17", "-shared", "-fPIC", "-pthread")
            subprocess.run([compiler, *options, source, "-o", library], check=True)
            self._loops = ctypes.CDLL(str(library))
        finally:
            shutil.rmtree(folder)
        for loop in (self._loops.amx_loop, self._loops.pairs_loop, self._loops.fma_loop):
            loop.argtypes = (ctypes.c_int, ctypes.c_long)
        self._loops.has_amx.restype = self._loops.has_pairs.restype = ctypes.c_bool
        self._has_amx, self._has_pairs = self._loops.has_amx(), self._loops.has_pairs()
        self.fastest: dict[torch.dtype, float] = {}
        """The highest result of ``operations`` so far."""
        self._from, self._to = torch.ones(2, _COPIED, dtype=torch.uint8)

    def operations(self, dtype: torch.dtype) -> float:
        """Return operations per second of products in ``dtype``, on as many threads as torch uses.

        Without AMX or AVX-512 products of bfloat16, bfloat16 is computed in float32.
        """
        threads = torch.get_num_threads()
        start = time.perf_counter()
        if dtype == torch.bfloat16 and self._has_amx:
            self._loops.amx_loop(threads, _TILE_PRODUCTS)
            done = _TILE_PRODUCTS * _TILE_PRODUCT
        elif dtype == torch.bfloat16 and self._has_pairs:
            self._loops.pairs_loop(threads, _MULTIPLY_ADDS)
            done = _MULTIPLY_ADDS * _PAIRS
        else:
            done = _MULTIPLY_ADDS * self._loops.fma_loop(threads, _MULTIPLY_ADDS)
        found = threads * done / (time.perf_counter() - start)
        self.fastest[dtype] = max(found, self.fastest.get(dtype, 0.0))
        return found

    def copied(self) -> float:
        """Return bytes read or written per second when memory is copied."""
        start = time.perf_counter()
        self._to.copy_(self._from)
        return 2 * _COPIED / (time.perf_counter() - start)
