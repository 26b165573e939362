"""The Triton kernels without a GPU: interpreted, compiled ahead of time, and traced."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._functorch.aot_autograd import aot_module_simplified

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops import (
    batch_norm_glu,
    batch_norm_leaky_relu,
    bidirectional_lstm,
    choice,
    glam_attention_mix,
    pack_lstm,
    use,
    word_similarity,
)

from .calls import Shapes, call

triton = pytest.importorskip("triton", reason="triton exists only for Linux")


@pytest.mark.skipif(
    torch.__version__ < "2.13", reason="older PyTorch cannot wrap interpreted kernels"
)
def test_interpreted_kernels_match_float64() -> None:
    """Run test_triton.py in another process, as Triton cannot both interpret and compile in one."""
    command = [sys.executable, "-m", "pytest", str(Path(__file__).with_name("test_triton.py"))]
    result = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-10_000:] + result.stderr[-2_000:]


KERNEL = "triton_kernel_wrapper_functional("


class TracedError(Exception):
    """Stops a compilation after its graph is known."""


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Choose and trace the Triton kernels, as on an H100."""
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    driver = SimpleNamespace(get_current_target=lambda: target)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(choice, "_interpreted", lambda device: True)
    torch._dynamo.reset()
    with use("triton"):
        yield
    torch._dynamo.reset()


def trace(run: Callable[..., Tensor], *inputs: Tensor) -> str:
    """Return torch.compile's graph of a function and, if it needs a gradient, of its backward."""
    graphs = []

    def stop(graph: torch.fx.GraphModule, *_: object, **__: object) -> None:
        graphs.append(graph.code)
        raise TracedError

    def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> object:
        return aot_module_simplified(graph, examples, fw_compiler=stop, partition_fn=stop)

    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="TracedError"):
        torch.compile(run, backend=backend, fullgraph=True)(*inputs)
    (graph,) = graphs
    assert "torch.ops.mirrorgan" not in graph
    return graph


@pytest.mark.parametrize("op", ["conv_add", "conv_glu", "glam_attention_mix", "image_head"])
def test_torch_compile_sees_the_kernels(as_on_gpu, op) -> None:
    called = call(op, Shapes(layout="rows"), torch.bfloat16)
    graph = trace(lambda: called.run())
    assert graph.count(KERNEL) == 1
    assert "tensors_to_clone = ['out_ptr']" in graph  # all other arguments are only read


ONES = torch.ones
TRAINED_OPS = {
    "batch_norm_glu": (lambda x: batch_norm_glu(x, ONES(6), ONES(6))[0], ONES(2, 6, 4, 4), 5),
    "batch_norm_leaky_relu": (
        lambda x: batch_norm_leaky_relu(x, ONES(6), ONES(6))[0],
        ONES(2, 6, 4, 4),
        5,
    ),
    "glam_attention_mix": (
        lambda f: glam_attention_mix(
            f,
            ONES(2, 3, 6, dtype=torch.bfloat16),
            ONES(2, 3, dtype=torch.bool),
            None,
            None,
            ONES(6, 12, dtype=torch.bfloat16),
        ),
        ONES(2, 6, 4, 4, dtype=torch.bfloat16),
        2,  # the gradient of the mix is not needed, so its kernel does not run
    ),
    "word_similarity": (
        lambda w: word_similarity(w, ONES(2, 3, dtype=torch.bool), w),
        ONES(2, 3, 6, dtype=torch.bfloat16),
        4,
    ),
}


@pytest.mark.parametrize("op", sorted(TRAINED_OPS))
def test_torch_compile_sees_the_kernels_of_forward_and_backward(as_on_gpu, op) -> None:
    run, x, kernels = TRAINED_OPS[op]
    assert trace(run, x.requires_grad_()).count(KERNEL) == kernels


