"""STREAM against its formulas, what each prediction depends on, and beam search."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.backbones.resnet152 import ResNet152
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.stream import STREAM
from mirrorgan_fast.recipes import find_recipe

Match = Callable[[Tensor, Tensor], None]

VOCABULARY_SIZE = 13
CONFIG = MirrorGANConfig(
    embedding_size=6,
    caption_length=7,
    image_encoder="small",
    stream_encoder="small",
    stream_hidden_size=9,
)


@pytest.fixture
def stream() -> STREAM:
    torch.manual_seed(0)
    return STREAM(CONFIG, VOCABULARY_SIZE).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, VOCABULARY_SIZE, (3, 7), generator=torch.Generator().manual_seed(2))


def test_parameters_of_the_authors_captioner() -> None:
    with torch.device("meta"):
        stream = STREAM(find_recipe("cub").config, 5450)
    cnn = [stream.cnn, stream.image_linear, stream.image_norm]
    rnn = [stream.embedding, stream.lstm, stream.word_linear]
    counts = [sum(p.numel() for m in part for p in m.parameters()) for part in (cnn, rnn)]
    assert counts == [58_668_864, 5_768_010]
    assert sum(p.numel() for p in stream.parameters()) == sum(counts)


def test_shapes_with_resnet() -> None:
    with torch.device("meta"):
        stream = STREAM(find_recipe("cub").config, 50)
        logits = stream(torch.zeros(2, 3, 256, 256), torch.zeros(2, 18, dtype=torch.int64))
    assert logits.shape == (2, 18, 50)


def test_predictions_match_the_formulas(
    assert_matches: Match, stream: STREAM, image: Tensor, tokens: Tensor
) -> None:
    logits = stream(image, tokens)
    assert logits.shape == (3, 7, VOCABULARY_SIZE)

    features = stream.encode(image).double()
    stream.double()
    lstm = stream.lstm
    for n in range(3):
        h = c = torch.zeros(9, dtype=torch.float64)
        x = features[n]
        for t in range(7):
            gates = (
                lstm.weight_ih_l0 @ x + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0
            )
            i, f, g, o = gates.view(4, 9)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            expected = stream.word_linear.weight @ h + stream.word_linear.bias
            assert_matches(logits[n, t].detach(), expected.detach())
            x = stream.embedding.weight[tokens[n, t]]


def test_a_prediction_depends_only_on_the_words_before_it(
    stream: STREAM, image: Tensor, tokens: Tensor
) -> None:
    logits = stream(image, tokens)
    for t in range(7):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 5) % VOCABULARY_SIZE
        difference = (stream(image, changed) - logits).abs().amax(dim=(0, 2))
        assert difference[: t + 1].max() == 0
        assert (difference[t + 1 :] > 1e-6).all()


def test_a_prediction_depends_only_on_its_own_image(
    stream: STREAM, image: Tensor, tokens: Tensor
) -> None:
    logits = stream(image, tokens)
    changed = image.clone()
    changed[1] = -changed[1]
    moved = stream(changed, tokens)
    assert (moved[1] - logits[1]).abs().amax(dim=1).min() > 1e-6
    torch.testing.assert_close(moved[[0, 2]], logits[[0, 2]])
    torch.testing.assert_close(stream(image[2:], tokens[2:]), logits[2:])


@pytest.mark.parametrize("size", [16, 64, 128, 200])
def test_images_of_any_size(stream: STREAM, size: int) -> None:
    assert stream.encode(torch.rand(2, 3, size, size) * 2 - 1).shape == (2, 6)


@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_one_beam_picks_the_likeliest_word_at_each_step(image: Tensor, seed: int) -> None:
    torch.manual_seed(seed)
    stream = STREAM(CONFIG, VOCABULARY_SIZE).eval()
    stream.word_linear.weight.mul_(20)  # otherwise it repeats one word
    tokens = stream.describe(image, beams=1)
    assert tokens.dtype == torch.int64
    assert tokens.shape == (3, CONFIG.caption_length)
    for n in range(3):
        said: list[int] = []
        while len(said) < CONFIG.caption_length and said[-1:] != [0]:
            prefix = torch.tensor([[*said, 0]])  # the value of the last one has no effect
            said.append(int(stream(image[n : n + 1], prefix)[0, -1].argmax()))
        said += [0] * (CONFIG.caption_length - len(said))
        assert tokens[n].tolist() == said


@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_enough_beams_find_the_likeliest_description(image: Tensor, seed: int) -> None:
    torch.manual_seed(seed)
    words, length = 5, 4
    stream = STREAM(dataclasses.replace(CONFIG, caption_length=length), words).eval()
    stream.word_linear.weight.mul_(20)
    every = torch.cartesian_prod(*[torch.arange(words)] * length)
    ended = functional.pad((every == 0).cumsum(dim=1)[:, :-1] > 0, (1, 0))  # ended before this word
    allowed = ~((every != 0) & ended).any(dim=1)
    every, ended = every[allowed], ended[allowed]
    for n in range(3):
        logits = stream(image[n : n + 1].expand(len(every), -1, -1, -1), every)
        chosen = logits.log_softmax(dim=2).gather(2, every[..., None])[..., 0]
        likelihood = chosen.masked_fill(ended, 0).sum(dim=1)
        best = every[likelihood.argmax()]
        assert stream.describe(image[n : n + 1], beams=len(every))[0].tolist() == best.tolist()


def test_zero_beams_are_refused(stream: STREAM, image: Tensor) -> None:
    with pytest.raises(InputError, match="beams is 0, expected 1 or more"):
        stream.describe(image, beams=0)


class Scripted(nn.Module):
    """Replaces the last layer: makes the given words the likeliest, one row (N,) per step."""

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.words = iter(words)

    def forward(self, states: Tensor) -> Tensor:
        return functional.one_hot(next(self.words), VOCABULARY_SIZE).float()


def test_no_word_follows_the_end_token(stream: STREAM, image: Tensor) -> None:
    words = torch.tensor(
        [[3, 0, 4], [0, 5, 4], [6, 6, 4], [0, 0, 4], [7, 0, 4], [7, 8, 9], [1, 1, 1]]
    )
    stream.word_linear = Scripted(words)
    assert stream.describe(image, beams=1).tolist() == [
        [3, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [4, 4, 4, 4, 4, 9, 1],
    ]


def test_a_backbone_with_published_weights_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(ResNet152, "load", lambda self, path: loaded.append(path))
    config = dataclasses.replace(CONFIG, stream_encoder="resnet152")
    with torch.device("meta"):
        stream = STREAM(config, VOCABULARY_SIZE, "resnet152.pth")
        from_nothing = STREAM(config, VOCABULARY_SIZE)
    assert loaded == ["resnet152.pth"]
    assert not any(p.requires_grad for p in stream.cnn.parameters())
    assert all(p.requires_grad for p in stream.image_linear.parameters())
    assert all(p.requires_grad for p in from_nothing.parameters())
