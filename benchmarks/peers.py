"""What else runs the exported generator on a CPU: ONNX Runtime and OpenVINO.

Both read the file that ``mirrorgan-fast export --format onnx`` writes, and use as many threads as
PyTorch. The batch size is fixed, as OpenVINO in bfloat16 takes 1.04 to 1.08 times as long with any.
``openvino.convert_model`` of the traced model takes 1.02 to 1.07 times as long as the file. (EPYC,
Zen 4, one thread, batches of 1 and 8, processor time.)
"""

import importlib.util
from collections.abc import Callable, Set
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.cub_model import Inputs

Render = Callable[[], Tensor]
"""Returns gray levels, uint8 (N, S, S, 3)."""

ONNX_RUNTIME = frozenset({"onnx", "onnxscript", "onnxruntime"})
OPENVINO = frozenset({"onnx", "onnxscript", "openvino"})
"""The packages that exporting and running take."""

MAX_LEVELS_FP32, MAX_MEAN_FP32 = 1, 1e-3
MAX_MEAN_BF16 = 0.15
"""Gray levels by which images of `cub` may differ from the reference in float32: at most, and in
the mean. With another caption they differ by 0.34 in the mean, with other noise by 1.0, and in
bfloat16 by 0.01 to 0.08, in ours as in OpenVINO (EPYC, Zen 4)."""


def needs(packages: Set[str]) -> pytest.MarkDecorator:
    """Return a mark that skips a test if a package is not installed, and says how to install it."""
    missing = sorted(name for name in packages if importlib.util.find_spec(name) is None)
    return pytest.mark.skipif(
        bool(missing),
        reason=f"needs {' and '.join(missing)}: pip install 'mirrorgan-fast[peers]'",
    )


def with_onnx_runtime(path: Path, inputs: Inputs) -> Render:
    """Make ready a call that runs the file in float32; ONNX Runtime has no faster type on CPUs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_free_dimension_override_by_name("batch", len(inputs[0]))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    named = {
        argument.name: tensor.numpy()
        for argument, tensor in zip(session.get_inputs(), inputs, strict=True)
    }
    return lambda: torch.from_numpy(session.run(None, named)[0])


def with_openvino(path: Path, inputs: Inputs, dtype: torch.dtype) -> Render:
    """Make ready a call that runs the file in ``dtype``, float32 or bfloat16.

    The next call overwrites the images, which saves a copy.
    """
    import openvino

    precision = {torch.bfloat16: openvino.Type.bf16, torch.float32: openvino.Type.f32}[dtype]
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(
        {place: list(tensor.shape) for place, tensor in zip(model.inputs, inputs, strict=True)}
    )
    options = {
        "PERFORMANCE_HINT": "LATENCY",  # all threads work on one call
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(model, "CPU", options)
    # It may take another type than asked for, or fewer threads
    for name in ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS"):
        found = compiled.get_property(name)
        assert found == options[name], f"OpenVINO: expected {name} {options[name]}, found {found}"
    request = compiled.create_infer_request()
    arrays = [tensor.numpy() for tensor in inputs]

    def render() -> Tensor:
        results = request.infer(arrays, share_inputs=True, share_outputs=True)
        return torch.from_numpy(results[compiled.output(0)])

    return render


def check_images(images: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Check that images computed in ``dtype`` are those of the reference in float32.

    Args:
        images: uint8 (N, S, S, 3).
        expected: uint8 (N, S, S, 3).
        dtype: float32 or bfloat16.

    Raises:
        AssertionError: they differ by more than this module says.
    """
    assert images.dtype == expected.dtype == torch.uint8
    assert images.shape == expected.shape
    difference = (images.int() - expected.int()).abs()
    mean = difference.float().mean().item()
    if dtype == torch.float32:
        assert difference.max() <= MAX_LEVELS_FP32, f"{difference.max()} gray levels"
    limit = MAX_MEAN_FP32 if dtype == torch.float32 else MAX_MEAN_BF16
    assert mean < limit, f"{mean} gray levels in the mean in {dtype}, expected less than {limit}"
