"""glam_attention: every implementation against loops in float64, and its contract."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops import (
    choice,
    glam_attention,
    use,
    why_not_compiled,
    word_attention_map,
)
from mirrorgan_fast.ops.glam_attention import backward_reference, reference

from .conftest import compiled

op = torch.ops.mirrorgan.glam_attention
backward_op = torch.ops.mirrorgan.glam_attention_backward


class Inputs(NamedTuple):
    features: Tensor
    words: Tensor
    mask: Tensor
    sentence: Tensor | None
    sentence_weight: Tensor | None


def make_inputs(
    batch: int = 3,
    channels: int = 6,
    words: int = 5,
    size: tuple[int, int] = (5, 7),
    *,
    form: str = "authors",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    """Return random inputs. Sample 0 has only real words, the others have about a third padding."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)

    mask = torch.rand((batch, words), generator=rng) > 0.3
    mask[:1] = True
    return Inputs(
        normal(batch, channels, *size),
        normal(batch, words, channels),
        mask,
        None if form == "words" else normal(batch, channels),
        normal(channels, channels) if form == "authors" else None,
    )


def float64_result(inputs: Inputs) -> Tensor:
    """Compute the paper's formulas for one sample and one pixel at a time, in float64."""
    features, words, mask, sentence, weight = (
        t if t is None or t.dtype == torch.bool else t.double() for t in inputs
    )
    batch, channels, height, width = features.shape
    parts = 2 if sentence is None else 3
    out = torch.zeros(batch, parts * channels, height, width, dtype=torch.float64)
    for n in range(batch):
        keys = [words[n, t] for t in range(words.shape[1]) if mask[n, t]]
        for y in range(height):
            for x in range(width):
                f = features[n, :, y, x]
                columns = [f]
                context = torch.zeros(channels, dtype=torch.float64)
                if keys:
                    scores = torch.stack([torch.dot(f, k) for k in keys])
                    for share, k in zip(torch.softmax(scores, 0), keys, strict=True):
                        context = context + share * k
                columns.append(context)
                if sentence is not None:
                    gate = f * sentence[n]
                    if weight is not None:
                        gate = weight @ gate
                    columns.append(sentence[n] * torch.softmax(gate, 0))
                out[n, :, y, x] = torch.cat(columns)
    return out


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "channels", "words", "size", "form"),
    [
        (3, 6, 5, (5, 7), "authors"),
        (2, 32, 18, (11, 13), "authors"),  # two blocks of pixels and a partial one
        (1, 32, 18, (8, 8), "paper"),  # exactly one block
        (2, 7, 3, (33, 35), "words"),  # several tasks per sample
        (2, 1, 1, (1, 1), "paper"),
        (1, 3, 1, (1, 9), "authors"),
    ],
)
def test_matches_loops(
    implementation, assert_matches, batch, channels, words, size, form, dtype, memory_format
):
    inputs = make_inputs(batch, channels, words, size, form=form, dtype=dtype)
    inputs = inputs._replace(features=inputs.features.contiguous(memory_format=memory_format))

    actual = glam_attention(*inputs)

    assert actual.dtype == dtype
    assert actual.is_contiguous(memory_format=memory_format)
    assert_matches(actual, float64_result(inputs))
    assert torch.equal(actual[:, :channels], inputs.features), "f must be copied unchanged"


def test_bfloat16_is_float32_rounded_once(implementation):
    inputs = make_inputs(2, 32, 18, (11, 13), dtype=torch.bfloat16)
    wide = [t if t.dtype == torch.bool else t.float() for t in inputs]
    assert torch.equal(glam_attention(*inputs), glam_attention(*wide).bfloat16())


def test_strided_inputs(implementation, assert_matches):
    inputs = make_inputs()
    strided = Inputs(
        inputs.features.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
        inputs.words.mT.contiguous().mT,
        inputs.mask.T.contiguous().T,
        inputs.sentence.repeat_interleave(2, dim=1)[:, ::2],
        inputs.sentence_weight.T.contiguous().T,
    )
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert_matches(glam_attention(*strided), float64_result(inputs))


