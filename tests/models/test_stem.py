"""STEM against its formulas in float64, and its independence of padding and other captions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.layers import ConditioningAugmentation
from mirrorgan_fast.models.stem import STEM, word_mask
from mirrorgan_fast.recipes import find_recipe

Match = Callable[[Tensor, Tensor], None]

VOCABULARY_SIZE = 23
CONFIG = MirrorGANConfig(embedding_size=10, word_embedding_size=7, condition_size=6)


def captions(lengths: list[int], width: int) -> tuple[Tensor, Tensor]:
    """Return random tokens (N, width) padded with 0, and their lengths (N,)."""
    tokens = torch.randint(1, VOCABULARY_SIZE, (len(lengths), width))
    for row, length in enumerate(lengths):
        tokens[row, length:] = 0
    return tokens, torch.tensor(lengths)


def lstm_states(lstm: nn.LSTM, x: np.ndarray, suffix: str) -> list[np.ndarray]:
    """Compute the hidden state after each input x (T, E) with the formulas of an LSTM."""
    w_ih, w_hh, b_ih, b_hh = (
        getattr(lstm, f"{name}_l0{suffix}").detach().double().numpy()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )

    def sigmoid(value: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-value))

    h = c = np.zeros(lstm.hidden_size)
    states = []
    for x_t in x:
        i, f, g, o = np.split(w_ih @ x_t + b_ih + w_hh @ h + b_hh, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return states


def test_parameters_of_the_authors_text_encoder() -> None:
    with torch.device("meta"):
        stem = STEM(find_recipe("cub").config, 5450)
    assert sum(p.numel() for p in stem.parameters()) == 2_075_320


def test_words_and_sentence_match_the_formulas(assert_matches: Match) -> None:
    torch.manual_seed(0)
    stem = STEM(CONFIG, VOCABULARY_SIZE).eval()
    lengths = [5, 1, 9, 3]
    tokens, length = captions(lengths, 9)
    words, sentence = stem(tokens, length)

    expected_words = np.zeros((4, 9, 10))
    expected_sentence = np.zeros((4, 10))
    embedding = stem.embedding.weight.detach().double().numpy()
    for n, count in enumerate(lengths):
        x = embedding[tokens[n, :count].numpy()]
        forwards = lstm_states(stem.lstm, x, "")
        backwards = lstm_states(stem.lstm, x[::-1], "_reverse")
        for t in range(count):
            expected_words[n, t] = np.concatenate([forwards[t], backwards[count - 1 - t]])
        expected_sentence[n] = np.concatenate([forwards[-1], backwards[-1]])
    assert_matches(words, torch.from_numpy(expected_words))
    assert_matches(sentence, torch.from_numpy(expected_sentence))


def test_features_do_not_depend_on_other_captions_or_padding() -> None:
    torch.manual_seed(1)
    stem = STEM(CONFIG, VOCABULARY_SIZE).eval()
    lengths = [4, 11, 1, 7]
    tokens, length = captions(lengths, 11)
    words, sentence = stem(tokens, length)
    for n, count in enumerate(lengths):
        alone_words, alone_sentence = stem(tokens[n : n + 1, :count], length[n : n + 1])
        torch.testing.assert_close(words[n, :count], alone_words[0])
        torch.testing.assert_close(sentence[n], alone_sentence[0])
        assert not words[n, count:].any()

    wider = nn.functional.pad(tokens, (0, 6))
    wider_words, wider_sentence = stem(wider, length)
    assert wider_words.shape == (4, 17, 10)
    torch.testing.assert_close(wider_words[:, :11], words)
    torch.testing.assert_close(wider_sentence, sentence)
    assert not wider_words[:, 11:].any()


def test_word_order_matters() -> None:
    torch.manual_seed(2)
    stem = STEM(CONFIG, VOCABULARY_SIZE).eval()
    _, sentences = stem(torch.tensor([[3, 5], [5, 3]]), torch.tensor([2, 2]))
    assert (sentences[0] - sentences[1]).abs().max() > 1e-3


def test_dropout_is_active_in_training_only() -> None:
    torch.manual_seed(3)
    stem = STEM(CONFIG, VOCABULARY_SIZE)
    tokens, lengths = captions([6, 2], 6)
    assert not torch.equal(stem(tokens, lengths)[1], stem(tokens, lengths)[1])
    stem.eval()
    assert torch.equal(stem(tokens, lengths)[1], stem(tokens, lengths)[1])


@pytest.mark.parametrize("width", [1, 4, 9])
def test_word_mask(width: int) -> None:
    lengths = [0, 1, 3, 4, 20]
    mask = word_mask(torch.tensor(lengths), width)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[place < length for place in range(width)] for length in lengths]


def test_conditioning_augmentation_matches_the_formulas(assert_matches: Match) -> None:
    torch.manual_seed(4)
    augment = ConditioningAugmentation(CONFIG)
    sentence, noise = torch.randn(5, 10), torch.randn(5, 6)
    s_ca, mu, log_var = augment(sentence, noise)

    linear = sentence.double() @ augment.linear.weight.double().T + augment.linear.bias.double()
    gated = linear[:, :12] / (1 + torch.exp(-linear[:, 12:]))
    assert_matches(mu, gated[:, :6])
    assert_matches(log_var, gated[:, 6:])
    sigma = torch.exp(gated[:, 6:]).sqrt()
    assert_matches(s_ca, gated[:, :6] + sigma * noise.double())


def test_without_noise_the_condition_is_its_mean() -> None:
    augment = ConditioningAugmentation(CONFIG)
    s_ca, mu, _ = augment(torch.randn(3, 10), torch.zeros(3, 6))
    assert torch.equal(s_ca, mu)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_data_type_does_not_depend_on_the_lengths(dtype: torch.dtype) -> None:
    """Under autocast; PyTorch's LSTM has another one if all captions are of one length."""
    stem = STEM(CONFIG, 9).eval()
    tokens = torch.ones(3, 5, dtype=torch.int64)
    for lengths in ([4, 4, 4], [5, 1, 3]):
        with torch.autocast("cpu", dtype):
            words, sentence = stem(tokens, torch.tensor(lengths))
        assert words.dtype == sentence.dtype == torch.float32
