"""The checks of the inference ops: the error names argument, what was found, what is wanted."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops import build_info, conv_add, pack

from .calls import OPS, Call, Shapes, call
from .conftest import compiled

ONES = torch.ones
F32, BF16 = torch.float32, torch.bfloat16
IN_FLOAT32 = "a weight from pack() in torch.float32"


def packed(out_channels=3, channels=5, *, glu=False, upsample=False, dtype=F32, side=3):
    return pack(ONES(out_channels, channels, side, side), glu=glu, upsample=upsample, dtype=dtype)


# op, argument, its index, a wrong value for it, what the error must contain
REFUSED = [
    ("conv_glu", "x", 0, ONES(5, 4, 6), "of shape (N, C, H, W)"),
    ("conv_glu", "x", 0, ONES(2, 5, 4, 6, dtype=torch.float64), "float32 or bfloat16"),
    ("conv_glu", "x", 0, ONES(2, 0, 4, 6), "C > 0"),
    ("conv_glu", "weight", 1, packed(6, 70, glu=True), "from pack() for 5 channels"),
    ("conv_glu", "weight", 1, ONES(6, 5, 3, 3), "from pack()"),
    ("conv_glu", "weight", 1, packed(6, 37, glu=True), "from pack() for 5 channels"),
    ("conv_glu", "weight", 1, packed(34, glu=True), "from pack() for 5 channels and this bias"),
    ("conv_glu", "weight", 1, packed(6, 257, glu=True, side=1), "from pack() for 5 channels"),
    ("conv_glu", "weight", 1, packed(6, glu=True, dtype=BF16), "in torch.float32, as x"),
    ("conv_glu", "weight", 1, packed(6, glu=True, dtype=BF16).float(), "from pack()"),
    ("conv_glu", "weight", 1, packed(6, glu=True, dtype=BF16, side=1).float(), IN_FLOAT32),
    (
        "conv_glu",
        "weight",
        1,
        packed(6, glu=True, dtype=BF16, upsample=True).float(),
        "from pack()",
    ),
    # plain taps, as in bfloat16 with AMX
    ("conv_glu", "weight", 1, ONES(1, 1, 9, 1, 2, 32, 16), "from pack()"),
    ("conv_glu", "weight", 1, ONES(1, 1, 1, 1, 2, 8, 64), "from pack()"),
    ("conv_glu", "weight", 1, packed(6, glu=True).to("meta"), "device cpu"),
    ("conv_glu", "weight", 1, packed(6, glu=True).mT.contiguous().mT, "a contiguous tensor"),
    ("conv_glu", "bias", 2, ONES(5), "float32 of shape (2C,)"),
    ("conv_glu", "bias", 2, ONES(6, dtype=torch.bfloat16), "float32 of shape (2C,)"),
    ("conv_add", "residual", 3, ONES(2, 4, 4, 6), "of shape (2, 3, 4, 6)"),
    ("conv_add", "residual", 3, ONES(2, 3, 4, 6, device="meta"), "device cpu"),
    ("conv_relu", "bias", 2, ONES(4, 1), "float32 of shape (C,)"),
    ("conv_relu", "residual", 3, ONES(2, 4, 4, 6), "of shape (2, 3, 4, 6)"),
    ("conv_relu", "residual", 3, ONES(2, 3, 4, 6, device="meta"), "device cpu"),
    ("image_head", "weight", 1, packed(upsample=True), "packed without upsample"),
    ("image_head", "weight", 1, packed(dtype=BF16).float(), IN_FLOAT32),
    ("image_head", "bias", 2, ONES(4, 1), "float32 of shape (C,)"),
    ("glam_attention_mix", "features", 0, ONES(5, 4, 6), "(N, C, H, W)"),
    ("glam_attention_mix", "words", 1, ONES(2, 3, 4), "(2, T, 5)"),
    ("glam_attention_mix", "mask", 2, ONES(2, 3), "bool of shape (N, T) = (2, 3)"),
    ("glam_attention_mix", "sentence", 3, ONES(2, 4), "(2, 5)"),
    ("glam_attention_mix", "sentence_weight", 4, ONES(4, 5), "(5, 5)"),
    ("glam_attention_mix", "mix", 5, ONES(3, 10), "shape (C', 15)"),
    ("glam_attention_mix", "mix", 5, ONES(3, 15, dtype=torch.bfloat16), "torch.float32 on cpu"),
    ("glam_stage", "words", 1, ONES(2, 3, 4), "(2, T, 5)"),
    ("glam_stage", "mix", 5, ONES(3, 10), "shape (C', 15)"),
    ("glam_stage", "weights", 6, [], "two for each block and one"),
    ("glam_stage", "head_bias", 9, None, "both"),
]


def with_argument(op: str, index: int, wrong: object) -> Call:
    valid = call(op, Shapes(head=True), F32)
    arguments = (*valid.arguments[:index], wrong, *valid.arguments[index + 1 :])
    return valid._replace(arguments=arguments)


@pytest.mark.parametrize(("op", "argument", "index", "wrong", "wanted"), REFUSED)
def test_refuses(implementation, op, argument, index, wrong, wanted):
    with pytest.raises(InputError) as error:
        with_argument(op, index, wrong).run()
    assert str(error.value).startswith(f"{op}: {argument}: found ")
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)


@compiled
@pytest.mark.parametrize(("op", "argument", "index", "wrong", "wanted"), REFUSED)
def test_compiled_op_checks_for_itself(op, argument, index, wrong, wanted):
    """A wrong direct call must not crash the process."""
    out = call(op, Shapes(head=True), F32).run()
    bad = with_argument(op, index, wrong)
    if any(tensor.device.type == "meta" for tensor in bad.tensors()):
        pytest.skip("meta tensors do not reach the CPU op")
    with pytest.raises((ValueError, RuntimeError)):
        getattr(torch.ops.mirrorgan, op)(*bad.arguments, out)


@compiled
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("op", OPS)
def test_compiled_op_checks_out_for_itself(op, dtype):
    shapes = Shapes(channels=32, width=32, out_channels=32, head=True)
    valid = call(op, shapes, dtype)
    result = valid.run()
    if op == "glam_stage" and (dtype == F32 or build_info().instruction_set != "amx"):
        pytest.skip("the compiled op is for bfloat16 and AMX")
    implementation = getattr(torch.ops.mirrorgan, op)
    implementation(*valid.arguments, torch.empty_like(result))
    for out in (result[:1], result.double(), result.mT.contiguous().mT):
        with pytest.raises(ValueError, match=rf"^{op}: out: found .*, wanted "):
            implementation(*valid.arguments, out)


@pytest.mark.parametrize(
    "op", ["conv_glu", "conv_add", "conv_relu", "glam_attention_mix", "glam_stage"]
)
def test_refuses_a_wrong_out(implementation, op):
    valid = call(op, Shapes(), F32)
    result = valid.run()
    for out, wanted in (
        (result[:, :, :-1], "of shape"),
        (result.bfloat16(), "torch.float32"),
        (torch.empty(result.shape), "dense torch.channels_last memory"),
        (result.to("meta"), "device cpu"),
    ):
        with pytest.raises(InputError, match=rf"^{op}: out: found .* wanted .*{wanted}"):
            valid.run(out=out)
        # also when the reference runs, because a gradient is needed
        x, *others = valid.arguments
        with pytest.raises(InputError, match=rf"^{op}: out: found .* wanted .*{wanted}"):
            valid.op(x.clone().requires_grad_(), *others, out=out)


def map_in(memory, start, like):
    """Return a dense map of the size of ``like`` in the memory, from element ``start`` on."""
    batch, channels, height, width = like.shape
    flat = memory[start : start + like.numel()]
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "op", ["conv_glu", "conv_add", "conv_relu", "glam_attention_mix", "glam_stage"]
)
def test_refuses_an_out_that_overlaps_x(implementation, op):
    valid = call(op, Shapes(channels=8, out_channels=8), F32)
    x, *others = valid.arguments
    result = valid.run()
    memory = ONES(x.numel() + result.numel())

    def run(x_start, out_start):
        out = map_in(memory, out_start, result)
        x_in_memory = map_in(memory, x_start, x).copy_(x)
        assert valid.op(x_in_memory, *others, out=out) is out
        assert torch.equal(out, result)

    run(0, x.numel())
    run(result.numel(), 0)
    for overlapping in ((0, x.numel() - 1), (result.numel() - 1, 0), (0, 0)):
        with pytest.raises(InputError, match=rf"^{op}: out: .* memory that does not overlap x's"):
            run(*overlapping)
    parameter = nn.Parameter(map_in(memory, 0, x), requires_grad=False)
    with pytest.raises(InputError, match=rf"^{op}: out: .* memory that does not overlap x's"):
        valid.op(parameter, *others, out=map_in(memory, 0, result))


def test_out_may_be_the_residual_but_not_overlap_it_partly(implementation):
    valid = call("conv_add", Shapes(out_channels=5), F32)
    *others, residual = valid.arguments
    result = valid.run()
    memory = ONES(2 * residual.numel())
    over = map_in(memory, 1, residual).copy_(residual)
    assert torch.equal(conv_add(*others, over, out=map_in(memory, 1, residual)), result)
    with pytest.raises(InputError, match=r"^conv_add: out: .* exactly the residual's memory"):
        conv_add(*others, over, out=map_in(memory, 2, residual))


@pytest.mark.parametrize(
    ("weight", "options", "wanted"),
    [
        (ONES(3, 5, 3), {}, r"\(N, C, 3, 3\) or \(N, C, 1, 1\)"),
        (ONES(3, 5, 5, 5), {}, r"\(N, C, 3, 3\)"),
        (ONES(3, 5, 1, 1), {"upsample": True}, r"wanted floating point of shape \(N, C, 3, 3\)$"),
        (ONES(3, 5, 3, 3, dtype=torch.int64), {}, "floating point"),
        (ONES(3, 5, 3, 3), {"glu": True}, "an even number"),
        (ONES(0, 5, 3, 3), {}, "at least one channel"),
        (ONES(3, 5, 3, 3), {"dtype": torch.float16}, "torch.float32 or torch.bfloat16"),
        (ONES(3, 5, 3, 3), {"layout": "columns"}, "layout: found 'columns', wanted tiles or rows"),
    ],
)
def test_pack_refuses(weight, options, wanted):
    with pytest.raises(InputError, match=f"^pack: .*{wanted}"):
        pack(weight, **{"glu": False, "upsample": False, "dtype": F32} | options)


SHORT_OF_MEMORY = """
import resource
import torch
from mirrorgan_fast.ops import conv_glu, pack

def inputs(channels):
    x = torch.ones(1, channels, 16, 16).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(2 * channels, channels, 3, 3)
    packed = pack(weight, glu=True, upsample=False, dtype=torch.float32)
    return x, packed, torch.zeros(2 * channels)

torch.set_num_threads(2)
conv_glu(*inputs(32))
large = inputs(512)
out = torch.empty_like(large[0])
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 100_000,) * 2)
try:
    conv_glu(*large, out=out)
except MemoryError:
    print("MemoryError")
"""


@compiled
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses the memory limits of Linux")
@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer needs more memory"
)
def test_too_little_memory_in_a_thread_is_a_memory_error():
    """The sampler catches it and continues with smaller batches."""
    command = [sys.executable, "-c", SHORT_OF_MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "MemoryError", done.stderr