def test_real_words_only(implementation, assert_matches):
    inputs = make_inputs(batch=3, words=4)
    mask = torch.tensor([[False] * 4, [False, False, True, False], [True] * 4])
    words = inputs.words.masked_fill(~mask[:, :, None], torch.nan)  # NaN at padding

    actual = glam_attention(*inputs._replace(words=words, mask=mask))

    assert_matches(actual, float64_result(inputs._replace(mask=mask)))
    context = actual[:, 6:12]
    assert (context[0] == 0).all(), "without a real word Att^w is zero"
    only_word = inputs.words[1, 2, :, None, None]
    torch.testing.assert_close(context[1], only_word.expand_as(context[1]))


@pytest.mark.parametrize("shape", [(0, 5, (4, 4)), (2, 5, (0, 4)), (2, 0, (4, 4))])
def test_empty(implementation, assert_matches, shape):
    batch, words, size = shape
    inputs = make_inputs(batch=batch, words=words, size=size)
    assert_matches(glam_attention(*inputs), float64_result(inputs))


def test_nan_stays_in_its_pixel(implementation):
    inputs = make_inputs()
    clean = glam_attention(*inputs)
    inputs.features[1, 2, 3, 4] = torch.nan

    dirty = glam_attention(*inputs)

    changed = dirty.isnan()
    assert changed[1, 6:, 3, 4].all()
    assert torch.equal(dirty[~changed], clean[~changed])
    assert changed.sum() == 1 + 2 * 6


