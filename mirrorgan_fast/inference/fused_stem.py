"""STEM for inference: what each word contributes is known beforehand; one op does the rest."""

import torch
from torch import Tensor

from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.ops import Layout, bidirectional_lstm, conv_add, instruction_set, pack_lstm


class FusedSTEM:
    """A text encoder's features in inference, the same bits for a caption in any company.

    A copy: ``stem`` is not changed, and what it learns later is not in here. The gates of all words
    of the vocabulary, W x + b, are computed here once, and kept: 4 KiB a word for features of 256.
    With a ``dtype`` of bfloat16 the products from word to word are of it where AMX multiplies it;
    elsewhere on a CPU every call would widen the weights first.
    """

    def __init__(
        self, stem: STEM, layout: Layout | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        in_amx = instruction_set() == "amx"
        lstm = pack_lstm(stem.lstm, layout, dtype if in_amx else torch.float32)
        vocabulary = stem.embedding.weight.detach().float().T[None, :, :, None]  # pixels of one map
        gates = conv_add(vocabulary, lstm.weight, lstm.bias)[0, :, :, 0].T
        self.gates = gates.unflatten(1, (2, -1))  # (V, 2, 4H')
        self.recurrent = lstm.recurrent
        self.units = lstm.units

    @torch.no_grad()
    def __call__(
        self,
        tokens: Tensor,  # (N, T)
        lengths: Tensor,  # (N,)
    ) -> tuple[Tensor, Tensor]:
        """Return words (N, T, D) and sentence (N, D); the arguments are those of ``STEM``."""
        device = self.gates.device
        if tokens.dtype == torch.int32:
            tokens = tokens.long()
        states, last = bidirectional_lstm(
            self.gates, tokens.to(device), lengths.to(device), self.recurrent
        )
        return states[..., : self.units].flatten(2), last[..., : self.units].flatten(1)
