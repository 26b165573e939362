"""Layers: the LSTM under autocast, batch norms with an activation, and up-convolutions."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from mirrorgan_fast.models import layers
from mirrorgan_fast.models.layers import LSTM, BatchNormGLU, BatchNormLeakyReLU, UpConv2d


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_autocast_leaves_the_lstm_in_float32_where_bfloat16_fails(
    packed: bool, with_state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_WITHOUT_BFLOAT16", True)
    layer = LSTM(5, 7, batch_first=True)
    x = torch.randn(2, 3, 5)
    given = pack_sequence([x[0], x[1, :2]]) if packed else x
    state = (torch.randn(1, 2, 7), torch.randn(1, 2, 7)) if with_state else None
    expected, _ = layer(given, state)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = layer(given.to(torch.float32), state)
        narrow, _ = layer(given.to(torch.bfloat16), state)
    for a, b, c in zip(*((y if packed else [y]) for y in (found, expected, narrow)), strict=True):
        if a is not None and a.is_floating_point():
            assert a.dtype == c.dtype == torch.float32
            torch.testing.assert_close(a, b, rtol=0, atol=0)
            torch.testing.assert_close(c, b, rtol=2e-2, atol=2e-2)


def test_conversion_to_sync_batch_norm_keeps_the_activations() -> None:
    """The conversion replaces every batch norm; a subclass of one would lose its activation."""
    torch.manual_seed(0)
    block = nn.Sequential(BatchNormLeakyReLU(6), BatchNormGLU(6)).eval()
    x = torch.randn(4, 6, 5, 5)
    expected = block(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(block)
    assert torch.equal(converted(x), expected)
    assert expected.shape == (4, 3, 5, 5)


@pytest.mark.parametrize("norm", [BatchNormLeakyReLU, BatchNormGLU])
def test_a_norm_has_the_state_dict_of_a_batch_norm(norm: Any) -> None:
    torch.manual_seed(1)
    ours, theirs = norm(6), nn.BatchNorm2d(6)
    for _ in range(3):
        x = 3 * torch.randn(4, 6, 5, 5) + 1
        ours(x), theirs(x)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("size", [8, 16, 33])
def test_taps_are_summed_in_float32_under_autocast(size: int) -> None:
    """If the weights were rounded first, their sums would be off by more than one rounding."""
    torch.manual_seed(2)
    layer = UpConv2d(5, 7, 3, padding=1, bias=False)
    x = torch.randn(2, 5, size, size).bfloat16().float()
    with torch.no_grad():
        exact = _upsampled(layer, x).double()
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(x).double()
    error = (found - exact).abs().max() / exact.abs().max()
    assert error < 2e-2
    summed = _sums_of(layer)
    assert summed.dtype == torch.float32


def _upsampled(layer: UpConv2d, x: Tensor) -> Tensor:
    wide = nn.functional.interpolate(x.double(), scale_factor=2.0, mode="nearest")
    return nn.functional.conv2d(wide, layer.weight.double(), padding=1)


def _sums_of(layer: UpConv2d) -> Tensor:
    """Return the weights that ``conv_transpose2d`` receives under autocast."""
    given: list[Tensor] = []
    transposed = nn.functional.conv_transpose2d

    def spy(x: Tensor, weight: Tensor, *options: Any) -> Tensor:
        given.append(weight)
        return transposed(x, weight, *options)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as to:
        to.setattr(nn.functional, "conv_transpose2d", spy)
        layer(torch.randn(1, 5, 16, 16))
    (weight,) = given
    rows = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.float64)
    exact = torch.einsum("ik,ockl,jl->coij", rows, layer.weight.double(), rows)
    torch.testing.assert_close(weight.double(), exact, rtol=1e-6, atol=1e-6)
    return weight