def test_extreme_scores(implementation, assert_matches):
    inputs = make_inputs(dtype=torch.float32)
    inputs = inputs._replace(features=inputs.features * 1e4)
    assert_matches(glam_attention(*inputs), float64_result(inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_do_not_change_each_others_bits(implementation, dtype):
    inputs = make_inputs(batch=5, channels=32, words=18, size=(19, 17), dtype=dtype)
    batched = glam_attention(*inputs)
    for n in range(5):
        single = [t[n : n + 1] for t in inputs[:4]]
        assert torch.equal(glam_attention(*single, inputs.sentence_weight), batched[n : n + 1])


@compiled
def test_threads_do_not_change_bits():
    inputs = make_inputs(batch=3, channels=32, words=18, size=(64, 65))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(op(*inputs))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@compiled
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_narrower_instruction_sets(assert_matches, run_narrower, capability):
    cases = [
        make_inputs(2, 32, 18, (11, 13), dtype=torch.float32),
        make_inputs(2, 7, 3, (9, 8), dtype=torch.bfloat16, seed=1),
    ]
    script = """
        op = torch.ops.mirrorgan
        attended = [op.glam_attention(*inputs) for inputs in given]
        results = [
            (out, op.glam_attention_backward(out, *inputs)) for out, inputs in zip(attended, given)
        ]
    """
    found = run_narrower(capability, [tuple(inputs) for inputs in cases], script)
    for (actual, grads), inputs in zip(found, cases, strict=True):
        assert_matches(actual, float64_result(inputs))
        for grad, expected in zip(grads, gradients(inputs, actual), strict=True):
            assert_matches(grad, expected)


def test_gradients_of_the_reference():
    inputs = make_inputs(batch=2, channels=3, words=3, size=(2, 3), dtype=torch.float64)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    features, words, _, sentence, weight = (
        t.requires_grad_() if t.is_floating_point() else t for t in inputs
    )

    def run(features, words, sentence, weight):
        return glam_attention(features, words, mask, sentence, weight)

    tensors = (features, words, sentence, weight)
    with torch.autograd.set_detect_anomaly(True):  # intermediate gradients have no NaN either
        assert torch.autograd.gradcheck(run, tensors)
        assert torch.autograd.gradgradcheck(run, tensors)


@compiled
@pytest.mark.parametrize("form", ["authors", "paper", "words"])
def test_gradients_of_the_compiled_op(assert_matches, form):
    inputs = make_inputs(form=form)
    wide = [t if t is None or t.dtype == torch.bool else t.double() for t in inputs]
    differentiable = [i for i, t in enumerate(inputs) if t is not None and t.is_floating_point()]
    for tensors in (inputs, wide):
        for i in differentiable:
            tensors[i].requires_grad_()

    results = []
    for function, tensors in ((op, inputs), (reference, wide)):
        out = function(*tensors)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        leaves = [tensors[i] for i in differentiable]
        first = torch.autograd.grad(out, leaves, cotangent.to(out.dtype), create_graph=True)
        loss = sum(g.square().sum() for g in first)
        second = torch.autograd.grad(loss, leaves, create_graph=True)
        third = torch.autograd.grad(sum(g.square().sum() for g in second), leaves)
        results.append([g.detach() for g in (*first, *second, *third)])
    for actual, expected in zip(*results, strict=True):
        assert_matches(actual, expected)


def gradients(inputs: Inputs, cotangent: Tensor) -> list[Tensor]:
    """Differentiate the definition of the forward, in float64; empty for what is None."""
    wide = [t if t is None or t.dtype == torch.bool else t.double() for t in inputs]
    differentiable = [i for i, t in enumerate(inputs) if t is not None and t.is_floating_point()]
    leaves = [wide[i].requires_grad_() for i in differentiable]
    found = torch.autograd.grad(
        reference(*wide), leaves, cotangent.double(), materialize_grads=True
    )
    missing = torch.empty(0, dtype=torch.float64)
    return [*found, *[missing] * (4 - len(found))]


def cotangent_of(inputs: Inputs, seed: int = 1) -> Tensor:
    """Return a random gradient of the result."""
    shape = reference(*inputs).shape
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng).to(inputs.features.dtype)


@compiled
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "channels", "words", "size", "form"),
    [
        (3, 6, 5, (5, 7), "authors"),
        (2, 32, 18, (11, 13), "authors"),
        (1, 32, 18, (8, 8), "paper"),
        (2, 7, 3, (33, 35), "words"),  # several tasks per sample
        (2, 19, 21, (40, 41), "paper"),
        (2, 1, 1, (1, 1), "authors"),
        (0, 3, 2, (4, 4), "authors"),
        (2, 3, 2, (0, 4), "authors"),
        (2, 3, 0, (4, 4), "paper"),
    ],
)
def test_backward_matches_float64(
    assert_matches, batch, channels, words, size, form, dtype, memory_format
):
    inputs = make_inputs(batch, channels, words, size, form=form, dtype=dtype)
    inputs = inputs._replace(features=inputs.features.contiguous(memory_format=memory_format))
    cotangent = cotangent_of(inputs)

    actual = backward_op(cotangent, *inputs)

    assert actual[0].numel() == 0 or actual[0].is_contiguous(memory_format=memory_format)
    for grad, expected in zip(actual, gradients(inputs, cotangent), strict=True):
        assert grad.dtype == dtype
        assert_matches(grad, expected)


@pytest.mark.parametrize("form", ["authors", "paper", "words"])
def test_backward_reference_is_the_derivative(form):
    inputs = make_inputs(form=form, dtype=torch.float64)
    cotangent = cotangent_of(inputs)
    actual = backward_reference(cotangent, *inputs)
    for grad, expected in zip(actual, gradients(inputs, cotangent), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)


@compiled
def test_backward_of_strided_inputs(assert_matches):
    inputs = make_inputs()
    strided = Inputs(
        inputs.features.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
        inputs.words.mT.contiguous().mT,
        inputs.mask.T.contiguous().T,
        inputs.sentence.repeat_interleave(2, dim=1)[:, ::2],
        inputs.sentence_weight.T.contiguous().T,
    )
    cotangent = torch.tensor(0.5).expand(cotangent_of(inputs).shape)
    expected = gradients(inputs, cotangent)
    for actual, wanted in zip(backward_op(cotangent, *strided), expected, strict=True):
        assert_matches(actual, wanted)


