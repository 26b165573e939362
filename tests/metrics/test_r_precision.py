"""R-precision: codes whose ranks are known, and which captions may be candidates."""

import numpy as np
import pytest
import torch

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.metrics.r_precision import CaptionPool, r_precision, sentence_similarity


def pool_of(sentences: torch.Tensor, texts: list[str] | None = None) -> CaptionPool:
    count = len(sentences)
    return CaptionPool(texts or [f"caption {i}" for i in range(count)], range(count), sentences)


def directions(*degrees: float) -> torch.Tensor:
    """Return vectors (N, 2) in these directions, of different lengths, which a cosine ignores."""
    angles = torch.deg2rad(torch.tensor(degrees))
    lengths = torch.linspace(0.5, 3, len(degrees))[:, None]
    return torch.stack([angles.cos(), angles.sin()], dim=1) * lengths


def test_the_rank_of_the_own_caption_decides() -> None:
    # The image is at 0 degrees and its caption at 30; two others, at 10 and -20, are nearer.
    pool = pool_of(directions(30, 10, -20, 40, 90, 180))
    code = directions(0)
    shares = r_precision(code, [0], pool, np.random.default_rng(0), candidates=6, repeats=3)
    assert shares == {1: 0.0, 2: 0.0, 3: 1.0}


def test_averages_over_images_and_ignores_lengths() -> None:
    pool = pool_of(directions(0, 50, 100, 150))
    codes = directions(5, 45, 60, 149) * 7  # the third is nearer to caption 1 than to its own
    shares = r_precision(codes, [0, 1, 2, 3], pool, np.random.default_rng(0), candidates=4)
    assert shares == {1: 0.75, 2: 1.0, 3: 1.0}


def test_matches_a_count_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    sentences, codes = (
        torch.randn(9, 5, generator=generator),
        torch.randn(4, 5, generator=generator),
    )
    own = [8, 0, 3, 3]
    shares = r_precision(codes, own, pool_of(sentences), np.random.default_rng(0), candidates=9)
    a, b = codes.double().numpy(), sentences.double().numpy()
    cosines = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    ranks = [sorted(-row).index(-row[caption]) for row, caption in zip(cosines, own, strict=True)]
    assert shares == {k: np.mean([rank < k for rank in ranks]) for k in (1, 2, 3)}


def test_random_codes_score_at_chance() -> None:
    generator = torch.Generator().manual_seed(1)
    sentences = torch.randn(400, 64, generator=generator)
    codes = torch.randn(400, 64, generator=generator)
    rng = np.random.default_rng(0)
    shares = r_precision(codes, range(400), pool_of(sentences), rng, candidates=10, repeats=5)
    for k in (1, 2, 3):
        assert shares[k] == pytest.approx(k / 10, abs=4 * np.sqrt(k / 10 / 400))


def test_a_tie_counts_as_wrong() -> None:
    pool = pool_of(torch.ones(5, 3))
    shares = r_precision(torch.ones(2, 3), [0, 1], pool, np.random.default_rng(0), candidates=5)
    assert shares == {1: 0.0, 2: 0.0, 3: 0.0}


@pytest.mark.parametrize("nan", ["codes", "sentences"])
def test_nan_counts_as_wrong(nan: str) -> None:
    values = {"codes": torch.ones(4, 5), "sentences": torch.randn(9, 5)}
    values[nan] = torch.full_like(values[nan], torch.nan)
    pool = pool_of(values["sentences"])
    shares = r_precision(values["codes"], range(4), pool, np.random.default_rng(0), candidates=9)
    assert shares == {1: 0.0, 2: 0.0, 3: 0.0}


def test_captions_of_the_same_class_or_wording_are_no_candidates() -> None:
    # Caption 1 has the image's class, and caption 2 the same words; either would win.
    sentences = directions(30, 0, 0, 90, 120)
    pool = CaptionPool(["a", "b", "a", "c", "d"], [7, 7, 8, 9, 9], sentences)
    rng = np.random.default_rng(0)
    assert r_precision(directions(0), [0], pool, rng, candidates=3)[1] == 1.0
    with pytest.raises(
        InputError, match="needs 3 captions of other images for each image, but there are 2"
    ):
        r_precision(directions(0), [0], pool, rng, candidates=4)


def test_similarity_is_not_rounded_under_autocast() -> None:
    torch.manual_seed(0)
    sentences, codes = torch.randn(5, 64), torch.randn(3, 64)
    exact = sentence_similarity(sentences, codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sentence_similarity(sentences, codes), exact)
