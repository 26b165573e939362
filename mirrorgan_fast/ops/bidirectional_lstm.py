"""What a bidirectional LSTM does from word to word: STEM's, for inference.

    i, f, o = sigmoid(W x + U h + b),   g = tanh(W x + U h + b)
    c = f c + i g,   h = o tanh(c)

from the first word of each caption to its last, and from its last to its first (PyTorch's LSTM).
What a word contributes, W x + b, is known for each word of a vocabulary and is only looked up; U h
is one small product a word, which takes little but calls.
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
_TOGETHER, _TILE = 16, 32


class PackedLSTM(NamedTuple):
    """The weights of a bidirectional LSTM; its H units are filled up to H', whole tiles of 32."""

    weight: Tensor
    """W of both directions, packed for `conv_add` with a 1x1 kernel of 8H' channels."""
    bias: Tensor
    """b of both, (8H',)."""
    recurrent: Tensor
    """U of both, for `bidirectional_lstm`."""
    units: int
    """H."""


def pack_lstm(
    lstm: nn.LSTM, layout: Layout | None = None, dtype: torch.dtype = torch.float32
) -> PackedLSTM:
    """Pack the weights of an LSTM in a layout of ``pack``, in float32; in tiles U in ``dtype``.

    The gates are ordered by units in groups of 16: input, forget, cell and output gate of the first
    group, then those of the next.

    Raises:
        InputError: it has several layers, one direction, no bias, or a projection.
    """
    if lstm.num_layers != 1 or not lstm.bidirectional or not lstm.bias or lstm.proj_size:
        raise InputError(
            f"pack_lstm: lstm: found {lstm}, wanted one layer of two directions with biases"
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
        weights.append(_by_groups(W))
        biases.append(_by_groups((b + b_h)[:, None])[:, 0])
        U = functional.pad(_by_groups(U), (0, -U.shape[1] % _TILE))[:, :, None, None]
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
    """Run both directions of an LSTM over captions of several lengths.

    For inference; where a gradient is needed the reference runs. A caption's result depends on that
    caption alone. Products U h are of U's data type and summed in float32, in which everything else
    is; on a GPU they are of tf32, as those of PyTorch's LSTM are by default.

    Args:
        gates: W x + b of each word of a vocabulary in both directions, float32, ordered as by
            `pack_lstm`.
        tokens: int64, the words of captions, 0 to V - 1.
        lengths: int64, the words of each caption, 0 to T; what stands behind them is not read.
        recurrent: from `pack_lstm`, float32 or, in tiles, bfloat16; it has H, a multiple of 32.

    Returns:
        states h of each word (N, T, 2, H), zero behind a caption's words, and each direction's last
        (N, 2, H), zero where there is no word.

    Raises:
        InputError: shapes, data types or devices do not fit together.
    """
    units = gates.shape[-1] // 4
    if gates.dim() != 3 or gates.dtype != torch.float32 or gates.shape[1:] != (2, 4 * units):
        refuse(_NAME, "gates", gates, "float32 of shape (V, 2, 4H)")
    if units == 0 or units % _TILE:
        refuse(_NAME, "gates", gates, f"a multiple of {_TILE} units, as pack_lstm() makes them")
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        refuse(_NAME, "tokens", tokens, "int64 of shape (N, T)")
    if lengths.shape != tokens.shape[:1] or lengths.dtype != torch.int64:
        refuse(_NAME, "lengths", lengths, f"int64 of shape ({len(tokens)},)")
    tiles = (2, 4 * units // _TILE, 1, units // _TILE, 2)
    shapes = {
        torch.float32: ((*tiles, _TILE, _TOGETHER), (2, 1, units, 4 * units)),
        torch.bfloat16: ((*tiles, _TOGETHER, _TILE),),
    }
    if recurrent.shape not in shapes.get(recurrent.dtype, ()):
        refuse(
            _NAME,
            "recurrent",
            recurrent,
            f"float32 (in tiles: or bfloat16), what pack_lstm() makes for {units} units",
        )
    for name, tensor in (("tokens", tokens), ("lengths", lengths), ("recurrent", recurrent)):
        if tensor.device != gates.device:
            refuse(_NAME, name, tensor, f"device {gates.device}, that of gates")
    if not recurrent.is_contiguous():
        refuse(_NAME, "recurrent", recurrent, "a contiguous tensor")

    differentiated = needs_grad(gates, recurrent)
    implementation = choose_packed(_NAME, gates, recurrent, needs_grad=differentiated)
    if implementation == TRITON:
        from mirrorgan_fast.kernels.bidirectional_lstm import MOST_UNITS, bidirectional_lstm_triton

        if units > MOST_UNITS:
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
    """Check words and lengths as the compiled op does, where it does not have to wait for them."""
    if not at_hand(tokens):
        return
    words = tokens.shape[1]
    read = tokens[torch.arange(words) < lengths[:, None]]
    for name, values, most, said in (
        ("lengths", lengths, words, "T"),
        ("tokens", read, vocabulary - 1, "V - 1"),
    ):
        wrong = values[(values < 0) | (values > most)]
        if len(wrong):
            raise InputError(f"{_NAME}: {name}: found {wrong[0]}, wanted 0 to {said}")


def reference(
    gates: Tensor,  # (V, 2, 4H)
    tokens: Tensor,  # (N, T)
    lengths: Tensor,  # (N,)
    recurrent: Tensor,  # packed
) -> tuple[Tensor, Tensor]:
    """What `bidirectional_lstm` means, in plain PyTorch; same arguments, trusted."""
    (batch, words), columns = tokens.shape, gates.shape[2]
    units = columns // 4
    U = unpack(recurrent, units, columns, glu=False).to(gates.dtype).flatten(2)  # (2, 4H, H)
    hidden = cell = gates.new_zeros(batch, 2, units)
    places = torch.arange(words, device=gates.device)
    states = gates.new_zeros(batch, words, 2, units)
    # Behind a caption's words may stand anything.
    gates = gates[torch.where(places < lengths[:, None], tokens, 0)]  # (N, T, 2, 4H)
    for step in range(words):
        reads = (
            torch.full_like(lengths, step),
            lengths - 1 - step,
        )  # the word that each direction is at
        at = torch.stack(reads, dim=1)[:, None] == places[:, None]  # (N, T, 2)
        at = at & (step < lengths)[:, None, None]
        word = torch.where(at[..., None], gates, 0).sum(dim=1)
        all_gates = word + torch.einsum("ndh,dgh->ndg", hidden, U)
        i, f, g, o = all_gates.unflatten(2, (-1, 4, _TOGETHER)).unbind(dim=3)
        new_cell = f.flatten(2).sigmoid() * cell + (i.sigmoid() * g.tanh()).flatten(2)
        new_hidden = o.flatten(2).sigmoid() * new_cell.tanh()
        on = (step < lengths)[:, None, None]
        cell, hidden = torch.where(on, new_cell, cell), torch.where(on, new_hidden, hidden)
        states = torch.where(at[..., None], hidden[:, None], states)
    return states, hidden


def _by_groups(rows: Tensor) -> Tensor:
    """Order the rows (4H, ...) of PyTorch's gates by groups, filled up to 4H' of them."""
    gates = rows.unflatten(0, (4, -1))
    gates = functional.pad(gates, (0, 0, 0, -gates.shape[1] % _TILE))
    ordered: Tensor = gates.unflatten(1, (-1, _TOGETHER)).transpose(0, 1).flatten(0, 2)
    return ordered


@inference_op(_NAME, writes=("states", "last"))
def _op(
    gates: Tensor, tokens: Tensor, lengths: Tensor, recurrent: Tensor, states: Tensor, last: Tensor
) -> None:
    # The CPU implementation is csrc/cpu/bidirectional_lstm.cpp.
    results = reference(gates, tokens, lengths, recurrent)
    for out, result in zip((states, last), results, strict=True):
        out.copy_(result)
