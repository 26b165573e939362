"""batch_norm_glu: every implementation against its formula in float64, and its contract."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.layers import BatchNormGLU
from mirrorgan_fast.ops import (
    batch_norm_glu,
    batch_norm_leaky_relu,
    choice,
    why_not_compiled,
)
from mirrorgan_fast.ops.batch_norm_glu import backward_reference

from .conftest import compiled

op = torch.ops.mirrorgan.batch_norm_glu
EPS = 1e-5


class Inputs(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor


def make_inputs(
    shape: tuple[int, int, int, int] = (3, 6, 5, 7),
    *,
    dtype: torch.dtype = torch.float32,
    offset: float = 5.0,
    seed: int = 0,
) -> Inputs:
    """Return random inputs whose channels have means of about ``offset`` standard deviations."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=rng, dtype=torch.float64)

    x = normal(*shape) * (normal(shape[1], 1, 1).abs() + 0.1)
    x = (x + offset * normal(shape[1], 1, 1)).to(dtype)
    scales = torch.float64 if dtype == torch.float64 else torch.float32
    return Inputs(
        x.contiguous(memory_format=torch.channels_last),
        (normal(shape[1]) + 1).to(scales),
        normal(shape[1]).to(scales),
    )


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def float64_result(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = (tensor.double() for tensor in inputs)
    mean = x.mean(dim=(0, 2, 3))
    centered = x - mean[:, None, None]
    variance = (centered**2).mean(dim=(0, 2, 3))
    y = centered / (variance + EPS).sqrt()[:, None, None] * weight[:, None, None]
    y = y + bias[:, None, None]
    half = x.shape[1] // 2
    return y[:, :half] / (1 + torch.exp(-y[:, half:])), mean, variance


def gradients(run, inputs: Inputs, cotangent: Tensor) -> tuple[Tensor, ...]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    return torch.autograd.grad(run(Inputs(*leaves))[0], leaves, cotangent)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [
        (3, 6, 5, 7),
        (2, 64, 17, 19),  # full vectors, three chunks of rows
        (1, 70, 16, 16),  # a partial vector, exactly one chunk
        (5, 2, 1, 1),
        (1, 2, 1, 2),
    ],
)
def test_forward_and_backward_match_the_formula(
    implementation, assert_matches, shape, dtype, memory_format
):
    inputs = make_inputs(shape, dtype=dtype)
    inputs = inputs._replace(x=inputs.x.contiguous(memory_format=memory_format))
    cotangent = randn(shape[0], shape[1] // 2, *shape[2:]).to(dtype)

    actual = batch_norm_glu(*inputs)
    expected = float64_result(inputs)
    assert actual[0].dtype == dtype
    for tensor, exact in zip(actual, expected, strict=True):
        assert_matches(tensor, exact)

    if shape == (1, 2, 1, 2):
        return  # two values always become 1 and -1, so the gradient is only rounding errors
    # The gradient of the formula in float64, from the same inputs
    exact = gradients(float64_result, Inputs(*(t.double() for t in inputs)), cotangent.double())
    for tensor, expected_gradient in zip(
        gradients(lambda g: batch_norm_glu(*g), inputs, cotangent), exact, strict=True
    ):
        assert_matches(tensor, expected_gradient)


def test_strided_weights(implementation, assert_matches):
    x, weight, bias = make_inputs()
    inputs = Inputs(x, weight[:1].expand(6), torch.stack([bias, bias], dim=1)[:, 0])
    for tensor, exact in zip(batch_norm_glu(*inputs), float64_result(inputs), strict=True):
        assert_matches(tensor, exact)


def test_means_far_from_zero(implementation, assert_matches):
    inputs = make_inputs((4, 8, 16, 16), offset=300.0)
    actual = batch_norm_glu(*inputs)
    _, mean, variance = float64_result(inputs)
    assert_matches(actual[1], mean)
    torch.testing.assert_close(actual[2].double(), variance, rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [30, 100])
def test_an_outlier_loses_no_precision(implementation, assert_matches, size):
    """Not even at the first pixel, which a kernel might subtract from all pixels."""
    inputs = make_inputs((4, 8, 16, 16), offset=0.0)
    inputs.x[0, :, 0, 0] += size * inputs.x.std(dim=(0, 2, 3))
    for tensor, exact in zip(batch_norm_glu(*inputs), float64_result(inputs), strict=True):
        assert_matches(tensor, exact)


def test_gradcheck_of_the_reference():
    inputs = [t.requires_grad_() for t in make_inputs((2, 4, 2, 3), dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *g: batch_norm_glu(*g)[0], inputs)
    assert torch.autograd.gradgradcheck(lambda *g: batch_norm_glu(*g)[0], inputs)


def test_the_backward_reference_is_the_gradient():
    inputs = make_inputs((3, 4, 5, 2), dtype=torch.float64)
    cotangent = randn(3, 2, 5, 2).double()
    _, mean, variance = float64_result(inputs)
    actual = backward_reference(cotangent, *inputs, mean, variance, EPS)
    for tensor, expected in zip(actual, gradients(float64_result, inputs, cotangent), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("op", [batch_norm_glu, batch_norm_leaky_relu])
@pytest.mark.parametrize("dim", [2, 3])
def test_gradients_of_maps_of_one_row_or_column(implementation, op, dim):
    """PyTorch's own batch norm may mistake channels for pixels in such maps."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 5, 6, generator=rng, dtype=torch.float64)
    x = rows.transpose(1, 2).unsqueeze(dim).requires_grad_()
    weight, bias = torch.randn(2, 6, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: op(x, weight, bias)[0], x)


@compiled
def test_a_second_order_raises():
    inputs = [t.requires_grad_() for t in make_inputs()]
    (first,) = torch.autograd.grad(op(*inputs, EPS)[0].square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()


@pytest.mark.parametrize("gate", [-80.0, 80.0])
def test_saturated_gates(implementation, assert_matches, gate):
    inputs = make_inputs()
    inputs.weight[3:] = 0
    inputs.bias[3:] = gate
    cotangent = randn(3, 3, 5, 7)
    assert_matches(batch_norm_glu(*inputs)[0], float64_result(inputs)[0])
    exact = gradients(float64_result, Inputs(*(t.double() for t in inputs)), cotangent.double())
    for tensor, expected in zip(
        gradients(lambda g: batch_norm_glu(*g), inputs, cotangent), exact, strict=True
    ):
        assert_matches(tensor, expected)


def test_nan_stays_in_its_channel(implementation):
    inputs = make_inputs((2, 6, 4, 4))
    inputs.x[1, 1, 2, 2] = torch.nan
    out, mean, variance = batch_norm_glu(*inputs)
    assert out[:, 1].isnan().all()
    assert out[:, [0, 2]].isfinite().all()
    for statistic in (mean, variance):
        assert statistic.isnan().tolist() == [False, True, False, False, False, False]


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_bits(dtype):
    inputs = make_inputs((4, 36, 33, 31), dtype=dtype)
    cotangent = randn(4, 18, 33, 31).to(dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                (*op(*inputs, EPS), *gradients(lambda g: op(*g, EPS), inputs, cotangent))
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@compiled
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_narrower_instruction_sets(assert_matches, run_narrower, capability):
    cases = [make_inputs((2, 70, 9, 8), dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    cotangents = [randn(2, 35, 9, 8).to(inputs.x.dtype) for inputs in cases]
    script = """
        results = []
        for inputs, cotangent in given:
            leaves = [tensor.requires_grad_() for tensor in inputs]
            out = torch.ops.mirrorgan.batch_norm_glu(*leaves, 1e-5)[0]
            results.append([out.detach(), *torch.autograd.grad(out, leaves, cotangent)])
    """
    pairs = [
        (tuple(inputs), cotangent) for inputs, cotangent in zip(cases, cotangents, strict=True)
    ]
    found = run_narrower(capability, pairs, script)
    for actual, inputs, cotangent in zip(found, cases, cotangents, strict=True):
        wide = Inputs(*(tensor.double() for tensor in inputs))
        exact = (float64_result(inputs)[0], *gradients(float64_result, wide, cotangent.double()))
        for tensor, expected in zip(actual, exact, strict=True):
            assert_matches(tensor, expected)


@compiled
@pytest.mark.parametrize("shape", [(2, 6, 3, 4), (2, 2, 3, 1)])
def test_opcheck(shape):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(shape)]
    torch.library.opcheck(op, (*inputs, EPS))


class Block(nn.Module):
    """A module that calls the op."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the gated map."""
        return batch_norm_glu(*inputs)[0]


def test_compiles_as_one_graph(implementation, assert_matches):
    inputs = make_inputs()
    cotangent = randn(3, 3, 5, 7)
    torch.compiler.reset()
    run = torch.compile(Block(), fullgraph=True, backend="aot_eager")
    assert_matches(run(*inputs), float64_result(inputs)[0])
    exact = gradients(float64_result, Inputs(*(t.double() for t in inputs)), cotangent.double())
    actual = gradients(lambda g: (run(*g),), inputs, cotangent)
    for tensor, expected in zip(actual, exact, strict=True):
        assert_matches(tensor, expected)


def test_autocast_with_bfloat16_maps_and_float32_weights(implementation, assert_matches):
    inputs = make_inputs(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = batch_norm_glu(*inputs)[0]
    assert out.dtype == torch.bfloat16
    assert_matches(out, float64_result(inputs)[0])


def test_torch_func_grad(implementation, assert_matches):
    inputs = make_inputs()
    cotangent = randn(3, 3, 5, 7)

    def loss(x: Tensor) -> Tensor:
        return (batch_norm_glu(x, inputs.weight, inputs.bias)[0] * cotangent).sum()

    expected = gradients(lambda g: batch_norm_glu(*g), inputs, cotangent)[0]
    assert_matches(torch.func.grad(loss)(inputs.x), expected.double())


def test_the_module_averages_all_batches_without_a_momentum(assert_matches):
    ours, norm = BatchNormGLU(6, momentum=None), nn.BatchNorm2d(6, momentum=None).double()
    for seed in range(3):
        x = make_inputs((4, 6, 5, 3), seed=seed).x
        ours(x)
        norm(x.double())
    assert_matches(ours.running_mean, norm.running_mean)
    assert_matches(ours.running_var, norm.running_var)


def test_the_module_updates_running_averages_like_batch_norm(implementation, assert_matches):
    torch.manual_seed(0)
    ours, norm = BatchNormGLU(6), nn.BatchNorm2d(6).double()
    assert ours.state_dict().keys() == norm.state_dict().keys()
    for seed in range(3):
        x = make_inputs((4, 6, 5, 3), seed=seed).x
        values, gates = norm(x.double()).chunk(2, dim=1)
        assert_matches(ours(x).detach(), (values * gates.sigmoid()).detach())
    for name, expected in norm.state_dict().items():
        actual = ours.state_dict()[name]
        if name == "num_batches_tracked":
            assert torch.equal(actual, expected)
        else:
            assert_matches(actual, expected)
    values, gates = norm.eval()(x.double()).chunk(2, dim=1)
    assert_matches(ours.eval()(x).detach(), (values * gates.sigmoid()).detach())


ONES = torch.ones
BAD_INPUT = {
    "dimensions": (ONES(3, 6, 5), "x", r"\(N, 2C, H, W\)"),
    "odd channels": (ONES(3, 5, 5, 7), "x", r"\(N, 2C, H, W\)"),
    "integers": (ONES(3, 6, 5, 7, dtype=torch.int64), "x", "floating point"),
    "one value": (ONES(1, 6, 1, 1), "x", "more than one value per channel"),
    "empty": (ONES(0, 6, 5, 7), "x", "more than one value per channel"),
    "weight": (ONES(3), "weight", r"\(6,\)"),
    "data type": (ONES(6, dtype=torch.float64), "bias", "torch.float32"),
    "device": (ONES(6, device="meta"), "weight", "device cpu"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case):
    tensor, argument, wanted = BAD_INPUT[case]
    inputs = make_inputs()._replace(**{argument: tensor})
    with pytest.raises(InputError, match=rf"^batch_norm_glu: {argument}: found .*{wanted}"):
        batch_norm_glu(*inputs)


@compiled
@pytest.mark.parametrize("case", ["dimensions", "odd channels", "integers", "empty", "weight"])
def test_compiled_op_checks_for_itself(case):
    tensor, argument, _ = BAD_INPUT[case]
    with pytest.raises(ValueError, match=rf"^batch_norm_glu: {argument}: found .*, wanted "):
        op(*make_inputs()._replace(**{argument: tensor}), EPS)


@compiled
def test_compiled_op_refuses_a_map_without_channels():
    """Going over so many pixels would never end."""
    with pytest.raises(ValueError, match="an even number of channels"):
        op(torch.empty(2**20, 0, 2**20, 2**10), torch.empty(0), torch.empty(0), EPS)


def test_choice():
    fastest = choice.choose("batch_norm_glu", "cpu", torch.bfloat16, needs_grad=True)
    assert fastest.implementation == ("cpu" if why_not_compiled() is None else "reference")
    double = choice.choose("batch_norm_glu", "cpu", torch.float64, needs_grad=True)
    assert double.implementation == "reference"
