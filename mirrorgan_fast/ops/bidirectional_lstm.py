"""The recurrence of a bidirectional LSTM, for STEM in inference.

    i, f, o = sigmoid(W x + U h + b),   g = tanh(W x + U h + b)
    c = f c + i g,   h = o tanh(c)

One direction goes from the first word of each caption to its last, the other from the last word to
the first, as in PyTorch's LSTM. W x + b is computed beforehand for every word of the vocabulary and
looked up here. What remains is U h, one small product per word. In separate calls to PyTorch most
of the time would be spent on the calls.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.ops.checks import at_hand, refuse
from mirrorgan_fast.ops.choice import REFERENCE, TRITON, needs_grad, run_reference
from mirrorgan_fast.ops.inference_op import inference_op
from mirrorgan_fast.ops.packing import Layout, choose_packed, layout_on, pack, unpack

_NAME = "bidirectional_lstm"
_GROUP, _TILE = 16, 32  # units


class PackedLSTM(NamedTuple):
    """The weights of a bidirectional LSTM, with H units padded to H', a multiple of 32."""

    weight: Tensor
    """W of both directions, packed for `conv_add` as a 1x1 convolution with 8H' output channels."""
    bias: Tensor
    """b of both directions, (8H',)."""
    recurrent: Tensor
    """U of both directions, for `bidirectional_lstm`."""
    units: int
    """H."""


