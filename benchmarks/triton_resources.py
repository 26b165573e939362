"""The registers and shared memory that every Triton kernel takes; no GPU is needed.

    python -m benchmarks.triton_resources              # prints the table
    python -m benchmarks.triton_resources --write      # also records it for the tests to compare

Each op is called once, with the shapes and data types it is used with. Its kernels are not launched
but compiled ahead of time, for each of `ARCHITECTURES`.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from mirrorgan_fast.kernels.batch_norm_glu import (
    batch_norm_glu_triton,
    batch_norm_glu_triton_backward,
)
from mirrorgan_fast.kernels.batch_norm_leaky_relu import (
    batch_norm_leaky_relu_triton,
    batch_norm_leaky_relu_triton_backward,
)
from mirrorgan_fast.kernels.bidirectional_lstm import bidirectional_lstm_triton
from mirrorgan_fast.kernels.conv_add import conv_add_triton
from mirrorgan_fast.kernels.conv_glu import conv_glu_triton
from mirrorgan_fast.kernels.glam_attention_mix import (
    glam_attention_mix_triton,
    glam_attention_mix_triton_backward,
)
from mirrorgan_fast.kernels.image_head import image_head_triton
from mirrorgan_fast.kernels.word_similarity import (
    word_similarity_triton,
    word_similarity_triton_backward,
)
from mirrorgan_fast.ops import pack, pack_lstm

BF16 = torch.bfloat16

ARCHITECTURES = (80, 90, 100)
RECORDED = Path(__file__).parent / "results" / "triton-resources.json"
MAX_SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""The most bytes of shared memory per block (CUDA C++ Programming Guide)."""
MAX_BLOCK_REGISTERS = 64 * 1024
"""The most registers of all threads of a block together."""

_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
    torch.int64: "*i64",
}
_OBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Launch(NamedTuple):
    """A kernel, and everything that determines how it is compiled."""

    kernel: JITFunction
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[str, ...]
    """Arguments that are multiples of 16; pointers always are."""
    warps: int
    stages: int


def launches(call: Callable[[], object]) -> list[Launch]:
    """Record the kernels that a call would launch, in order, without launching them."""
    found: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, **options: Any) -> None:
        given = dict(zip(kernel.arg_names, args, strict=False)) | options
        signature, constants, divisible = {}, {}, []
        for parameter in kernel.params:
            name, value = parameter.name, given[parameter.name]
            if isinstance(value, Tensor):
                signature[name] = _TYPES[value.dtype]
                divisible.append(name)
            elif parameter.is_constexpr or value in (None, 1):
                signature[name], constants[name] = "constexpr", value
            elif isinstance(value, float):
                signature[name] = "fp32"
            else:
                signature[name] = "i32"
                if value % 16 == 0:
                    divisible.append(name)
        options = (given["num_warps"], given["num_stages"])
        found.append(Launch(kernel, signature, constants, tuple(divisible), *options))

    run = JITFunction.run
    JITFunction.run = record
    try:
        call()
    finally:
        JITFunction.run = run
    return found


