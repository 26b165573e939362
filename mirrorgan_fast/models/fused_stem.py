"""STEM for inference: one product for all words, then one op from word to word."""

import torch
from torch import Tensor

from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.ops import Layout, bidirectional_lstm, conv_add, pack_lstm


class FusedSTEM:
    """A text encoder's features in inference, the same bits for a caption in any company.

    A copy: ``stem`` is not changed, and what it learns later is not in here.
    """

    def __init__(self, stem: STEM, layout: Layout | None = None) -> None:
        self.embedding = stem.embedding.weight.detach().float().clone()
        self.lstm = pack_lstm(stem.lstm, layout)

    @torch.no_grad()
    def __call__(
        self,
        tokens: Tensor,  # (N, T)
        lengths: Tensor,  # (N,)
    ) -> tuple[Tensor, Tensor]:
        """Return words (N, T, D) and sentence (N, D); the arguments are those of ``STEM``."""
        words = self.embedding[tokens.flatten()].T[None, :, :, None]  # the pixels of one map
        gates = conv_add(words, self.lstm.weight, self.lstm.bias)[0, :, :, 0].T
        states, last = bidirectional_lstm(
            gates.view(*tokens.shape, 2, -1), lengths.to(gates.device), self.lstm.recurrent
        )
        units = self.lstm.units
        return states[..., :units].flatten(2), last[..., :units].flatten(1)
