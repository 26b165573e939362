"""conv2d: PyTorch's convolution with a weight gradient of its own."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops import build_info, choice, conv2d, instruction_set, use

from .conftest import compiled
from .convolutions import Case, make_inputs

weight_gradient = torch.ops.mirrorgan.conv2d_weight_gradient


CASES = [
    Case(2, 16, (5, 7), 6),
    Case(3, 33, (9, 6), 13),  # no whole groups of columns or rows
    Case(2, 16, (24, 23), 8, (4, 4), 2),  # several sums of pixels; an odd width
    Case(2, 17, (6, 6), 19, (4, 4), 2, 1, transposed=True),
    Case(1, 16, (4, 4), 3, (4, 4), 1, 0),  # one pixel
    Case(2, 20, (5, 4), 7, (1, 1), 1, 0),
    Case(1, 16, (3, 4), 2, (3, 2), 3, 2),  # wide stride and padding
]


def run(function, case: Case, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return function(x, weight, bias, case.stride, case.padding, transposed=case.transposed)


def plain(x, weight, bias, stride, padding, *, transposed):
    function = functional.conv_transpose2d if transposed else functional.conv2d
    return function(x, weight, bias, stride, padding)


@pytest.fixture
def everywhere(monkeypatch):
    """Run the compiled kernel whatever the processor is."""
    rows = tuple(row._replace(needs="") for row in choice.TABLE["conv2d"])
    monkeypatch.setitem(choice.TABLE, "conv2d", rows)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", CASES)
def test_gradients(everywhere, implementation, assert_matches, case, memory_format):
    wide = [t.requires_grad_() for t in make_inputs(case)]
    narrow = [
        t.detach().float().contiguous(memory_format=memory_format)
        if t.dim() == 4
        else t.detach().float()
        for t in wide
    ]
    for tensor in narrow:
        tensor.requires_grad_()
    results = []
    for function, inputs in ((conv2d, narrow), (plain, wide)):
        out = run(function, case, *inputs)
        rng = torch.Generator().manual_seed(1)
        cotangent = torch.randn(out.shape, generator=rng).to(out.dtype)
        first = torch.autograd.grad(out, inputs, cotangent, create_graph=True)
        loss = sum(g.square().sum() for g in first)
        second = torch.autograd.grad(loss, inputs[:2], create_graph=True)
        third = torch.autograd.grad(sum(g.square().sum() for g in second), inputs[:2])
        results.append([t.detach() for t in (out, *first, *second, *third)])
    for actual, expected in zip(*results, strict=True):
        assert_matches(actual, expected)


def expected_gradient(case: Case, grad_out: Tensor, x: Tensor) -> Tensor:
    shape = (case.out_channels, case.channels, *case.kernel)
    zero = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    out = functional.conv2d(x.double(), zero, None, case.stride, case.padding)
    return torch.autograd.grad(out, zero, grad_out.double())[0]


def maps_of(case: Case) -> tuple[Tensor, Tensor]:
    x, weight, _ = (t.float() for t in make_inputs(case))
    out = functional.conv2d(x, weight, None, case.stride, case.padding)
    rng = torch.Generator().manual_seed(2)
    return torch.randn(out.shape, generator=rng), x


LARGE = [
    Case(4, 16, (33, 31), 32, (3, 3)),  # sixteen parts of the pixels
    Case(2, 256, (4, 4), 300, (4, 4), 2),  # tasks have some of the taps
    Case(1, 256, (16, 20), 256, (4, 4), 2),
    Case(0, 16, (4, 4), 5),
]


@compiled
@pytest.mark.parametrize("case", [*(c for c in CASES if not c.transposed), *LARGE])
def test_weight_gradient(assert_matches, case):
    maps = maps_of(case)
    actual = weight_gradient(*maps, *case.kernel, case.stride, case.padding)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert_matches(actual, expected_gradient(case, *maps))


@compiled
def test_strided_maps(assert_matches):
    case = Case(3, 18, (5, 7), 6)
    grad_out, x = maps_of(case)
    strided = x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    same = torch.tensor(0.5).expand(grad_out.shape)
    actual = weight_gradient(same, strided, 3, 3, 1, 1)
    assert_matches(actual, expected_gradient(case, same, x))


@compiled
@pytest.mark.parametrize("case", LARGE[:3])
def test_threads_do_not_change_bits(case):
    maps = maps_of(case)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(weight_gradient(*maps, *case.kernel, case.stride, case.padding))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@compiled
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_narrower_instruction_sets(assert_matches, run_narrower, capability):
    case = CASES[1]
    maps = maps_of(case)
    script = "results = torch.ops.mirrorgan.conv2d_weight_gradient(*given, 3, 3, 1, 1)"
    actual = run_narrower(capability, maps, script)
    assert_matches(actual, expected_gradient(case, *maps))


@compiled
def test_opcheck():
    x, weight, bias = (t.float().requires_grad_() for t in make_inputs(CASES[0]))
    torch.library.opcheck(torch.ops.mirrorgan.conv2d, (x, weight, bias, 1, 1, False))
    torch.library.opcheck(torch.ops.mirrorgan.conv2d, (x, weight.mT, None, 1, 1, False))
    grad_out, x = (t.requires_grad_() for t in maps_of(CASES[0]))
    torch.library.opcheck(weight_gradient, (grad_out, x, 3, 3, 1, 1))


class Layer(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return conv2d(x, self.weight, None, 1, 1)


def test_compiles_as_one_graph(everywhere, implementation, assert_matches):
    x, weight, _ = make_inputs(CASES[0])
    torch.compiler.reset()
    layer = Layer(weight.float())
    out = torch.compile(layer, fullgraph=True, backend="aot_eager")(x.float())
    assert_matches(out.detach(), functional.conv2d(x, weight, padding=1))
    out.sum().backward()
    expected = expected_gradient(CASES[0], torch.ones_like(out), x)
    assert_matches(layer.weight.grad, expected)


def is_ours(out: Tensor) -> bool:
    return "mirrorgan" in type(out.grad_fn).__name__


@compiled
def test_what_needs_no_gradient_of_the_weight_runs_plain(everywhere):
    x, weight, bias = (t.float() for t in make_inputs(CASES[0]))
    assert is_ours(conv2d(x, weight.clone().requires_grad_(), bias, 1, 1))
    assert not is_ours(conv2d(x.clone().requires_grad_(), weight, bias, 1, 1))
    few = torch.randn(6, 3, 3, 3, requires_grad=True)
    assert not is_ours(conv2d(x[:, :3], few, bias, 1, 1))


def test_autocast(everywhere, implementation):
    x, weight, bias = (t.float().requires_grad_() for t in make_inputs(CASES[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv2d(x, weight, bias, 1, 1)
        assert torch.equal(out, functional.conv2d(x, weight, bias, 1, 1))
    assert out.dtype == torch.bfloat16


def test_bad_input():
    x, weight, bias = make_inputs(CASES[0])
    with pytest.raises(InputError, match=r"^conv2d: x: found .* wanted shape \(N, C, H, W\)"):
        conv2d(x[0], weight, bias)
    with pytest.raises(InputError, match=r"^conv2d: weight: found .* with C = 16"):
        conv2d(x, weight[:, :5], bias)


@compiled
def test_compiled_op_checks_for_itself():
    grad_out, x = maps_of(CASES[0])
    with pytest.raises(ValueError, match=r"^conv2d_weight_gradient: grad_out: found .* wanted"):
        weight_gradient(grad_out[:, :, 1:], x, 3, 3, 1, 1)
    with pytest.raises(ValueError, match=r"^conv2d_weight_gradient: x: found Double"):
        weight_gradient(grad_out, x.double(), 3, 3, 1, 1)


def test_choice():
    found = choice.choose("conv2d", "cpu", torch.float32, needs_grad=True)
    fast = build_info() is not None and instruction_set() == "avx2"
    assert found.implementation == ("cpu" if fast else "reference")
    narrow = choice.choose("conv2d", "cpu", torch.bfloat16, needs_grad=True)
    assert narrow.implementation == "reference"
    with use("reference"):
        asked = choice.choose("conv2d", "cpu", torch.float32, needs_grad=True)
    assert asked.implementation == "reference"
