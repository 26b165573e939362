"""STEM for inference: the gates of every word are computed once, and one op does the rest."""

import torch
from torch import Tensor

from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.ops import Layout, bidirectional_lstm, conv_add, instruction_set, pack_lstm


class FusedSTEM:
    """Computes a text encoder's features, with the same bits for a caption in every batch.

    The weights are copied: ``stem`` is not changed, and later changes to it have no effect here.
    The gates W x + b of every word of the vocabulary are computed once and kept: 4 KiB a word for
    features of 256. If ``dtype`` is bfloat16 and the processor has AMX, the recurrent products are
    in bfloat16. On other CPUs they stay in float32, because every call would have to convert the
    weights first.
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
