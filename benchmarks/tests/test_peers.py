"""What is measured beside ours gives the model's images, and other images are noticed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import peers
from benchmarks.cub_model import Inputs, inputs_of
from mirrorgan_fast.inference.packing import fastest_dtype
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from tests.small import SMALL, small_model

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def model() -> MirrorGAN:
    model = small_model()
    with torch.no_grad():
        model.stem.embedding.weight.mul_(30)  # otherwise words would hardly matter
    return model


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        pytest.param(
            lambda path, inputs, dtype: peers.with_onnx_runtime(path, inputs),
            FP32,
            marks=peers.needs(peers.ONNX_RUNTIME),
            id="onnxruntime",
        ),
        pytest.param(
            peers.with_openvino, FP32, marks=peers.needs(peers.OPENVINO), id="openvino-float32"
        ),
        pytest.param(
            peers.with_openvino,
            BF16,
            marks=[
                peers.needs(peers.OPENVINO),
                pytest.mark.skipif(fastest_dtype() != BF16, reason="no products of bfloat16"),
            ],
            id="openvino-bfloat16",
        ),
    ],
)
def test_each_gives_the_images_of_the_model(
    model: MirrorGAN,
    exported: Path,
    make: Callable[[Path, Inputs, torch.dtype], peers.Render],
    dtype: torch.dtype,
    batch: int,
) -> None:
    inputs = inputs_of(model, batch, SMALL.caption_length)
    peers.check_images(make(exported, inputs, dtype)(), model.render(*inputs), dtype)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_images_of_other_captions_are_noticed(model: MirrorGAN, dtype: torch.dtype) -> None:
    tokens, *others = inputs_of(model, 2, SMALL.caption_length)
    expected = model.render(tokens, *others)
    peers.check_images(expected, expected, dtype)
    with pytest.raises(AssertionError, match="gray levels"):
        peers.check_images(model.render(tokens.flip(0), *others), expected, dtype)


def test_what_is_not_installed_is_named() -> None:
    mark = peers.needs({"torch", "no_such_package"})
    assert mark.args == (True,)
    assert mark.kwargs["reason"] == ("needs no_such_package: pip install 'mirrorgan-fast[peers]'")
    assert peers.needs({"torch"}).args == (False,)
