"""Matrix products that are the same on a GPU and in Triton's interpreter."""

import os

import triton
import triton.language as tl

# The interpreter computes products of bfloat16 wrongly, so they are computed in float32 there.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(a, b, acc):
    """Return acc + a b for a (M, K) and b (K, N), summed in float32, without rounding to tf32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")
