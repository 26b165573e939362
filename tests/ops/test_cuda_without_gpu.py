"""The CUDA kernels without a GPU: their code on the host, and compiled by nvcc."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils import cpp_extension

from mirrorgan_fast.ops import choice, use
from mirrorgan_fast.ops.glam_attention_mix import glam_attention_mix
from tests.nvcc import nvcc

from .calls import WGMMA_CALLS, Shapes, call

CUDA = Path(__file__).parents[2] / "csrc" / "cuda"
BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def on_host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Compile the kernels' templates with the C++ compiler."""
    library = tmp_path_factory.mktemp("host") / "cuda_on_host.so"
    source = Path(__file__).with_name("cuda_on_host.cpp")
    options = ("-O2", "-std=c++17", "-fno-strict-aliasing", "-shared", "-fPIC", "-pthread")
    warnings = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, *options, *warnings, f"-I{CUDA}", source, "-o", library]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def run(function: Callable[..., None], *arguments: Tensor | int | None) -> None:
    """Call a C function. Tensors are passed as addresses, None and numbers unchanged."""
    function(
        *(
            ctypes.c_void_p(argument.data_ptr()) if isinstance(argument, Tensor) else argument
            for argument in arguments
        )
    )


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize(
    "shapes",
    [
        Shapes(layout="rows"),
        Shapes(2, 64, 9, 17, 32, layout="rows"),  # full depth and columns, partial blocks
        Shapes(1, 70, 8, 16, 40, layout="rows"),  # partial depth and columns, exactly one block
        Shapes(3, 32, 17, 5, 64, layout="rows"),
        Shapes(0, layout="rows"),
    ],
)
def test_conv_glu(on_host, assert_matches, shapes, upsample) -> None:
    called = call("conv_glu", shapes._replace(upsample=upsample), BF16)
    x, weight, bias = called.arguments
    batch, channels, height, width = x.shape
    out = torch.full(called.expected.permute(0, 2, 3, 1).shape, torch.nan, dtype=BF16)
    rows = x.permute(0, 2, 3, 1).contiguous()
    sizes = (ctypes.c_int64(batch), height, width, channels, len(bias), len(weight))
    run(on_host.conv_glu_on_host, rows, weight, bias, out, *sizes)
    assert_matches(out.permute(0, 3, 1, 2), called.expected)


@pytest.mark.parametrize(("op", "shapes"), WGMMA_CALLS)
def test_wgmma(on_host, assert_matches, op, shapes) -> None:
    called = call(op, shapes, BF16)
    out = convolve_with_wgmma(on_host, *called.arguments)
    assert_matches(out, called.expected)


def test_conv_add_without_a_residual(on_host, assert_matches) -> None:
    called = call("conv_add", WGMMA_CALLS[-2][1], BF16)
    x, weight, bias, residual = called.arguments
    out = convolve_with_wgmma(on_host, x, weight, bias)
    assert_matches(out, called.expected - residual.double())


def convolve_with_wgmma(
    library: ctypes.CDLL, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None
) -> Tensor:
    batch, _, height, width = x.shape
    forms = {(4, 64): 1, (1, 128): 0, (1, 64): 2}  # enum Form in conv_wgmma.h
    form = forms[len(weight), len(bias)]
    scale, channels = (2, 32) if form == 1 else (1, 64)
    out = torch.full((batch, scale * height, scale * width, channels), torch.nan, dtype=BF16)
    x = x.permute(0, 2, 3, 1).contiguous()
    if residual is not None:
        residual = residual.permute(0, 2, 3, 1).contiguous()
    blocks = 2
    sizes = (ctypes.c_int64(batch), height, width, blocks, form)
    run(library.conv_wgmma_on_host, x, weight, bias, residual, out, *sizes)
    return out.permute(0, 3, 1, 2)


