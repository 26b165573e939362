"""unfolded_conv2d: a convolution and its gradients as matrix products."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops import choice, conv2d, use
from mirrorgan_fast.ops.unfolded_conv2d import suits, unfolded_conv2d

from .convolutions import Case, make_inputs

OP = torch.ops.mirrorgan.unfolded_conv2d


PRODUCTS = [
    Case(1, 70, (2, 3), 5),
    Case(2, 33, (5, 4), 7, (4, 4), 2),  # rows that no kernel reaches
    Case(1, 64, (4, 4), 3, (4, 4), 1, 0),  # one pixel
    Case(1, 40, (3, 5), 2, (3, 2), 3, 2),  # wide stride and padding
    Case(2, 300, (1, 1), 3, (1, 1), 1, 0),
]
PLAIN = [Case(2, 3, (5, 7), 4), Case(3, 5, (9, 6), 2, (4, 4), 2)]  # too many pixels for a product
ALL = [*PRODUCTS, *PLAIN]


def run(function, case: Case, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return function(x, weight, bias, case.stride, case.padding)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ALL)
def test_gradients_of_three_orders(assert_matches, case, dtype, memory_format):
    exact = [t.requires_grad_() for t in make_inputs(case)]
    narrow = [
        t.detach().to(dtype).contiguous(memory_format=memory_format)
        if t.dim() == 4
        else t.detach().to(dtype)
        for t in exact
    ]
    for tensor in narrow:
        tensor.requires_grad_()
    if dtype == torch.bfloat16:  # the same numbers for both
        exact = [t.detach().double().requires_grad_() for t in narrow]
    results = []
    for function, inputs in ((unfolded_conv2d, narrow), (functional.conv2d, exact)):
        out = run(function, case, *inputs)
        rng = torch.Generator().manual_seed(1)
        cotangent = torch.randn(out.shape, generator=rng).to(dtype).to(out.dtype)
        first = torch.autograd.grad(out, inputs, cotangent, create_graph=True)
        results.append([out, *first])
        if dtype == torch.float32:
            loss = sum(g.square().sum() for g in first)
            second = torch.autograd.grad(loss, inputs[:2], create_graph=True)
            third = torch.autograd.grad(sum(g.square().sum() for g in second), inputs[:2])
            results[-1] += [*second, *third]
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == dtype
        assert_matches(actual.detach(), expected.detach())


@pytest.mark.parametrize("case", ALL)
def test_gradcheck(case):
    x, weight, _ = (t.requires_grad_() for t in make_inputs(case._replace(channels=5)))
    how = (case.stride, case.padding)
    assert torch.autograd.gradcheck(lambda *both: OP(*both, *how), (x, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *both: OP(*both, *how), (x, weight), fast_mode=True)


def test_parts_of_tensors(assert_matches):
    case = PRODUCTS[1]
    x, weight, bias = (t.float() for t in make_inputs(case))
    expected = run(functional.conv2d, case, x.double(), weight.double(), bias.double())
    strided = torch.stack([x, x], dim=-1)[..., 0].mT.contiguous().mT
    part = torch.cat([weight, weight], dim=1)[:, : case.channels]
    assert_matches(run(unfolded_conv2d, case, strided, part, bias), expected)
    grad = torch.tensor(0.5).expand(expected.shape)
    part.requires_grad_()
    (found,) = torch.autograd.grad(run(unfolded_conv2d, case, strided, part, bias), part, grad)
    exact = weight.double().requires_grad_()
    (wanted,) = torch.autograd.grad(
        run(functional.conv2d, case, x.double(), exact, bias.double()), exact, grad.double()
    )
    assert_matches(found, wanted)


def test_no_images():
    x, weight, bias = (t.float() for t in make_inputs(PRODUCTS[0]))
    x = x[:0].requires_grad_()
    out = unfolded_conv2d(x, weight, bias, 1, 1)
    assert out.shape == (0, 5, 2, 3)
    out.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("case", [PRODUCTS[0], PLAIN[0]])
def test_opcheck(case):
    x, weight, _ = (t.float().requires_grad_() for t in make_inputs(case))
    out = OP(x, weight, case.stride, case.padding)
    how = (case.stride, case.padding)
    torch.library.opcheck(OP, (x, weight, *how))
    grad = torch.randn_like(out).requires_grad_()
    gradient = torch.ops.mirrorgan.unfolded_conv2d_input_gradient
    torch.library.opcheck(gradient, (grad, weight, *case.size, *how))
    gradient = torch.ops.mirrorgan.unfolded_conv2d_weight_gradient
    torch.library.opcheck(gradient, (grad, x, *case.kernel, *how))


class Layer(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return conv2d(x, self.weight, None, 1, 1)


def test_compiles_as_one_graph(assert_matches):
    x, weight, _ = make_inputs(PRODUCTS[0])
    torch.compiler.reset()
    layer = Layer(weight.float())
    assert suits(x.float(), layer.weight, 1, 1)
    out = torch.compile(layer, fullgraph=True, backend="aot_eager")(x.float())
    exact = weight.requires_grad_()
    expected = functional.conv2d(x, exact, padding=1)
    assert_matches(out.detach(), expected.detach())
    out.sum().backward()
    expected.sum().backward()
    assert_matches(layer.weight.grad, exact.grad)


def test_autocast(assert_matches):
    x, weight, bias = (t.float().requires_grad_() for t in make_inputs(PRODUCTS[1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert suits(x, weight, 2, 1)
        out = conv2d(x, weight, bias, 2, 1)
        assert out.dtype == torch.bfloat16
        with use("reference"):
            plain = conv2d(x, weight, bias, 2, 1)
    grads, others = (torch.autograd.grad(o.float().sum(), (x, weight, bias)) for o in (out, plain))
    assert_matches(out.detach(), plain.detach().double())
    for one, other in zip(grads, others, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * other.abs().max().item())


@pytest.mark.parametrize(
    ("case", "trains", "frozen"),
    [
        (Case(4, 1024, (8, 8), 2048, (4, 4), 2), True, True),
        (Case(32, 256, (8, 8), 512, (4, 4), 2), False, False),  # in float32
        (Case(4, 3, (256, 256), 64, (4, 4), 2), False, False),
    ],
)
def test_what_it_is_chosen_for(case, trains, frozen):
    with torch.device("meta"):
        x = torch.empty(case.batch, case.channels, *case.size)
        weight = torch.empty(case.out_channels, case.channels, *case.kernel)
    x, weight = (t.as_subclass(OnCPU) for t in (x, weight))
    how = (case.stride, case.padding)
    assert suits(x, weight.requires_grad_(), *how) == trains
    assert suits(x, weight.requires_grad_(False), *how) == frozen
    with use("reference"):
        assert not suits(x, weight, *how)
    with use("unfolded"):
        assert suits(x, weight, *how) == frozen


class OnCPU(Tensor):
    """A tensor without memory that says it is on the CPU."""

    device = torch.device("cpu")


def test_the_weights_gradient_decides_in_bfloat16():
    x = torch.empty(32, 256, 8, 8, dtype=torch.bfloat16)
    weight = torch.empty(512, 256, 4, 4, dtype=torch.bfloat16)
    assert suits(x, weight.requires_grad_(), 2, 1)
    assert not suits(x, weight.requires_grad_(False), 2, 1)
    half = (x.half(), weight.half().requires_grad_())
    assert not suits(*half, 2, 1)


def test_bad_input():
    x, weight, bias = make_inputs(PRODUCTS[0])
    with pytest.raises(InputError, match=r"^unfolded_conv2d: x: found .* wanted shape \(N, C, H"):
        unfolded_conv2d(x[0], weight, bias)
    with pytest.raises(InputError, match=r"^unfolded_conv2d: weight: found .* with C = 70"):
        unfolded_conv2d(x, weight[:, :5], bias)


def test_choice():
    for dtype in (torch.float32, torch.bfloat16):
        found = choice.choose("unfolded_conv2d", "cpu", dtype, needs_grad=True)
        assert found.implementation == "unfolded"
    found = choice.choose("unfolded_conv2d", "cuda", torch.bfloat16, needs_grad=True)
    assert found.implementation == "reference"
