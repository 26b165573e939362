"""STEM, the semantic text embedding module: captions to word and sentence features."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mirrorgan_fast.models.config import TextToImageConfig
from mirrorgan_fast.models.layers import LSTM, Dropout
from mirrorgan_fast.ops.wide import wide


class STEM(nn.Module):
    """Text encoder: a one-layer bidirectional LSTM (MirrorGAN, eq. 1; AttnGAN's text encoder).

    The word features are the concatenated hidden states of both directions; the sentence feature
    is the last state of each.
    """

    def __init__(self, config: TextToImageConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, config.word_embedding_size)
        self.dropout = Dropout(config.text_dropout)
        self.lstm = LSTM(
            config.word_embedding_size,
            config.embedding_size // 2,
            batch_first=True,
            bidirectional=True,
        )
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(
        self,
        tokens: Tensor,  # (N, T)
        lengths: Tensor,  # (N,)
    ) -> tuple[Tensor, Tensor]:
        """Encode captions.

        Args:
            tokens: int64 (N, T), padded with 0 behind each caption's words.
            lengths: int64 (N,), the words of each caption, 1 to T. PyTorch's LSTM needs them on the
                CPU; from a GPU they are copied, for which the host waits.

        Returns:
            words w (N, T, D), zero at the padding, and sentence s (N, D).
        """
        packed = nn.utils.rnn.pack_padded_sequence(
            self.dropout(self.embedding(tokens)),
            lengths.cpu(),
            batch_first=True,
            enforce_sorted=False,
        )
        states, (last, _) = self.lstm(packed)
        words, _ = nn.utils.rnn.pad_packed_sequence(
            states, batch_first=True, total_length=tokens.shape[1]
        )
        sentence = last.transpose(0, 1).flatten(1)
        if torch.is_autocast_enabled(tokens.device.type):
            # PyTorch's LSTM returns bfloat16 if all captions have one length, else float32.
            # Processes that share a batch must agree on it.
            return wide(words), wide(sentence)
        return words, sentence


def read_text(
    stem: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None, *text: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a generator is told of texts.

    Args:
        stem: a STEM, or what does the same; None in a model that reads text vectors.
        text: tokens (N, T) and lengths (N,), as for STEM; without STEM, vectors (N, D).

    Returns:
        words w (N, T, D), their mask (N, T), and sentence s (N, D). A vector is the sentence, and
        has no words: T is 0.
    """
    if stem is None:
        (sentence,) = text
        words = sentence[:, None][:, :0]
        return words, words[:, :, 0].bool(), sentence
    tokens, lengths = text
    words, sentence = stem(tokens, lengths)
    return words, word_mask(lengths, tokens.shape[1]), sentence


def word_mask(lengths: Tensor, caption_length: int) -> Tensor:
    """Return bool (N, T), true at the words of captions of the given ``lengths`` (N,)."""
    return torch.arange(caption_length, device=lengths.device) < lengths[:, None]