def pack_lstm(
    lstm: nn.LSTM, layout: Layout | None = None, dtype: torch.dtype = torch.float32
) -> PackedLSTM:
    """Pack the weights of an LSTM.

    The units form groups of 16. The input, forget, cell and output gates of the first group come
    first, then those of the next group.

    Args:
        lstm: One bidirectional layer with biases.
        layout: A layout of ``pack``. None: the one for the LSTM's device.
        dtype: Data type of U in the layout ``tiles``, float32 or bfloat16. All else is float32.

    Raises:
        InputError: It has several layers, one direction, no bias, or a projection.
    """
    if lstm.num_layers != 1 or not lstm.bidirectional or not lstm.bias or lstm.proj_size:
        raise InputError(
            f"pack_lstm: lstm: found {lstm}, wanted one bidirectional layer with biases"
        )
    if layout is None:
        layout = layout_on(next(lstm.parameters()).device)
    options: Any = {"glu": False, "upsample": False, "layout": layout}
    weights, biases, recurrents = [], [], []
    for suffix in ("", "_reverse"):
        W, U, b, b_h = (
            getattr(lstm, f"{name}_l0{suffix}").detach().float()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        weights.append(_group_gates(W))
        biases.append(_group_gates((b + b_h)[:, None])[:, 0])
        U = functional.pad(_group_gates(U), (0, -U.shape[1] % _TILE))[:, :, None, None]
        recurrents.append(pack(U, dtype=dtype if layout == "tiles" else torch.float32, **options))
    weight = torch.cat(weights)[:, :, None, None]
    return PackedLSTM(
        pack(weight, dtype=torch.float32, **options),
        torch.cat(biases),
        torch.cat(recurrents),
        lstm.hidden_size,
    )


def bidirectional_lstm(
    gates: Tensor,  # (V, 2, 4H)
    tokens: Tensor,  # (N, T)
    lengths: Tensor,  # (N,)
    recurrent: Tensor,  # packed
) -> tuple[Tensor, Tensor]:
    """Run both directions of an LSTM over captions of different lengths.

    For inference: if a gradient is needed, the reference runs. A caption's result depends only on
    that caption. The products U h are computed in U's data type and summed in float32; everything
    else is float32. On a GPU the products are computed in tf32, the default of PyTorch's LSTM.

    Args:
        gates: W x + b of each vocabulary word in both directions, float32, in the order of
            `pack_lstm`. H is a multiple of 32.
        tokens: int64, the words of the captions, each 0 to V - 1.
        lengths: int64, the number of words of each caption, 0 to T. Tokens after them are not read.
        recurrent: From `pack_lstm`, float32, or bfloat16 in the layout ``tiles``.

    Returns:
        The states h of all words (N, T, 2, H), zero after a caption's last word, and the last state
        of each direction (N, 2, H), zero for a caption without words.

    Raises:
        InputError: Shapes, data types or devices do not match.
    """
    units = gates.shape[-1] // 4
    if gates.dim() != 3 or gates.dtype != torch.float32 or gates.shape[1:] != (2, 4 * units):
        refuse(_NAME, "gates", gates, "float32 of shape (V, 2, 4H)")
    if units == 0 or units % _TILE:
        refuse(_NAME, "gates", gates, f"a multiple of {_TILE} units, as from pack_lstm()")
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        refuse(_NAME, "tokens", tokens, "int64 of shape (N, T)")
    if lengths.shape != tokens.shape[:1] or lengths.dtype != torch.int64:
        refuse(_NAME, "lengths", lengths, f"int64 of shape ({len(tokens)},)")
    tiles = (2, 4 * units // _TILE, 1, units // _TILE, 2)
    shapes = {
        torch.float32: ((*tiles, _TILE, _GROUP), (2, 1, units, 4 * units)),
        torch.bfloat16: ((*tiles, _GROUP, _TILE),),
    }
    if recurrent.shape not in shapes.get(recurrent.dtype, ()):
        refuse(
            _NAME,
            "recurrent",
            recurrent,
            f"float32 (or bfloat16 in tiles) from pack_lstm() for {units} units",
        )
    for name, tensor in (("tokens", tokens), ("lengths", lengths), ("recurrent", recurrent)):
        if tensor.device != gates.device:
            refuse(_NAME, name, tensor, f"device {gates.device}, as gates")
    if not recurrent.is_contiguous():
        refuse(_NAME, "recurrent", recurrent, "a contiguous tensor")

    differentiated = needs_grad(gates, recurrent)
    implementation = choose_packed(_NAME, gates, recurrent, needs_grad=differentiated)
    if implementation == TRITON:
        from mirrorgan_fast.kernels.bidirectional_lstm import MAX_UNITS, bidirectional_lstm_triton

        if units > MAX_UNITS:
            implementation = REFERENCE
    if implementation == REFERENCE:
        _check_values(tokens, lengths, len(gates))
        return run_reference(reference, gates, tokens, lengths, recurrent)
    states = gates.new_empty(*tokens.shape, 2, units)
    last = gates.new_empty(len(tokens), 2, units)
    if implementation == TRITON:
        bidirectional_lstm_triton(gates, tokens, lengths, recurrent, states, last)
    else:
        _op(gates, tokens, lengths, recurrent, states, last)
    return states, last


def _check_values(tokens: Tensor, lengths: Tensor, vocabulary: int) -> None:
    """Check the values of tokens and lengths, as the compiled op does, unless they are on a GPU."""
    if not at_hand(tokens):
        return
    words = tokens.shape[1]
    read = tokens[torch.arange(words) < lengths[:, None]]
    for name, values, maximum, symbol in (
        ("lengths", lengths, words, "T"),
        ("tokens", read, vocabulary - 1, "V - 1"),
    ):
        wrong = values[(values < 0) | (values > maximum)]
        if len(wrong):
            raise InputError(f"{_NAME}: {name}: found {wrong[0]}, wanted 0 to {symbol}")


def reference(
    gates: Tensor,  # (V, 2, 4H)
    tokens: Tensor,  # (N, T)
    lengths: Tensor,  # (N,)
    recurrent: Tensor,  # packed
) -> tuple[Tensor, Tensor]:
    """Define `bidirectional_lstm` in plain PyTorch. Same arguments, not checked."""
    (batch, words), columns = tokens.shape, gates.shape[2]
    units = columns // 4
    U = unpack(recurrent, units, columns, glu=False).to(gates.dtype).flatten(2)  # (2, 4H, H)
    hidden = cell = gates.new_zeros(batch, 2, units)
    positions = torch.arange(words, device=gates.device)
    states = gates.new_zeros(batch, words, 2, units)
    # Tokens after a caption's last word may have any value.
    gates = gates[torch.where(positions < lengths[:, None], tokens, 0)]  # (N, T, 2, 4H)
    for step in range(words):
        # the position of each direction
        current = torch.stack((torch.full_like(lengths, step), lengths - 1 - step), dim=1)
        at = current[:, None] == positions[:, None]  # (N, T, 2)
        at = at & (step < lengths)[:, None, None]
        word = torch.where(at[..., None], gates, 0).sum(dim=1)
        all_gates = word + torch.einsum("ndh,dgh->ndg", hidden, U)
        i, f, g, o = all_gates.unflatten(2, (-1, 4, _GROUP)).unbind(dim=3)
        new_cell = f.flatten(2).sigmoid() * cell + (i.sigmoid() * g.tanh()).flatten(2)
        new_hidden = o.flatten(2).sigmoid() * new_cell.tanh()
        has_word = (step < lengths)[:, None, None]
        cell = torch.where(has_word, new_cell, cell)
        hidden = torch.where(has_word, new_hidden, hidden)
        states = torch.where(at[..., None], hidden[:, None], states)
    return states, hidden


def _group_gates(rows: Tensor) -> Tensor:
    """Reorder the rows (4H, ...) of PyTorch's gates by groups of units, padded to 4H' rows."""
    gates = rows.unflatten(0, (4, -1))
    gates = functional.pad(gates, (0, 0, 0, -gates.shape[1] % _TILE))
    ordered: Tensor = gates.unflatten(1, (-1, _GROUP)).transpose(0, 1).flatten(0, 2)
    return ordered


@inference_op(_NAME, writes=("states", "last"))
def _op(
    gates: Tensor, tokens: Tensor, lengths: Tensor, recurrent: Tensor, states: Tensor, last: Tensor
) -> None:
    # The CPU implementation is csrc/cpu/bidirectional_lstm.cpp.
    results = reference(gates, tokens, lengths, recurrent)
    for out, result in zip((states, last), results, strict=True):
        out.copy_(result)