@pytest.mark.parametrize("form", ["authors", "paper", "words"])
@pytest.mark.parametrize(
    "shapes",
    [
        Shapes(channels=32),
        Shapes(2, 32, 23, 29, 64, words=18),  # two blocks per sample, the second one partial
        Shapes(3, 32, 9, 7, 40, words=32),
        Shapes(1, 32, 16, 32, 60, words=1),
    ],
)
def test_glam_attention_mix(on_host, assert_matches, shapes, form) -> None:
    called = call("glam_attention_mix", shapes._replace(form=form), BF16)
    features, words, mask, sentence, weight, mix = called.arguments
    out = attend_on_host(on_host, features, words, mask, sentence, weight, mix)
    assert_matches(out, called.expected)


def test_padding_is_not_read_and_nan_stays_in_its_pixel(on_host) -> None:
    called = call("glam_attention_mix", Shapes(channels=32, words=20), BF16)
    features, words, mask, *rest = called.arguments
    mask[0], mask[1, 1:] = False, False  # no words, and one word
    padding = ~mask[..., None]
    expected = attend_on_host(on_host, features, words.masked_fill(padding, 0), mask, *rest)
    actual = attend_on_host(on_host, features, words.masked_fill(padding, torch.nan), mask, *rest)
    assert torch.equal(actual, expected)
    assert actual.isfinite().all()
    features[1, 3, 2, 4] = torch.nan
    actual = attend_on_host(on_host, features, words, mask, *rest)
    assert actual[1, :, 2, 4].isnan().all()
    actual[1, :, 2, 4] = expected[1, :, 2, 4]
    assert torch.equal(actual, expected)


