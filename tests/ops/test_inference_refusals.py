"""What the ops for inference refuse: one line that names argument, what was found and wanted."""

import pytest
import torch

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops import pack

from .calls import Call, Shapes, call
from .conftest import compiled

ONES = torch.ones
F32 = torch.float32


def packed(out_channels=3, channels=5, *, glu=False, upsample=False, dtype=F32):
    return pack(ONES(out_channels, channels, 3, 3), glu=glu, upsample=upsample, dtype=dtype)


# op, argument, index of it, what is given for it, what the error says is wanted
REFUSED = [
    ("conv_glu", "x", 0, ONES(5, 4, 6), "of shape (N, C, H, W)"),
    ("conv_glu", "x", 0, ONES(2, 5, 4, 6, dtype=torch.float64), "float32 or bfloat16"),
    ("conv_glu", "x", 0, ONES(2, 0, 4, 6), "C > 0"),
    ("conv_glu", "weight", 1, packed(6, 70, glu=True), "makes for 5 channels"),
    ("conv_glu", "weight", 1, ONES(6, 5, 3, 3), "what pack() makes"),
    ("conv_glu", "weight", 1, packed(6, glu=True, dtype=torch.bfloat16), "torch.float32, that of"),
    ("conv_glu", "weight", 1, packed(6, glu=True, dtype=torch.bfloat16).float(), "pack() makes"),
    ("conv_glu", "weight", 1, ONES(1, 1, 9, 2, 512), "pack() makes"),  # bfloat16's for AMX
    ("conv_glu", "weight", 1, packed(6, glu=True).to("meta"), "device cpu"),
    ("conv_glu", "weight", 1, packed(6, glu=True).mT.contiguous().mT, "a contiguous tensor"),
    ("conv_glu", "bias", 2, ONES(5), "float32 of shape (2C,)"),
    ("conv_glu", "bias", 2, ONES(6, dtype=torch.bfloat16), "float32 of shape (2C,)"),
    ("conv_add", "weight", 1, packed(upsample=True), "packed without upsample"),
    ("conv_add", "residual", 3, ONES(2, 4, 4, 6), "of shape (2, 3, 4, 6)"),
    ("conv_add", "residual", 3, ONES(2, 3, 4, 6, device="meta"), "device cpu"),
    ("image_head", "weight", 1, packed(upsample=True), "packed without upsample"),
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
    ("glam_stage", "weights", 6, [], "two of each block and one"),
    ("glam_stage", "head_bias", 9, None, "both"),
]


def with_argument(op: str, index: int, wrong: object) -> Call:
    right = call(op, Shapes(head=True), F32)
    arguments = (*right.arguments[:index], wrong, *right.arguments[index + 1 :])
    return right._replace(arguments=arguments)


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
    """Nobody should call it, but nobody shall crash the process with it."""
    out = call(op, Shapes(head=True), F32).run()
    bad = with_argument(op, index, wrong)
    if any(tensor.device.type == "meta" for tensor in bad.tensors()):
        pytest.skip("does not reach the op for the CPU")
    with pytest.raises((ValueError, RuntimeError)):
        getattr(torch.ops.mirrorgan, op)(*bad.arguments, out)


@pytest.mark.parametrize("op", ["conv_glu", "conv_add", "glam_attention_mix", "glam_stage"])
def test_refuses_where_it_shall_write(implementation, op):
    right = call(op, Shapes(), F32)
    result = right.run()
    for out, wanted in (
        (result[:, :, :-1], "of shape"),
        (result.bfloat16(), "torch.float32"),
        (torch.empty(result.shape), "dense torch.channels_last memory"),
        (result.to("meta"), "device cpu"),
    ):
        with pytest.raises(InputError, match=rf"^{op}: out: found .* wanted .*{wanted}"):
            right.run(out=out)


def test_refuses_to_write_into_what_it_reads(implementation):
    right = call("conv_add", Shapes(out_channels=5), F32)
    with pytest.raises(InputError, match=r"^conv_add: out: .* another tensor than x"):
        right.run(out=right.arguments[0])


@pytest.mark.parametrize(
    ("weight", "options", "wanted"),
    [
        (ONES(3, 5, 3), {}, r"\(N, C, 3, 3\) or \(N, C, 1, 1\)"),
        (ONES(3, 5, 5, 5), {}, r"\(N, C, 3, 3\)"),
        (ONES(3, 5, 1, 1), {"upsample": True}, r"wanted floating point of shape \(N, C, 3, 3\)$"),
        (ONES(3, 5, 3, 3, dtype=torch.int64), {}, "floating point"),
        (ONES(3, 5, 3, 3), {"glu": True}, "an even number"),
        (ONES(0, 5, 3, 3), {}, "some channels"),
        (ONES(3, 5, 3, 3), {"dtype": torch.float16}, "torch.float32 or torch.bfloat16"),
        (ONES(3, 5, 3, 3), {"layout": "columns"}, "layout: found 'columns', wanted tiles or rows"),
    ],
)
def test_pack_refuses(weight, options, wanted):
    with pytest.raises(InputError, match=f"^pack: .*{wanted}"):
        pack(weight, **{"glu": False, "upsample": False, "dtype": F32} | options)