@compiled
def test_backward_for_real_words_only(assert_matches):
    inputs = make_inputs(batch=3, words=4)
    mask = torch.tensor([[False] * 4, [False, False, True, False], [True] * 4])
    words = inputs.words.masked_fill(~mask[:, :, None], torch.nan)  # NaN at padding
    cotangent = cotangent_of(inputs)
    actual = backward_op(cotangent, *inputs._replace(words=words, mask=mask))
    expected = gradients(inputs._replace(mask=mask), cotangent)
    for grad, wanted in zip(actual, expected, strict=True):
        assert_matches(grad, wanted)
    assert (actual[1][~mask] == 0).all()


@compiled
def test_threads_do_not_change_bits_of_the_backward():
    inputs = make_inputs(batch=3, channels=32, words=18, size=(64, 65))
    cotangent = cotangent_of(inputs)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(backward_op(cotangent, *inputs))
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        for first, other in zip(results[0], others, strict=True):
            assert torch.equal(first, other)


@compiled
@pytest.mark.parametrize("form", ["authors", "paper", "words"])
def test_opcheck_of_the_backward(form):
    inputs = make_inputs(batch=2, channels=3, words=3, size=(2, 3), form=form)
    inputs = inputs._replace(features=inputs.features.contiguous(memory_format=torch.channels_last))
    cotangent = cotangent_of(inputs).requires_grad_()
    for tensor in inputs:
        if tensor is not None and tensor.is_floating_point():
            tensor.requires_grad_()
    torch.library.opcheck(backward_op, (cotangent, *inputs))


@compiled
def test_backward_checks_for_itself():
    inputs = make_inputs()
    with pytest.raises(
        ValueError, match=r"^glam_attention: grad_out: found \(3, 6, 5, 7\), wanted"
    ):
        backward_op(torch.ones(3, 6, 5, 7), *inputs)


@compiled
@pytest.mark.parametrize("form", ["authors", "paper", "words"])
def test_opcheck(form):
    inputs = make_inputs(batch=2, channels=3, words=3, size=(2, 3), form=form)
    for tensor in inputs:
        if tensor is not None and tensor.is_floating_point():
            tensor.requires_grad_()
    torch.library.opcheck(op, inputs)


@compiled
def test_fake_kernel_has_the_same_strides():
    contiguous = make_inputs(batch=5, channels=3, words=3, size=(2, 3))
    channels_last = contiguous.features.contiguous(memory_format=torch.channels_last)
    one_channel = torch.empty(2, 1, 2, 3).as_strided((2, 1, 2, 3), (6, 1, 3, 1))
    for features in (
        channels_last,
        channels_last[::3][:1],  # channels_last, with another stride of the batch
        channels_last[:, :, :, ::2],
        one_channel.normal_(),  # both contiguous and channels_last
    ):
        inputs = make_inputs(*features.shape[:2], words=3)._replace(features=features)
        torch.library.opcheck(op, inputs, test_utils="test_faketensor")


class Attention(nn.Module):
    """A module that calls the op."""

    def forward(self, *inputs: Tensor | None) -> Tensor:
        """Return the attention."""
        return glam_attention(*inputs)


@pytest.mark.parametrize("training", [False, True])
def test_compiles_as_one_graph(implementation, assert_matches, training):
    inputs = make_inputs()
    inputs.features.requires_grad_(training)
    torch.compiler.reset()
    run = torch.compile(Attention(), fullgraph=True, backend="aot_eager")
    actual = run(*inputs)
    assert_matches(actual.detach(), float64_result(inputs))
    if training:
        actual.sum().backward()
        from_eager = torch.autograd.grad(reference(*inputs).sum(), inputs.features)[0]
        assert_matches(inputs.features.grad, from_eager.double())


def test_compiles_with_inductor(assert_matches):
    inputs = make_inputs()
    torch.compiler.reset()
    actual = torch.compile(Attention(), fullgraph=True)(*inputs)
    assert_matches(actual, float64_result(inputs))


