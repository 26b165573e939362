"""The fused text encoder: its features against the original encoder."""

import copy

import pytest
import torch

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.inference.fused_stem import FusedSTEM
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.ops import use


def stem_and_captions(size: int) -> tuple[STEM, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    stem = STEM(MirrorGANConfig(embedding_size=size, word_embedding_size=7), 50).eval()
    torch.nn.init.normal_(stem.embedding.weight)
    lengths = torch.tensor([5, 1, 3, 9, 9])
    tokens = torch.randint(1, 50, (5, 9))
    return stem, tokens * (torch.arange(9) < lengths[:, None]), lengths


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("size", [12, 64])
@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_features_match_the_original_encoder(implementation, size, dtype, tolerance):
    stem, tokens, lengths = stem_and_captions(size)
    with use(implementation):
        words, sentence = FusedSTEM(stem, dtype=dtype)(tokens, lengths)
    with torch.no_grad():
        exact_words, exact_sentence = stem.double()(tokens, lengths)
    assert (words - exact_words).abs().max() < tolerance
    assert (sentence - exact_sentence).abs().max() < tolerance


def test_features_are_bit_identical_in_any_batch():
    stem, tokens, lengths = stem_and_captions(64)
    fused = FusedSTEM(stem)
    words, sentence = fused(tokens, lengths)
    for n in range(5):
        alone = fused(tokens[n : n + 1], lengths[n : n + 1])
        assert torch.equal(alone[0][0], words[n])
        assert torch.equal(alone[1][0], sentence[n])


def test_the_encoder_is_not_changed_and_not_used_later():
    stem, tokens, lengths = stem_and_captions(64)
    before = copy.deepcopy(stem.state_dict())
    fused = FusedSTEM(stem)
    words = fused(tokens, lengths)[0]
    assert all(torch.equal(value, before[name]) for name, value in stem.state_dict().items())
    with torch.no_grad():
        for parameter in stem.parameters():
            parameter.zero_()
    assert torch.equal(fused(tokens, lengths)[0], words)


def test_tokens_must_be_integers():
    stem, tokens, lengths = stem_and_captions(12)
    fused = FusedSTEM(stem)
    assert all(map(torch.equal, fused(tokens.int(), lengths), fused(tokens, lengths)))
    with pytest.raises(InputError, match=r"tokens: found torch.float32 .* wanted int64"):
        fused(tokens.float(), lengths)
