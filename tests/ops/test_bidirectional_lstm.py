"""bidirectional_lstm against PyTorch's LSTM in float64, for captions of different lengths."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops import bidirectional_lstm, pack_lstm, report, use
from mirrorgan_fast.ops.bidirectional_lstm import reference

from .conftest import compiled

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


def make_lstm(inputs: int, units: int) -> nn.LSTM:
    torch.manual_seed(3)
    lstm = nn.LSTM(inputs, units, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.mul_(2)  # so that gates are far open or far closed
    return lstm


def word_gates(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """Return W x + b for all words, in the documented order of the gates."""
    units, padded = lstm.hidden_size, -(-lstm.hidden_size // 32) * 32
    directions = []
    for suffix in ("", "_reverse"):
        W, b, b_h = (
            getattr(lstm, f"{name}_l0{suffix}") for name in ("weight_ih", "bias_ih", "bias_hh")
        )
        gates = torch.zeros(len(x), 4, padded, dtype=x.dtype)
        gates[..., :units] = (x @ W.T + b + b_h).unflatten(1, (4, units))
        directions.append(gates.unflatten(2, (-1, 16)).transpose(1, 2).flatten(1))
    return torch.stack(directions, dim=1)


@pytest.fixture
def case():
    """Return a function that makes arguments of some sizes, and the result in float64."""

    def make(batch: int, words: int, units: int, seed: int = 0, dtype=torch.float32):
        rng = torch.Generator().manual_seed(seed)
        vocabulary = torch.randn(11, 5, generator=rng)
        tokens = torch.randint(0, 11, (batch, words), generator=rng)
        lengths = torch.randint(0, words + 1, (batch,), generator=rng)
        lstm = make_lstm(5, units)
        with torch.no_grad():
            gates = word_gates(lstm, vocabulary)
            states = torch.zeros(batch, words, 2, units, dtype=torch.float64)
            last = torch.zeros(batch, 2, units, dtype=torch.float64)
            wide = make_lstm(5, units).double()
            for n, length in enumerate(lengths.tolist()):
                if length:
                    out, (h, _) = wide(vocabulary[tokens[n : n + 1, :length]].double())
                    states[n, :length] = out[0].unflatten(1, (2, units))
                    last[n] = h[:, 0]
        return (gates, tokens, lengths, pack_lstm(lstm, dtype=dtype).recurrent), (states, last)

    return make


def assert_close(
    actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], dtype=torch.float32
) -> None:
    for result, exact in zip(actual, expected, strict=True):
        units = exact.shape[-1]
        assert result.dtype == torch.float32
        if exact.numel():
            assert (result[..., :units] - exact).abs().max() <= TOLERANCE[dtype]
        assert (result[..., units:] == 0).all()


@each_dtype
@settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture
    ],  # the fixtures are the same for all examples
)
@given(
    batch=st.integers(0, 19),
    words=st.integers(1, 20),
    units=st.one_of(st.integers(1, 70), st.just(128)),
    seed=st.integers(0, 2**31),
)
def test_matches_float64_on_any_shape(implementation, case, dtype, batch, words, units, seed):
    arguments, expected = case(batch, words, units, seed, dtype)
    assert_close(bidirectional_lstm(*arguments), expected, dtype)


def test_strided_inputs(implementation, case):
    (gates, tokens, lengths, recurrent), expected = case(5, 6, 32)
    strided = gates.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    every_other = lengths.repeat_interleave(2)[::2]
    assert_close(
        bidirectional_lstm(strided, tokens.T.contiguous().T, every_other, recurrent), expected
    )


@each_dtype
def test_captions_and_threads_do_not_change_bits(case, dtype):
    with use("cpu"):
        (gates, tokens, lengths, recurrent), _ = case(21, 9, 64, dtype=dtype)
        batched = bidirectional_lstm(gates, tokens, lengths, recurrent)
        before = torch.get_num_threads()
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                again = bidirectional_lstm(gates, tokens, lengths, recurrent)
                assert all(map(torch.equal, again, batched))
        finally:
            torch.set_num_threads(before)
        for n in range(21):
            single = bidirectional_lstm(gates, tokens[n : n + 1], lengths[n : n + 1], recurrent)
            assert all(torch.equal(a[0], b[n]) for a, b in zip(single, batched, strict=True))


@each_dtype
def test_tokens_after_the_last_word_are_not_read(implementation, case, dtype):
    (gates, tokens, lengths, recurrent), _ = case(6, 7, 32, dtype=dtype)
    clean = bidirectional_lstm(gates, tokens, lengths, recurrent)
    for n, length in enumerate(lengths.tolist()):
        tokens[n, length:] = 1 << 40
    assert all(map(torch.equal, bidirectional_lstm(gates, tokens, lengths, recurrent), clean))


@each_dtype
def test_zeros_are_written_after_the_last_word(implementation, case, dtype):
    arguments, expected = case(21, 9, 40, dtype=dtype)
    assert (arguments[2] == 0).any()
    torch.use_deterministic_algorithms(True)  # fills new tensors with NaN
    try:
        assert torch.empty(3).isnan().all()
        assert_close(bidirectional_lstm(*arguments), expected, dtype)
    finally:
        torch.use_deterministic_algorithms(False)


@compiled
@each_dtype
def test_both_data_types_run_the_compiled_op(dtype):
    name = str(dtype).removeprefix("torch.")
    assert report()["bidirectional_lstm", "cpu", name].implementation == "cpu"


@each_dtype
def test_nan_stays_in_its_caption(implementation, case, dtype):
    (gates, tokens, lengths, recurrent), _ = case(4, 3, 32, dtype=dtype)
    tokens[tokens == 0] = 1
    tokens[1, 1], lengths[1] = 0, 3
    clean = bidirectional_lstm(gates, tokens, lengths, recurrent)
    gates[0, 0, 7] = torch.nan
    states, last = bidirectional_lstm(gates, tokens, lengths, recurrent)
    assert states[1, 2, 0].isnan().any()
    assert last[1, 0].isnan().any()
    others = [0, 2, 3]
    assert torch.equal(states[others], clean[0][others])
    assert torch.equal(last[others], clean[1][others])


@compiled
@each_dtype
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512", "avx512_bf16"])
def test_narrower_instruction_sets(case, run_narrower, capability, dtype):
    arguments, expected = case(11, 5, 40, dtype=dtype)
    script = """
        with ops.use("cpu"):
            results = ops.bidirectional_lstm(*given)
    """
    assert_close(run_narrower(capability, arguments, script), expected, dtype)


def test_compiles_as_one_graph_and_exports(implementation, case):
    arguments, expected = case(3, 4, 32)

    class Module(nn.Module):
        def forward(self, *arguments):
            return bidirectional_lstm(*arguments)

    torch.compiler.reset()
    run = torch.compile(Module(), fullgraph=True, backend="aot_eager")
    assert_close(run(*arguments), expected)
    program = torch.export.export(Module(), arguments)
    names = {str(node.target) for node in program.graph.nodes}
    has_op = any(name.startswith("mirrorgan.bidirectional_lstm") for name in names)
    assert has_op == (implementation == "cpu")
    assert_close(program.module()(*arguments), expected)


@compiled
def test_opcheck(case):
    arguments, _ = case(3, 4, 32)
    outs = torch.empty(3, 4, 2, 32), torch.empty(3, 2, 32)
    torch.library.opcheck(torch.ops.mirrorgan.bidirectional_lstm, (*arguments, *outs))


def test_gradients_match_the_reference(implementation, case):
    (gates, tokens, lengths, recurrent), _ = case(3, 4, 32)
    wide = gates.double().requires_grad_()
    states, last = reference(wide, tokens, lengths, recurrent)
    exact = torch.autograd.grad(states.sum() + last.sum(), wide)[0]
    narrow = gates.requires_grad_()
    states, last = bidirectional_lstm(narrow, tokens, lengths, recurrent)
    gradient = torch.autograd.grad(states.sum() + last.sum(), narrow)[0]
    assert (gradient - exact).abs().max() <= 1e-5


ONES, INTS = torch.ones, torch.ones(2, dtype=torch.int64)
GATES, TOKENS = ONES(5, 2, 128), torch.ones(2, 3, dtype=torch.int64)
PACKED = pack_lstm(nn.LSTM(5, 32, bidirectional=True)).recurrent
REFUSED = [
    ("gates", (ONES(5, 2, 100), TOKENS, INTS, PACKED), "a multiple of 32 units"),
    ("gates", (ONES(5, 1, 128), TOKENS, INTS, PACKED), "(V, 2, 4H)"),
    ("gates", (GATES.double(), TOKENS, INTS, PACKED), "float32 of shape"),
    ("tokens", (GATES, TOKENS[0], INTS, PACKED), "int64 of shape (N, T)"),
    ("tokens", (GATES, TOKENS.int(), INTS, PACKED), "int64"),
    ("tokens", (GATES, TOKENS.to("meta"), INTS, PACKED), "device cpu"),
    ("lengths", (GATES, TOKENS, INTS[:1], PACKED), "int64 of shape (2,)"),
    ("lengths", (GATES, TOKENS, INTS.int(), PACKED), "int64"),
    ("lengths", (GATES, TOKENS, INTS.to("meta"), PACKED), "device cpu"),
    ("recurrent", (GATES, TOKENS, INTS, PACKED[:1]), "from pack_lstm() for 32 units"),
    ("recurrent", (GATES, TOKENS, INTS, PACKED.bfloat16()), "from pack_lstm() for 32 units"),
    ("recurrent", (GATES, TOKENS, INTS, PACKED.mT.contiguous().mT), "contiguous"),
]


@pytest.mark.parametrize(("argument", "arguments", "wanted"), REFUSED)
def test_refuses(implementation, argument, arguments, wanted):
    with pytest.raises(InputError) as error:
        bidirectional_lstm(*arguments)
    assert str(error.value).startswith(f"bidirectional_lstm: {argument}: found ")
    assert wanted in str(error.value)


@compiled
def test_compiled_op_survives_writing_over_its_inputs(case):
    """A wrong call must not crash the process."""
    (gates, _, _, recurrent), _ = case(8, 8, 32)
    states = torch.empty(8, 8, 2, 32)
    lengths = states.flatten()[:16].view(torch.int64).fill_(8)
    tokens = torch.zeros(8, 8, dtype=torch.int64)
    last = torch.empty(8, 2, 32)
    expected = bidirectional_lstm(gates, tokens, lengths.clone(), recurrent)
    torch.ops.mirrorgan.bidirectional_lstm(gates, tokens, lengths, recurrent, states, last)
    assert torch.equal(last, expected[1])


@pytest.mark.parametrize("length", [-1, 4])
def test_refuses_invalid_lengths(implementation, length):
    lengths = torch.tensor([2, length])
    with pytest.raises(InputError, match=f"lengths: found {length}, wanted 0 to T"):
        bidirectional_lstm(GATES, TOKENS, lengths, PACKED)


@pytest.mark.parametrize("token", [-1, 5])
def test_refuses_invalid_tokens(implementation, token):
    tokens = torch.tensor([[0, 4, 0], [1, token, 2]])
    with pytest.raises(InputError, match=f"tokens: found {token}, wanted 0 to V - 1"):
        bidirectional_lstm(GATES, tokens, torch.tensor([3, 2]), PACKED)
    bidirectional_lstm(GATES, tokens, torch.tensor([3, 1]), PACKED)  # the token is not read


@compiled
@pytest.mark.parametrize(("argument", "arguments", "wanted"), REFUSED)
def test_compiled_op_checks_for_itself(argument, arguments, wanted):
    """A wrong direct call must not crash the process."""
    if any(tensor.device.type == "meta" for tensor in arguments):
        pytest.skip("meta tensors do not reach the CPU op")
    with pytest.raises((ValueError, RuntimeError)):
        torch.ops.mirrorgan.bidirectional_lstm(*arguments, ONES(2, 3, 2, 32), ONES(2, 2, 32))


@pytest.mark.parametrize(
    "options", [{"num_layers": 2}, {"bidirectional": False}, {"bias": False}, {"proj_size": 3}]
)
def test_pack_lstm_refuses(options):
    lstm = nn.LSTM(5, 8, **{"bidirectional": True} | options)
    with pytest.raises(InputError, match=r"^pack_lstm: lstm: found LSTM"):
        pack_lstm(lstm)