def resources(launch: Launch, architecture: int) -> dict[str, int]:
    """Compile a launch; return registers per thread, bytes of shared memory, bytes spilled."""
    names = launch.kernel.arg_names
    source = ASTSource(
        fn=launch.kernel,
        signature=launch.signature,
        constexprs={(names.index(name),): value for name, value in launch.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in launch.divisible},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": launch.warps, "num_stages": launch.stages},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(_OBJDUMP), "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {name: int(n) for name, n in re.findall(r"\b([A-Z]+):(\d+)", printed)}
    return {
        "registers": used["REG"],
        "shared": compiled.metadata.shared,
        "spilled": used["STACK"] + used["LOCAL"],
        "threads": launch.warps * 32,
    }


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the name and a call of each op: bfloat16, shapes of `cub`; some ops in float32 too."""
    for channels, size in ((1024, 4), (64, 64), (64, 128)):
        yield f"conv_glu, up from {channels} x {size}", _conv_glu(channels, size, up=True)
    for channels in (64, 96):
        yield f"conv_glu, {channels} x 128", _conv_glu(channels, 128, up=False)
    yield "conv_add, 64 x 128", _conv_add(64, 128)
    yield "image_head, 32 x 256", _image_head(32, 256)
    yield "conv_add, 64 x 128, float32", _conv_add(64, 128, torch.float32)
    yield "conv_glu, up from 64 x 64, float32", _conv_glu(64, 64, torch.float32, up=True)
    for form in ("none", "paper", "authors"):
        yield f"glam_attention_mix, {form}, 18 words", _attention(form, 18, backward=False)
        yield f"glam_attention_mix backward, {form}, 18 words", _attention(form, 18, backward=True)
    yield "glam_attention_mix, authors, 128 words", _attention("authors", 128, backward=False)
    about = "authors, 12 words, 48 channels"  # of coco
    yield f"glam_attention_mix, {about}", _attention("authors", 12, channels=48, backward=False)
    yield (
        f"glam_attention_mix backward, {about}",
        _attention("authors", 12, channels=48, backward=True),
    )
    yield (
        "glam_attention_mix backward, authors, 64 words",
        _attention("authors", 64, backward=True),
    )
    for dtype in (BF16, torch.float32):
        yield f"batch_norm_glu, 128 x 64, {dtype}", lambda dtype=dtype: _batch_norm_glu(dtype)
        about = f"batch_norm_leaky_relu, 128 x 64, {dtype}"
        yield about, lambda dtype=dtype: _batch_norm_leaky_relu(dtype)
    yield "word_similarity, 18 words", lambda: _word_similarity(18)
    yield "bidirectional_lstm, 128 units", lambda: _bidirectional_lstm(128)


def _map(channels: int, size: int, dtype: torch.dtype = BF16) -> Tensor:
    x = torch.empty(1, channels, size, size, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


def _rows(columns: int, channels: int, dtype: torch.dtype = BF16, **options: bool) -> Tensor:
    return pack(torch.ones(columns, channels, 3, 3), dtype=dtype, layout="rows", **options)


def _conv_glu(
    channels: int, size: int, dtype: torch.dtype = BF16, *, up: bool
) -> Callable[[], object]:
    columns = channels if up else 2 * channels
    weight = _rows(columns, channels, dtype, glu=True, upsample=up)
    x, out = _map(channels, size, dtype), _map(columns // 2, size * (2 if up else 1), dtype)
    return lambda: conv_glu_triton(x, weight, torch.ones(columns), out)


def _conv_add(channels: int, size: int, dtype: torch.dtype = BF16) -> Callable[[], object]:
    weight = _rows(channels, channels, dtype, glu=False, upsample=False)
    x, out = _map(channels, size, dtype), _map(channels, size, dtype)
    return lambda: conv_add_triton(x, weight, torch.ones(channels), x, out)


def _image_head(channels: int, size: int) -> Callable[[], object]:
    weight = _rows(3, channels, glu=False, upsample=False)
    out = torch.empty(1, size, size, 3, dtype=torch.uint8)
    return lambda: image_head_triton(_map(channels, size), weight, torch.ones(3), out)


def _attention(
    form: str, words: int, *, channels: int = 32, backward: bool
) -> Callable[[], object]:
    columns, size = 2 * channels, 128
    arguments = (
        _map(channels, size),
        torch.ones(1, words, channels, dtype=BF16),
        torch.ones(1, words, dtype=torch.bool),
        None if form == "none" else torch.ones(1, channels, dtype=BF16),
        torch.ones(channels, channels, dtype=BF16) if form == "authors" else None,
        torch.ones(columns, (2 if form == "none" else 3) * channels, dtype=BF16),
    )
    result = _map(columns, size)
    if backward:
        return lambda: glam_attention_mix_triton_backward(result, *arguments)
    return lambda: glam_attention_mix_triton(*arguments, result)


def _batch_norm_glu(dtype: torch.dtype) -> None:
    x, ones = _map(128, 64, dtype), torch.ones(128)
    batch_norm_glu_triton(x, ones, ones, 1e-5)
    batch_norm_glu_triton_backward(_map(64, 64, dtype), x, *[ones] * 4, 1e-5)


def _batch_norm_leaky_relu(dtype: torch.dtype) -> None:
    x, ones = _map(128, 64, dtype), torch.ones(128)
    batch_norm_leaky_relu_triton(x, ones, ones, 0.2, 1e-5)
    batch_norm_leaky_relu_triton_backward(x, x, *[ones] * 4, 0.2, 1e-5)


def _word_similarity(words: int) -> None:
    mask = torch.ones(48, words, dtype=torch.bool)
    features = [torch.ones(48, count, 256, dtype=BF16) for count in (words, 289)]
    word_similarity_triton(features[0], mask, features[1], 4.0, 5.0)
    word_similarity_triton_backward(torch.ones(48, 48), features[0], mask, features[1], 4.0, 5.0)


def _bidirectional_lstm(units: int) -> None:
    lstm = pack_lstm(torch.nn.LSTM(300, units, bidirectional=True), layout="rows")
    states = torch.empty(32, 18, 2, units)
    gates, tokens = torch.ones(5450, 2, 4 * units), torch.ones(32, 18, dtype=torch.int64)
    lengths = torch.full((32,), 18)
    bidirectional_lstm_triton(gates, tokens, lengths, lstm.recurrent, states, states[:, 0].clone())


def table() -> dict[str, dict[str, int]]:
    """Return the resources of every kernel of every call, by call, kernel and architecture."""
    found = {}
    triton.knobs.language.default_fp_fusion = (
        True  # independent of the default of the Triton version
    )
    for about, call in calls():
        kernels: list[str] = []
        for launch in launches(call):
            kernels.append(launch.kernel.__name__)
            turn = kernels.count(kernels[-1])
            which = f", launch {turn}" if turn > 1 else ""
            for architecture in ARCHITECTURES:
                name = f"{about}{which}: {kernels[-1]}, sm_{architecture}"
                found[name] = resources(launch, architecture)
    return found


def main() -> None:
    """Print the table, and record it with ``--write``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"record the table in {RECORDED.name}")
    options = parser.parse_args()
    found = table()
    for name, used in found.items():
        print(f"{name:90} " + "  ".join(f"{key} {value:6}" for key, value in used.items()))
    if options.write:
        recorded = {"triton": triton.__version__, "kernels": found}
        RECORDED.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