def test_word_similarity_is_four_launches(as_on_gpu) -> None:
    """Forward and backward together. No other operation computes anything."""
    words, regions = ONES(2, 3, 6).half().requires_grad_(), ONES(4, 5, 6).half().requires_grad_()
    graph = trace(word_similarity, words, ONES(2, 3, dtype=torch.bool), regions)
    assert graph.count(KERNEL) == 4
    others = set(re.findall(r"torch\.ops\.aten\.(\w+)", graph))
    assert others == {"empty", "empty_like", "new_empty"}


@pytest.mark.parametrize(
    ("channels", "columns", "kernels"), [(128, 256, 1), (129, 8, 0), (8, 257, 0)]
)
def test_attention_that_is_too_large_runs_pytorch(as_on_gpu, channels, columns, kernels) -> None:
    called = call(
        "glam_attention_mix", Shapes(channels=channels, out_channels=columns), torch.bfloat16
    )
    assert trace(lambda: called.run()).count(KERNEL) == kernels


def test_the_gradient_of_attention_with_many_columns_runs_pytorch(as_on_gpu) -> None:
    features, *rest = call(
        "glam_attention_mix", Shapes(channels=8, out_channels=97), torch.bfloat16
    ).arguments
    assert KERNEL not in trace(lambda f: glam_attention_mix(f, *rest), features.requires_grad_())


@pytest.mark.parametrize(("units", "kernels"), [(128, 1), (160, 0)])
def test_an_lstm_that_is_too_large_runs_pytorch(as_on_gpu, units, kernels) -> None:
    packed = pack_lstm(torch.nn.LSTM(4, units, bidirectional=True), layout="rows")
    gates, tokens, lengths = ONES(3, 2, 4 * units), ONES(2, 5).long(), ONES(2).long()

    def run() -> Tensor:
        return bidirectional_lstm(gates, tokens, lengths, packed.recurrent)[0]

    assert trace(run).count(KERNEL) == kernels


def test_weights_in_rows_run_in_plain_pytorch() -> None:
    """The layout of the GPU gives the same convolution where no kernel runs."""
    for op in ("conv_add", "conv_glu", "image_head"):
        for upsample in (False, True):
            called = call(op, Shapes(upsample=upsample, layout="rows"), torch.float32)
            expected = call(op, Shapes(upsample=upsample), torch.float32)
            torch.testing.assert_close(called.run(), expected.run(), atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="a weight from pack"):
        called.op(called.arguments[0], called.arguments[1][:, 1:], called.arguments[2])


def test_training_runs_triton_only_if_requested() -> None:
    for op in ("batch_norm_glu", "glam_attention_mix", "word_similarity"):
        chosen = choice.choose(op, "cuda", torch.bfloat16, needs_grad=True)
        assert chosen.implementation == "reference"
        assert "not measured" in chosen.reason
        with use("triton"):
            chosen = choice.choose(op, "cuda", torch.bfloat16, needs_grad=True)
            assert chosen.implementation == "triton"


def test_inference_runs_triton_by_default() -> None:
    for op in ("conv_add", "conv_glu", "glam_attention_mix", "image_head"):
        assert choice.choose(op, "cuda", torch.float16, needs_grad=False).implementation == "triton"
    chosen = choice.choose("glam_attention_mix", "cuda", torch.float32, needs_grad=False)
    assert chosen.reason == "triton does not take this data type"


@pytest.mark.parametrize(
    ("installed", "capability", "why"),
    [
        (True, (7, 5), "compute capability 7.5"),
        (False, (9, 0), "not installed"),
        (True, (8, 0), ""),
    ],
)
def test_where_triton_does_not_run(
    monkeypatch: pytest.MonkeyPatch, installed: bool, capability: tuple[int, int], why: str
) -> None:
    monkeypatch.setattr(choice, "_TRITON_INSTALLED", installed)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    chosen = choice.choose("conv_glu", "cuda", torch.bfloat16, needs_grad=False)
    assert chosen.implementation == ("reference" if why else "triton")
    assert why in chosen.reason
