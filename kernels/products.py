"""Products of tiles, the same on a GPU and under Triton's interpreter."""

import os

import triton
import triton.language as tl

# The interpreter multiplies bfloat16 wrongly, and on the CPU float32 costs it nothing.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(a, b, acc):
    """Return acc + a b, of (M, K) and (K, N), summed in float32; float32 is not rounded to tf32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")