def test_exports_with_any_batch(implementation, assert_matches):
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = ({0: batch}, {0: batch}, {0: batch}, {0: batch}, None)
    program = torch.export.export(
        Attention(), tuple(make_inputs(batch=3)), dynamic_shapes={"inputs": shapes}
    )
    names = {str(node.target) for node in program.graph.nodes}
    assert ("mirrorgan.glam_attention.default" in names) == (implementation == "cpu")
    inputs = make_inputs(batch=4, seed=1)
    assert_matches(program.module()(*inputs), float64_result(inputs))


def test_autocast(implementation, assert_matches):
    inputs = make_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = glam_attention(*inputs)
        mixed = glam_attention(inputs.features.bfloat16(), *inputs[1:])
        attention = word_attention_map(*inputs[:3])
    assert actual.dtype == mixed.dtype == torch.bfloat16
    assert attention.dtype == torch.float32
    rounded = [t if t is None or t.dtype == torch.bool else t.bfloat16() for t in inputs]
    assert_matches(actual, float64_result(Inputs(*rounded)))
    assert torch.equal(actual, mixed)


def test_word_attention_map(assert_matches):
    inputs = make_inputs(batch=3, words=4)
    inputs.mask[1] = False

    attention = word_attention_map(*inputs[:3])

    assert attention.shape == (3, 4, 5, 7)
    assert (attention[~inputs.mask] == 0).all()
    assert_matches(attention.sum(1)[inputs.mask.any(1)], torch.ones(2, 5, 7, dtype=torch.float64))
    context = torch.einsum("nthw,ntc->nchw", attention, inputs.words)
    assert_matches(context, float64_result(inputs)[:, 6:12])


ONES = torch.ones
BAD_INPUT = {
    "features": (ONES(3, 6, 5), "features", r"\(N, C, H, W\)"),
    "integer features": (ONES(3, 6, 5, 7, dtype=torch.int64), "features", "floating point"),
    "channels of words": (ONES(3, 5, 4), "words", r"\(3, T, 6\)"),
    "data type of words": (
        ONES(3, 5, 6, dtype=torch.float64),
        "words",
        "torch.float32, as features",
    ),
    "length of mask": (ONES(3, 4, dtype=torch.bool), "mask", r"bool .* \(3, 5\)"),
    "data type of mask": (ONES(3, 5), "mask", "bool"),
    "sentence": (ONES(2, 6), "sentence", r"\(3, 6\)"),
    "device": (ONES(3, 6, device="meta"), "sentence", "device cpu"),
    "sentence_weight": (ONES(6, 6, 1, 1), "sentence_weight", r"\(6, 6\)"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case):
    tensor, argument, wanted = BAD_INPUT[case]
    inputs = make_inputs()._replace(**{argument: tensor})
    with pytest.raises(
        InputError, match=rf"^glam_attention: {argument}: found .* wanted .*{wanted}"
    ):
        glam_attention(*inputs)


def test_weight_without_sentence():
    with pytest.raises(InputError, match="wanted None without a sentence"):
        glam_attention(*make_inputs()._replace(sentence=None))


@compiled
@pytest.mark.parametrize("case", [c for c in BAD_INPUT if c not in ("device", "data type of mask")])
def test_compiled_op_checks_for_itself(case):
    tensor, argument, _ = BAD_INPUT[case]
    with pytest.raises(ValueError, match=rf"^glam_attention: {argument}: found .*, wanted "):
        op(*make_inputs()._replace(**{argument: tensor}))


def test_choice():
    where = {"device": "cpu", "dtype": torch.float32}
    fastest = choice.choose("glam_attention", **where, needs_grad=False)
    assert fastest.implementation == ("cpu" if why_not_compiled() is None else "reference")
    training = choice.choose("glam_attention", **where, needs_grad=True)
    assert training == fastest, "it has a backward of its own"
    with use("reference"):
        assert (
            choice.choose("glam_attention", **where, needs_grad=False).implementation == "reference"
        )
    with use("cpu"):
        double = choice.choose("glam_attention", "cpu", torch.float64, needs_grad=False)
        assert double == ("reference", "cpu does not take this data type")
    assert choice.choose("glam_attention", **where, needs_grad=False) == fastest
    assert choice.report()["glam_attention", "cpu", "float32"] == fastest
