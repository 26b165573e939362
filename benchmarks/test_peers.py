"""The generator of `cub`, 256 px, beside ONNX Runtime and OpenVINO, which run its exported file.

OpenVINO computes in the data type of ours, ONNX Runtime always in float32.
"""

import importlib.metadata
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import peers
from benchmarks.alternatives import generator_work
from benchmarks.cub_model import inputs_of
from benchmarks.harness import Comparison
from mirrorgan_fast.inference.packing import fastest_dtype
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.ops import use

BF16, FP32 = torch.bfloat16, torch.float32


@peers.needs(peers.ONNX_RUNTIME | peers.OPENVINO)
@pytest.mark.parametrize(
    ("batch", "dtype"),
    [
        pytest.param(batch, dtype, id=f"batch {batch}, {str(dtype)[6:]}")
        for batch in (1, 8)
        for dtype in (BF16, FP32)
    ],
)
def test_peers(
    comparison: Comparison,
    benchmark: BenchmarkFixture,
    model: MirrorGAN,
    exported: Path,
    batch: int,
    dtype: torch.dtype,
) -> None:
    if dtype == BF16 and fastest_dtype() != BF16:
        pytest.skip("this processor does not multiply bfloat16")
    inputs = inputs_of(model, batch, model.config.caption_length)
    fused = fuse(model, dtype)
    renders = {
        "ours": lambda: fused.render(*inputs),
        "onnxruntime": peers.with_onnx_runtime(exported, inputs),
        "openvino": peers.with_openvino(exported, inputs, dtype),
    }
    with use("reference"):
        expected = model.render(*inputs)
    for name, render in renders.items():
        peers.check_images(render(), expected, FP32 if name == "onnxruntime" else dtype)

    ours = renders.pop("ours")
    comparison.run(ours, renders, generator_work(model, dtype, inputs), images=batch)
    benchmark.extra_info["versions"] = {name: importlib.metadata.version(name) for name in renders}
