"""Every inference op against float64. Its checks of arguments are in test_inference_refusals.py."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.ops import (
    build_info,
    conv_add,
    conv_glu,
    conv_relu,
    glam_attention_mix,
    glam_stage,
    pack,
    pack_transposed,
    packing,
    use,
)

from .calls import OPS, Call, Shapes, call
from .conftest import compiled

DTYPES = [torch.float32, torch.bfloat16]
# Rows and channels fill whole tiles, so that the fastest forms run.
WHOLE_TILES = Shapes(
    channels=32, height=7, width=32, out_channels=64, words=18, blocks=2, head=True
)


def shapes() -> st.SearchStrategy[Shapes]:
    channels = st.one_of(st.integers(1, 70), st.sampled_from([32, 64]))
    return st.builds(
        Shapes,
        batch=st.integers(0, 3),
        channels=channels,
        height=st.integers(1, 9),
        width=st.one_of(st.integers(1, 40), st.sampled_from([16, 32])),
        out_channels=channels,
        words=st.one_of(st.integers(1, 40), st.sampled_from([70, 130])),
        blocks=st.integers(0, 2),
        side=st.sampled_from([1, 3]),
        upsample=st.booleans(),
        form=st.sampled_from(["authors", "paper", "words"]),
        head=st.booleans(),
        layout=st.just("tiles"),
        image_channels=st.integers(1, 6),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
@settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture
    ],  # the fixtures are the same for all examples
)
@given(shapes=shapes(), seed=st.integers(0, 2**31))
def test_matches_float64_on_any_shape(implementation, assert_result, op, dtype, shapes, seed):
    called = call(op, shapes, dtype, seed)
    assert_result(called, called.run())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_matches_float64_on_whole_tiles(implementation, assert_result, op, dtype):
    for upsample in (False, True):
        called = call(op, WHOLE_TILES._replace(upsample=upsample, head=upsample), dtype)
        assert_result(called, called.run())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("words", [1, 20, 46, 95, 140, 200])
@pytest.mark.parametrize("channels", [1, 5, 32, 40])
def test_numbers_of_words_and_channels(implementation, assert_result, channels, words, dtype):
    """A kernel may use different forms for few and for many words."""
    shapes = Shapes(1, channels, height=2, width=70, out_channels=40, words=words)
    called = call("glam_attention_mix", shapes, dtype)
    result = called.run()
    assert_result(called, result)
    assert torch.equal(called.run(), result)


def test_attention_with_many_channels_is_accurate(implementation, assert_result):
    """The scores are sums of many products, and a softmax amplifies their errors."""
    shapes = Shapes(1, 2048, height=8, width=8, out_channels=128, words=200)
    called = call("glam_attention_mix", shapes, torch.float32)
    assert_result(called, called.run())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("words", [12, 80])
@pytest.mark.parametrize("level", [-3000.0, -300.0, -40.0, 40.0, 300.0, 3000.0])
def test_large_scores(implementation, level, words, dtype):
    """Adding a number to all scores of some pixels changes nothing, and no bit of other pixels."""
    shapes = Shapes(1, 32, height=3, width=50, out_channels=32, words=words)
    arguments = call("glam_attention_mix", shapes, dtype).arguments
    loud = torch.rand(3, 50, generator=torch.Generator().manual_seed(1)) > 0.6
    results = []
    for added in (0.0, level):
        features, keys, mask, sentence, weight, mix = (tensor.clone() for tensor in arguments)
        features[:, 0] = loud.to(dtype)
        keys[..., 0] = weight[:, 0] = added
        sentence[:, 0] = 1
        mix[:, 32] = 0  # ignores the context of that channel
        results.append(glam_attention_mix(features, keys, mask, sentence, weight, mix))
    expected, result = results
    assert torch.equal(result[..., ~loud], expected[..., ~loud])
    torch.testing.assert_close(
        result, expected, rtol=0, atol=2e-2 if dtype == torch.bfloat16 else 1e-3
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("words", [3, 100])
def test_equal_large_scores_have_equal_shares(implementation, words, dtype):
    shapes = Shapes(1, 32, height=1, width=40, out_channels=32, words=words, form="words")
    features, keys, mask, *_, mix = call("glam_attention_mix", shapes, dtype).arguments
    features[:, 0], keys[..., 0] = 1e7, 1e6
    features[:, 1:] = 0
    mix[:, :32] = mix[:, 32] = 0  # uses the context of all channels but that one
    result = glam_attention_mix(features, keys, torch.ones_like(mask), None, None, mix)
    context = keys[0].double().mean(dim=0)
    expected = (mix[:, 32:].double() @ context)[None, :, None, None].expand(result.shape)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("argument", ["words", "sentence", "sentence_weight", "mix"])
def test_nan_in_other_inputs_reaches_the_result(implementation, argument, dtype):
    arguments = list(call("glam_attention_mix", WHOLE_TILES, dtype).arguments)
    mask = arguments[2]
    place = ["features", "words", "mask", "sentence", "sentence_weight", "mix"].index(argument)
    at = (0, int(mask[0].nonzero()[0, 0]), 3) if argument == "words" else (0, 3)
    arguments[place][at] = torch.nan
    result = glam_attention_mix(*arguments)[0]
    assert result.isnan().flatten(1).all(dim=1).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stage_may_have_wider_blocks(implementation, assert_matches, dtype):
    """If a hidden layer has more channels than the mix gives, the ops run one by one."""
    called = call("glam_stage", WHOLE_TILES._replace(out_channels=32, blocks=1, head=False), dtype)
    *attention, weights, biases, _, _ = called.arguments
    rng = torch.Generator().manual_seed(3)

    def packed(out_channels: int, channels: int, glu: bool) -> Tensor:
        weight = torch.randn(out_channels, channels, 3, 3, generator=rng) / (9 * channels) ** 0.5
        return pack(weight, glu=glu, upsample=False, dtype=dtype)

    weights = [packed(128, 32, True), packed(32, 64, False), weights[-1]]
    biases = [torch.randn(128, generator=rng), torch.zeros(32), biases[-1]]
    result = glam_stage(*attention, weights, biases)
    with use("reference"):
        expected = glam_stage(*attention, weights, biases)
    assert_matches(result, expected.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_strided_inputs(implementation, assert_result, op, dtype):
    called = call(op, Shapes(), dtype)
    contiguous = [t.contiguous() if isinstance(t, Tensor) else t for t in called.arguments]
    first, *rest = contiguous
    strided = first.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    assert not strided.is_contiguous()
    assert_result(called, called.op(*contiguous))
    assert torch.equal(called.op(strided, *rest), called.op(*contiguous))


@pytest.mark.parametrize("shapes", [Shapes(), WHOLE_TILES])
@pytest.mark.parametrize("op", OPS)
def test_writes_to_out(implementation, op, shapes):
    called = call(op, shapes, torch.bfloat16)
    result = called.run()
    out = torch.full_like(result, 3)
    assert called.run(out=out) is out
    assert torch.equal(out, result)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", [Shapes(batch=5, width=19), WHOLE_TILES._replace(batch=3)])
@pytest.mark.parametrize("op", OPS)
def test_samples_do_not_change_each_others_bits(op, dtype, shapes):
    with use("cpu"):
        called = call(op, shapes, dtype)
        batched = called.run()
        for n in range(shapes.batch):
            assert torch.equal(called.for_sample(n).run(), batched[n : n + 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [256, 512])
def test_many_weights_and_small_maps(implementation, assert_result, channels, dtype):
    """The weights are larger than a cache, and there are more maps than fit into one."""
    shapes = Shapes(33, channels, height=4, width=4, out_channels=128, upsample=True)
    called = call("conv_glu", shapes, dtype)
    batched = called.run()
    assert_result(called, batched)
    if implementation == "cpu":
        for n in (0, 13, 28, 32):
            assert torch.equal(called.for_sample(n).run(), batched[n : n + 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", [Shapes(height=40, width=19), WHOLE_TILES])
@pytest.mark.parametrize("op", OPS)
def test_threads_do_not_change_bits(op, dtype, shapes):
    called = call(op, shapes, dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(called.run())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results[1:])


@compiled
def test_a_stage_as_one_op_and_as_single_ops_give_the_same_bits():
    for shapes in (
        WHOLE_TILES,
        WHOLE_TILES._replace(blocks=0, height=1),
        WHOLE_TILES._replace(height=40, batch=1),
    ):
        for head in (False, True):
            called = call("glam_stage", shapes._replace(head=head), torch.bfloat16)
            odd = call("glam_stage", shapes._replace(head=head), torch.bfloat16)
            assert torch.equal(called.run(), _run_ops_one_by_one(odd))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stage_with_too_many_channels_for_one_op(implementation, assert_result, dtype):
    """The up-block's weights are in Winograd's form then."""
    shapes = Shapes(channels=32, height=3, width=16, out_channels=512, blocks=0)
    called = call("glam_stage", shapes, dtype)
    assert_result(called, called.run())


@pytest.mark.parametrize("image_channels", [1, 4, 5])
def test_a_stage_with_several_numbers_of_image_channels(
    implementation, assert_result, image_channels
):
    """With AMX, up to four channels run as one op, and five as single ops."""
    shapes = Shapes(
        channels=32, height=5, width=32, out_channels=32, head=True, image_channels=image_channels
    )
    called = call("glam_stage", shapes, torch.bfloat16)
    assert_result(called, called.run())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(2, 5, 3, 4, 6), (1, 32, 64, 7, 32), (3, 40, 33, 5, 17)])
@pytest.mark.parametrize("op", [conv_add, conv_relu])
def test_transposed_convolutions(implementation, assert_matches, op, sizes, dtype):
    batch, channels, out_channels, height, width = sizes
    torch.manual_seed(0)
    weight = torch.randn(channels, out_channels, 4, 4) / (4 * channels) ** 0.5
    x, bias = torch.randn(batch, channels, height, width).to(dtype), torch.randn(out_channels)
    expected = functional.conv_transpose2d(
        x.double(), weight.double(), bias.double(), stride=2, padding=1
    )
    if op is conv_relu:
        expected = expected.clamp(min=0)
    assert_matches(op(x, pack_transposed(weight, dtype=dtype), bias), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("upsample", [False, True])
def test_conv_relu_without_a_residual(implementation, assert_result, dtype, upsample):
    called = call("conv_relu", WHOLE_TILES._replace(upsample=upsample), dtype)
    x, weight, bias, residual = called.arguments
    zero = torch.zeros_like(residual)
    assert torch.equal(conv_relu(x, weight, bias), conv_relu(x, weight, bias, zero))


def _run_ops_one_by_one(called: Call) -> Tensor:
    """Run the single ops of a stage."""
    from mirrorgan_fast.ops import conv_add, conv_glu, glam_attention_mix, image_head

    *attention, weights, biases, head_weight, head_bias = called.arguments
    x = glam_attention_mix(*attention)
    for i in range(0, len(weights) - 1, 2):
        hidden = conv_glu(x, weights[i], biases[i])
        x = conv_add(hidden, weights[i + 1], biases[i + 1], x)
    f = conv_glu(x, weights[-1], biases[-1])
    return f if head_weight is None else image_head(f, head_weight, head_bias)


@compiled
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512", "avx512_bf16"])
def test_narrower_instruction_sets(assert_result, run_narrower, capability):
    cases = [
        (op, shapes, dtype)
        for op in OPS
        for dtype in DTYPES
        for shapes in (
            WHOLE_TILES,
            Shapes(channels=33, width=17, upsample=True, out_channels=17),
            Shapes(channels=512, width=17, upsample=True, out_channels=17),
            Shapes(channels=48, width=17),
        )
    ]
    script = """
        from calls import Shapes, call  # which pack for this instruction set
        with ops.use("cpu"):
            results = [call(op, Shapes(*sizes), dtype).run() for op, sizes, dtype in given]
    """
    given = [(op, tuple(shapes), dtype) for op, shapes, dtype in cases]
    found = run_narrower(capability, given, script)
    for actual, case in zip(found, cases, strict=True):
        assert_result(call(*case), actual)


@pytest.mark.parametrize("packed_for", ["amx", "avx512_bf16"])
@pytest.mark.parametrize(
    ("op", "upsample"),
    [
        ("conv_add", False),
        ("conv_glu", False),
        ("conv_glu", True),
        ("conv_relu", False),
        ("conv_relu", True),
        ("image_head", False),
    ],
)
def test_weights_packed_for_another_processor(
    implementation, assert_result, monkeypatch, op, upsample, packed_for
):
    monkeypatch.setattr(packing, "instruction_set", lambda: packed_for)
    parts = call(op, WHOLE_TILES._replace(upsample=upsample), torch.bfloat16).arguments[1].shape[0]
    assert parts == {"amx": (1, 4), "avx512_bf16": (16, 9)}[packed_for][upsample]
    for shapes in (WHOLE_TILES, Shapes(), Shapes(channels=70, width=17, out_channels=33)):
        called = call(op, shapes._replace(upsample=upsample), torch.bfloat16)
        assert_result(called, called.run())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", [Shapes(height=12, width=13), WHOLE_TILES._replace(height=12)])
@pytest.mark.parametrize(
    ("op", "reach"),  # how many pixels away results are NaN
    [
        ("conv_glu", 1),
        ("conv_add", 1),
        ("conv_relu", 1),
        ("image_head", 1),
        ("glam_attention_mix", 0),
    ],
)
def test_nan_stays_near_its_pixel(implementation, op, reach, shapes, dtype):
    called = call(op, shapes, dtype)
    clean = called.run()
    called.arguments[0][1, 2, 6, 7] = torch.nan

    dirty = called.run()

    image = dirty.dtype == torch.uint8

    def pixels(rows: range, columns: range) -> Tensor:
        chosen = torch.zeros(dirty.shape, dtype=torch.bool)
        own = (slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        chosen[(1, *own) if image else (1, slice(None), *own)] = True
        return chosen

    near = pixels(range(6 - reach, 7 + reach), range(7 - reach, 8 + reach))
    assert ((dirty == 0) if image else dirty.isnan())[near].all()
    if reach and implementation == "cpu" and dtype == torch.float32:
        # In Winograd's form all results of the 4x4 tiles that read the pixel are NaN. The last tile
        # reads column 7 as its first input, only for its first result.
        near = pixels(range(4, 8), range(4, 9))
    assert torch.equal(dirty[~near], clean[~near])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", [torch.nan, torch.inf, -torch.inf, 1e30, -300.0])
def test_extreme_gates(implementation, gate, dtype):
    x, weight, bias = call("conv_glu", WHOLE_TILES, dtype).arguments
    clean = conv_glu(x, weight, bias)
    values = len(bias) // 2
    bias[values + 3] = gate

    gated = conv_glu(x, weight, bias)

    open_gate = bias.clone()
    open_gate[values + 3] = 300.0
    with use("reference"):
        value = conv_glu(x, weight, open_gate)[:, 3].double()
    if gate != gate:
        assert gated[:, 3].isnan().all()
    else:
        expected = value if gate > 0 else torch.zeros_like(value)
        assert (gated[:, 3] - expected).abs().max() <= 1e-2 * value.abs().max()
    others = [channel for channel in range(values) if channel != 3]
    assert torch.equal(gated[:, others], clean[:, others])


@pytest.mark.parametrize("op", ["conv_glu", "conv_add", "glam_attention_mix", "glam_stage"])
def test_has_forward_derivatives(implementation, op):
    called = call(op, WHOLE_TILES._replace(head=False), torch.float32)
    x, *others = called.arguments
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    _, tangent = torch.func.jvp(lambda x: called.op(x, *others), (x,), (direction,))
    step = 1e-2
    after, before = (called.op(x + s * direction, *others) for s in (step, -step))
    difference = (after - before) / (2 * step)
    error = (tangent - difference).abs().max()
    assert error < 0.02 * difference.abs().max()


def test_conv_relu_has_forward_derivatives(implementation):
    """Those of the sum where it is above zero, and zero elsewhere."""
    x, *others = call("conv_relu", WHOLE_TILES, torch.float32).arguments
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    tangents = [
        torch.func.jvp(lambda x, op=op: op(x, *others), (x,), (direction,))
        for op in (conv_relu, conv_add)
    ]
    (result, tangent), (whole, whole_tangent) = tangents
    torch.testing.assert_close(result, whole.clamp(min=0))
    torch.testing.assert_close(tangent, torch.where(whole > 0, whole_tangent, 0.0))


class Module(nn.Module):
    """A module that calls the op."""

    def __init__(self, op) -> None:
        super().__init__()
        self.op = op

    def forward(self, *arguments):
        """Call the op."""
        return self.op(*arguments)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", OPS)
def test_compiles_as_one_graph(implementation, assert_result, op, dtype, dynamic):
    called = call(op, WHOLE_TILES._replace(head=False), dtype)
    torch.compiler.reset()
    options = {"fullgraph": True, "backend": "aot_eager", "dynamic": dynamic}
    run = torch.compile(Module(called.op), **options)
    assert_result(called, run(*called.arguments))


@compiled
@pytest.mark.parametrize("op", ["conv_glu", "conv_add", "conv_relu", "glam_attention_mix"])
def test_inductor_takes_maps_of_one_pixel(op):
    """A linear layer has such maps at batch size 1. Other operations surround the op."""
    called = call(op, Shapes(batch=1, height=1, width=1), torch.bfloat16)

    def surrounded(x: Tensor, *others: Tensor | None) -> Tensor:
        return called.op(x * 2, *others) + 1

    torch.compiler.reset()
    with use("cpu"):
        result = torch.compile(surrounded, fullgraph=True)(*called.arguments)
        assert torch.equal(result, surrounded(*called.arguments))


@compiled
@pytest.mark.parametrize("op", OPS)
def test_compiles_with_inductor(assert_result, op):
    called = call(op, WHOLE_TILES._replace(head=False), torch.bfloat16)
    torch.compiler.reset()
    with use("cpu"):
        assert_result(called, torch.compile(Module(called.op), fullgraph=True)(*called.arguments))


@pytest.mark.parametrize("op", OPS)
def test_exports(implementation, assert_result, op):
    called = call(op, WHOLE_TILES._replace(head=False), torch.bfloat16)
    program = torch.export.export(Module(called.op), called.arguments)
    names = {str(node.target) for node in program.graph.nodes}
    has_op = any(name.startswith(f"mirrorgan.{op}") for name in names)
    wanted = implementation == "cpu" and (
        op != "glam_stage" or build_info().instruction_set == "amx"
    )
    assert has_op == wanted
    assert_result(called, program.module()(*called.arguments))


@compiled
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op):
    if op == "glam_stage" and build_info().instruction_set != "amx":
        pytest.skip("this processor has no AMX")
    called = call(op, WHOLE_TILES, torch.bfloat16)
    out = torch.empty_like(called.run())
    torch.library.opcheck(getattr(torch.ops.mirrorgan, op), (*called.arguments, out))


@pytest.mark.parametrize("op", [op for op in OPS if op != "image_head"])
def test_gradients_match_the_reference(implementation, assert_matches, op):
    called = call(op, Shapes(), torch.float32)
    x = called.arguments[0].requires_grad_()
    out = called.run()
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    gradient = torch.autograd.grad(out, x, cotangent)[0]

    step = 1e-2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), use("reference"):
        forward = called.op(x + step, *called.arguments[1:])
        backward = called.op(x - step, *called.arguments[1:])
    change = ((forward - backward) * cotangent).sum() / 2
    assert torch.isclose((gradient * step).sum(), change, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("needs_grad", [False, True])
def test_autocast_sets_the_data_type_of_attention(implementation, assert_matches, needs_grad):
    """Attention is also used in training."""
    called = call("glam_attention_mix", Shapes(), torch.float32)
    called.arguments[0].requires_grad_(needs_grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = called.run()
    assert result.dtype == torch.bfloat16
    assert_matches(result.detach(), called.expected)


def test_autocast_does_not_change_inference_ops(implementation):
    for op in sorted({*OPS} - {"glam_attention_mix"}):
        called = call(op, Shapes(), torch.float32)
        plain = called.run()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(called.run(), plain)