def attend_on_host(
    library: ctypes.CDLL,
    features: Tensor,
    words: Tensor,
    mask: Tensor,
    sentence: Tensor | None,
    weight: Tensor | None,
    mix: Tensor,
) -> Tensor:
    batch, _, height, width = features.shape
    rows = features.permute(0, 2, 3, 1).contiguous()
    out = torch.full((batch, height, width, len(mix)), torch.nan, dtype=BF16)
    sizes = (ctypes.c_int64(batch), ctypes.c_int64(height * width), words.shape[1], len(mix))
    tensors = (rows, words, mask, sentence, weight, mix, out)
    run(library.glam_attention_mix_on_host, *tensors, *sizes)
    return out.permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def launchers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Register the launchers in csrc/cuda/, unless the extension has done so.

    Their kernels are compiled to PTX only, which is fast: nothing runs them without a GPU.
    """
    if choice.why_no_cuda_kernels() is None:
        return
    compiler = nvcc()
    if compiler is None:
        pytest.skip("nvcc is not here")
    folder = tmp_path_factory.mktemp("launchers")
    missing = folder / "missing.cpp"  # a function that PyTorch without CUDA does not have
    missing.write_text(
        'extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }'
    )
    command = [
        compiler, "-shared", "-o", folder / "launchers.so", *CUDA.glob("*.cu"), missing,
        "-Xcompiler", "-fPIC", "-std=c++20", "-gencode=arch=compute_90a,code=compute_90a",
        "-DUSE_CUDA", "-DMIRRORGAN_HAS_WGMMA", "-DTORCH_TARGET_VERSION=0x020b000000000000",
        *(part for path in cpp_extension.include_paths() for part in ("-isystem", path)),
        *(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch_cpu",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    torch.ops.load_library(folder / "launchers.so")


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        ("conv_add", Shapes(2, 64, 4, 6, 64, layout="rows")),
        ("conv_glu", Shapes(2, 5, 4, 6, 3, layout="rows")),
        ("glam_attention_mix", Shapes(2, 32, 4, 6, 40, words=5)),
    ],
)
def test_launchers_compiled_by_nvcc_check_every_tensor(launchers, op, shapes) -> None:
    """With CPU tensors a launcher reaches its last check: that they are on a GPU."""
    called = call(op, shapes, BF16)
    out = torch.empty_like(called.run())
    launcher = getattr(torch.ops.mirrorgan, op).default
    on_cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

    def error(*arguments: Tensor | None) -> str:
        with pytest.raises(ValueError, match=rf"^{op}: ") as raised:
            launcher.redispatch(on_cuda, *arguments)
        return str(raised.value)

    arguments = (*called.arguments, out)
    assert error(*arguments) == f"{op}: device: found no GPU, wanted a tensor on a GPU"
    for wrong in (out[:1], out.float(), out.contiguous(), out.mT.contiguous().mT):
        assert error(*called.arguments, wrong).startswith(f"{op}: out: found ")
    for i, (argument, tensor) in enumerate(zip(launcher._schema.arguments, arguments, strict=True)):
        wrong = (*arguments[:i], tensor.double(), *arguments[i + 1 :])
        assert error(*wrong).startswith(f"{op}: {argument.name}: found ")
        wrong = (*arguments[:i], tensor[..., :-1], *arguments[i + 1 :])
        assert error(*wrong).startswith(f"{op}: ")


def test_cuda_runs_only_if_requested(monkeypatch) -> None:
    for op in ("conv_add", "conv_glu", "glam_attention_mix"):
        assert choice.choose(op, "cuda", BF16, needs_grad=False).implementation == "triton"
        with use("cuda"):
            monkeypatch.setattr(choice, "why_no_cuda_kernels", lambda: "no nvcc")
            chosen = choice.choose(op, "cuda", BF16, needs_grad=False)
            assert chosen == choice.Choice("reference", "cuda was not built: no nvcc")
            monkeypatch.setattr(choice, "why_no_cuda_kernels", lambda: None)
            chosen = choice.choose(op, "cuda", BF16, needs_grad=False)
            assert chosen.implementation == "cuda"


def test_sizes_that_cuda_does_not_accept_run_triton(monkeypatch) -> None:
    """40 words are too many for the CUDA kernel, but requesting it is not an error."""
    called = call("glam_attention_mix", Shapes(channels=32, words=40), BF16)
    chosen = choice.Choice("cuda", "")
    module = sys.modules["mirrorgan_fast.ops.glam_attention_mix"]
    monkeypatch.setattr(module, "choose", lambda *_, **__: chosen)
    pytest.importorskip("triton")
    ran: list[object] = []
    monkeypatch.setattr(
        "mirrorgan_fast.kernels.glam_attention_mix.glam_attention_mix_triton",
        lambda *arguments: ran.append(arguments),
    )
    glam_attention_mix(*called.arguments)
    assert len(ran) == 1


@pytest.mark.parametrize(
    ("architectures", "capability", "has"),
    [("8.0;9.0a", (9, 0), True), ("9.0", (9, 0), False), ("9.0a", (10, 0), False)],
)
def test_only_hopper_has_wgmma(monkeypatch, architectures, capability, has) -> None:
    built = choice.build_info()
    assert built is not None
    built = built._replace(cuda_architectures=architectures)
    monkeypatch.setattr(choice, "build_info", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choice.has_wgmma(torch.device("cuda")) is has


@pytest.mark.parametrize(("channels", "on_hopper"), [(64, True), (64, False), (40, True)])
def test_conv_add_in_cuda_needs_64_channels_and_hopper(monkeypatch, channels, on_hopper) -> None:
    pytest.importorskip("triton")
    called = call("conv_add", Shapes(1, channels, out_channels=channels, layout="rows"), BF16)
    module = sys.modules["mirrorgan_fast.ops.conv_add"]
    ran: list[str] = []
    monkeypatch.setattr(module, "choose_packed", lambda *_, **__: "cuda")
    monkeypatch.setattr(module, "has_wgmma", lambda device: on_hopper)
    monkeypatch.setattr(module, "_op", lambda *_: ran.append("cuda"))
    triton = "mirrorgan_fast.kernels.conv_add.conv_add_triton"
    monkeypatch.setattr(triton, lambda *_: ran.append("triton"))
    called.run()
    assert ran == ["cuda" if channels == 64 and on_hopper else "triton"]
