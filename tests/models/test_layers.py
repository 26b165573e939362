"""The LSTM where PyTorch has none in bfloat16, which is tried on every processor."""

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from mirrorgan_fast.models import layers
from mirrorgan_fast.models.layers import LSTM


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_autocast_leaves_it_in_float32_where_bfloat16_fails(
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
