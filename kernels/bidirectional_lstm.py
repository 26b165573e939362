"""The recurrence of a bidirectional LSTM in one launch, for `ops/bidirectional_lstm.py`.

A program processes one direction of some captions. The products are computed in tf32, the default
of PyTorch's LSTM: in float32 the weights would spill registers.
"""

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from mirrorgan_fast.kernels.settings import lstm, power_of_two

MAX_UNITS = 128
"""The weights of more units do not fit into a multiprocessor."""


@triton.jit
def bidirectional_lstm_kernel(
    gates_ptr,  # (vocabulary, 2, 4 UNITS)
    tokens_ptr,  # (captions, words)
    lengths_ptr,  # (captions,)
    recurrent_ptr,  # (2, UNITS, 4 UNITS)
    states_ptr,  # (captions, words, 2, UNITS)
    last_ptr,  # (captions, 2, UNITS)
    vocabulary,
    captions,
    words,
    UNITS: tl.constexpr,
    B: tl.constexpr,
    H: tl.constexpr,
):
    """Write all states of B captions in one direction."""
    direction = tl.program_id(0) % 2
    caption = (tl.program_id(0) // 2).to(tl.int64) * B + tl.arange(0, B)
    exists = caption < captions
    length = tl.load(lengths_ptr + caption, mask=exists, other=0)
    length = tl.minimum(length, words).to(tl.int32)
    unit = tl.arange(0, H)
    inside = exists[:, None] & (unit < UNITS)[None, :]
    hidden = tl.zeros((B, H), tl.float32)
    cell = tl.zeros((B, H), tl.float32)
    for step in range(words):
        on = step < length  # whether the caption has a word at this step
        # After a caption's last word both directions write zeros at the current step.
        word = tl.where(on & (direction == 1), length - 1 - step, step)
        position = caption * words + word
        token = tl.load(tokens_ptr + position, mask=on, other=0)
        # Raising an error would have to wait for the GPU, so unknown tokens read zeros.
        known = on & (token >= 0) & (token < vocabulary)
        row = token * 2 + direction
        i = gate(0, gates_ptr, recurrent_ptr, row, known, hidden, unit, direction, UNITS, B, H)
        f = gate(1, gates_ptr, recurrent_ptr, row, known, hidden, unit, direction, UNITS, B, H)
        g = gate(2, gates_ptr, recurrent_ptr, row, known, hidden, unit, direction, UNITS, B, H)
        o = gate(3, gates_ptr, recurrent_ptr, row, known, hidden, unit, direction, UNITS, B, H)
        new = tl.sigmoid(f) * cell + tl.sigmoid(i) * tanh(g)
        cell = tl.where(on[:, None], new, cell)
        hidden = tl.where(on[:, None], tl.sigmoid(o) * tanh(new), hidden)
        tl.store(
            states_ptr + (position * 2 + direction)[:, None] * UNITS + unit[None, :],
            tl.where(on[:, None], hidden, 0.0),
            mask=inside,
        )
    tl.store(
        last_ptr + (caption * 2 + direction)[:, None] * UNITS + unit[None, :], hidden, mask=inside
    )


@triton.jit
def gate(
    which: tl.constexpr,
    gates_ptr,
    recurrent_ptr,
    row,
    known,
    hidden,
    unit,
    direction,
    UNITS: tl.constexpr,
    B: tl.constexpr,
    H: tl.constexpr,
):
    """Return W x + b + U h of one gate, (B, H). The gates are stored in groups of 16 units."""
    column = unit // 16 * 64 + which * 16 + unit % 16
    present = unit < UNITS
    word = tl.load(
        gates_ptr + row[:, None] * (4 * UNITS) + column[None, :],
        mask=known[:, None] & present[None, :],
        other=0.0,
    )
    weight = tl.load(
        recurrent_ptr + (direction * UNITS + unit)[:, None] * (4 * UNITS) + column[None, :],
        mask=present[:, None] & present[None, :],
        other=0.0,
    )
    return tl.dot(hidden, weight, word, input_precision="tf32")


@triton.jit
def tanh(x):
    """Return the hyperbolic tangent, 2 sigmoid(2x) - 1."""
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton_op("mirrorgan::bidirectional_lstm_triton", mutates_args=("states", "last"))
def bidirectional_lstm_triton(
    gates: Tensor, tokens: Tensor, lengths: Tensor, recurrent: Tensor, states: Tensor, last: Tensor
) -> None:
    """Implement `mirrorgan_fast.ops.bidirectional_lstm` for weights in the layout ``rows``."""
    (captions, words), (vocabulary, _, columns) = tokens.shape, gates.shape
    setting = lstm()
    if captions:
        wrap_triton(bidirectional_lstm_kernel)[(2 * triton.cdiv(captions, setting.rows),)](
            gates.contiguous(),
            tokens.contiguous(),
            lengths.contiguous(),
            recurrent,
            states,
            last,
            vocabulary,
            captions,
            words,
            UNITS=columns // 4,
            B=setting.rows,
            H=power_of_two(columns // 4),
            num_warps=setting.warps,
            num_stages=setting.stages,
        )
