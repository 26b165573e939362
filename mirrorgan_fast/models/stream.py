"""STREAM, the semantic text regeneration and alignment module: the image described back."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.models.config import ModelConfig
from mirrorgan_fast.models.image_encoder import SmallImageEncoder
from mirrorgan_fast.models.resnet import ResNet152

_RESNET_INPUT_SIZE = 224


class STREAM(nn.Module):
    """A CNN encodes the image, an LSTM says what it sees (MirrorGAN, eq. 6).

    x_{-1} = CNN(I), x_t = W_e T_t, p_{t+1} = softmax(RNN(x_t)). The index 0 of the vocabulary
    ends a caption, so that a description knows where to stop.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary_size: int,
        backbone_weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.cnn: ResNet152 | SmallImageEncoder
        if config.stream_encoder == "resnet152":
            self.cnn = ResNet152(classifier=False)
            if backbone_weights is not None:
                self.cnn.load(backbone_weights)
                self.cnn.requires_grad_(False)
        else:
            self.cnn = SmallImageEncoder()
        self.caption_length = config.caption_length
        self.image_linear = nn.Linear(self.cnn.pooled_size, config.embedding_size)
        self.image_norm = nn.BatchNorm1d(config.embedding_size, momentum=0.01)
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size)
        self.lstm = nn.LSTM(config.embedding_size, config.stream_hidden_size, batch_first=True)
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
        """Do what ``forward`` does with what ``see`` has seen in the images."""
        x = torch.cat([self._first(pooled)[:, None], self.embedding(tokens[:, :-1])], dim=1)
        states, _ = self.lstm(x)
        logits: Tensor = self.word_linear(states)
        return logits

    @torch.no_grad()
    def describe(self, image: Tensor) -> Tensor:
        """Describe images (N, 3, S, S) in [-1, 1] with the likeliest word at each step.

        Returns:
            tokens int64 (N, caption_length), 0 from the end of each description on.
        """
        x = self.encode(image)
        ended = torch.zeros(len(image), dtype=torch.bool, device=image.device)
        state: tuple[Tensor, Tensor] | None = None
        tokens = []
        for _ in range(self.caption_length):
            output, state = self.lstm(x[:, None], state)
            word = self.word_linear(output[:, 0]).argmax(dim=1).masked_fill(ended, 0)
            tokens.append(word)
            ended = ended | (word == 0)
            x = self.embedding(word)
        return torch.stack(tokens, dim=1)

    def _first(self, pooled: Tensor) -> Tensor:
        x: Tensor = self.image_norm(self.image_linear(pooled))
        return x
