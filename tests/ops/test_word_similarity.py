"""word_similarity against AttnGAN's formulas, computed for one caption and one word at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.stem import word_mask
from mirrorgan_fast.ops import word_similarity

Match = Callable[[Tensor, Tensor], None]
ONES = torch.ones


def similarity_by_loops(
    words: Tensor, lengths: list[int], regions: Tensor, gamma1: float, gamma2: float
) -> Tensor:
    """Compute AttnGAN's eq. 7 to 10, without the exponent 1 / gamma2, as in the authors' code."""
    result = torch.empty(len(regions), len(words), dtype=torch.float64)
    for n, v in enumerate(regions.double()):
        for m, length in enumerate(lengths):
            e = words[m, :length].double()
            s = [[e_i @ v_j for v_j in v] for e_i in e]  # eq. 7
            total = 0.0
            for i in range(length):
                # eq. 8: each region divides its attention among the words
                s_bar = [
                    s[i][j].exp() / sum(s[k][j].exp() for k in range(length)) for j in range(len(v))
                ]
                weights = [(gamma1 * value).exp() for value in s_bar]
                c_i = sum(w * v_j for w, v_j in zip(weights, v, strict=True)) / sum(
                    weights
                )  # eq. 9
                total = (
                    total + (gamma2 * functional.cosine_similarity(c_i, e[i], dim=0)).exp()
                )  # eq. 10
            result[n, m] = total.log()
    return result


@pytest.mark.parametrize(("gamma1", "gamma2"), [(4.0, 5.0), (1.0, 0.5), (9.0, 20.0)])
@pytest.mark.parametrize(
    ("images", "lengths", "width", "regions"), [(3, [2, 5, 1], 5, 4), (1, [3, 3], 6, 7)]
)
def test_matches_the_formulas(
    assert_matches: Match,
    images: int,
    lengths: list[int],
    width: int,
    regions: int,
    gamma1: float,
    gamma2: float,
) -> None:
    torch.manual_seed(2)
    mask = word_mask(torch.tensor(lengths), width)
    words = torch.randn(len(lengths), width, 6) * mask[:, :, None]
    v = torch.randn(images, regions, 6)
    actual = word_similarity(words, mask, v, gamma1=gamma1, gamma2=gamma2)
    assert actual.shape == (images, len(lengths))
    assert_matches(actual, similarity_by_loops(words, lengths, v, gamma1, gamma2))


def test_default_gammas() -> None:
    torch.manual_seed(3)
    words, v = torch.randn(2, 3, 6), torch.randn(2, 5, 6)
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(
        word_similarity(words, mask, v), word_similarity(words, mask, v, gamma1=4.0, gamma2=5.0)
    )


def test_depends_only_on_the_pair() -> None:
    """Other captions, other images and padding have no influence."""
    torch.manual_seed(4)
    lengths = [2, 8, 1, 5]
    mask = word_mask(torch.tensor(lengths), 8)
    words, v = torch.randn(4, 8, 6) * mask[:, :, None], torch.randn(3, 9, 6)
    similarity = word_similarity(words, mask, v)
    for m, length in enumerate(lengths):
        single = word_similarity(words[m : m + 1, :length], mask[m : m + 1, :length], v[1:2])
        torch.testing.assert_close(single, similarity[1:2, m : m + 1])
    words, v = words.requires_grad_(), v.requires_grad_()
    gradients = torch.autograd.grad(word_similarity(words, mask, v).sum(), (words, v))
    for garbage in (1e4, torch.nan):
        filled = words.masked_fill(~mask[:, :, None], garbage)
        result = word_similarity(filled, mask, v)
        torch.testing.assert_close(result, similarity)
        torch.testing.assert_close(torch.autograd.grad(result.sum(), (words, v)), gradients)


def test_gradients() -> None:
    torch.manual_seed(7)
    mask = word_mask(torch.tensor([2, 3]), 3)
    words, v = torch.randn(2, 3, 4).double(), torch.randn(2, 5, 4).double()
    inputs = (words.requires_grad_(), v.requires_grad_())
    assert torch.autograd.gradcheck(lambda w, v: word_similarity(w, mask, v), inputs)


@pytest.mark.parametrize(
    ("words", "mask", "regions", "argument", "wanted"),
    [
        (ONES(2, 3), ONES(2, 3).bool(), ONES(4, 5, 6), "words", r"\(M, T, D\)"),
        (ONES(2, 3, 6), ONES(2, 3), ONES(4, 5, 6), "mask", "bool"),
        (ONES(2, 3, 6), ONES(2, 4).bool(), ONES(4, 5, 6), "mask", r"\(2, 3\)"),
        (ONES(2, 3, 6), ONES(2, 3).bool(), ONES(4, 5, 7), "regions", r"\(N, R, 6\)"),
        (ONES(2, 3, 6), ONES(2, 3).bool(), ONES(4, 5, 6).long(), "regions", "floating point"),
        (ONES(2, 3, 6), ONES(2, 3).bool(), ONES(4, 5, 6).to("meta"), "regions", "device cpu"),
    ],
)
def test_refuses(words: Tensor, mask: Tensor, regions: Tensor, argument: str, wanted: str) -> None:
    with pytest.raises(InputError, match=f"word_similarity: {argument}: found .*{wanted}"):
        word_similarity(words, mask, regions)
