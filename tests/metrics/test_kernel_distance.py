"""The kernel distance against its definition, and on sets whose distance is known."""

import itertools

import numpy as np
import pytest
import torch

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.metrics.kernel_distance import kernel_distance


def test_it_is_the_mean_over_pairs_of_the_kernel() -> None:
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(7, 5)), rng.normal(0.5, 2, size=(7, 5))

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (sum(a * b for a, b in zip(x, y, strict=True)) / 5 + 1) ** 3

    def within(rows: np.ndarray) -> float:
        return float(np.mean([kernel(x, y) for x, y in itertools.permutations(rows, 2)]))

    between = np.mean([kernel(x, y) for x, y in itertools.product(real, generated)])
    wanted = within(real) + within(generated) - 2 * between
    found = kernel_distance(torch.tensor(real), torch.tensor(generated), subsets=3)
    assert found.mean == pytest.approx(wanted, rel=1e-12)  # every subset is the whole set
    assert found.deviation == pytest.approx(0, abs=1e-9)


def test_two_samples_of_one_distribution_have_a_distance_of_zero_in_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [
        kernel_distance(*torch.randn(2, 50, 8, generator=generator), subsets=1).mean
        for _ in range(200)
    ]
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found)) < 3 * error
    one, other = torch.randn(2, 50, 8, generator=generator)
    assert kernel_distance(one, other + 1, subsets=1).mean > 10 * np.std(found)


def test_subsets_are_drawn_from_both_sets_and_by_seed() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(300, 8, generator=generator)
    other = torch.randn(200, 8, generator=generator) + 0.3
    whole = kernel_distance(one[:200], other, subsets=1).mean
    found = kernel_distance(one, other, subsets=200, most=50)
    assert found.mean == pytest.approx(whole, abs=4 * found.deviation / 200**0.5 + 0.2 * whole)
    assert found.deviation > 0
    assert found == kernel_distance(one, other, subsets=200, most=50)
    assert found != kernel_distance(one, other, subsets=200, most=50, seed=1)


def test_bad_features_are_refused() -> None:
    good = torch.randn(4, 3)
    for bad, fault in (
        (torch.randn(1, 3), r"shape \(1, 3\), expected two rows"),
        (torch.randn(4), r"shape \(4,\)"),
        (torch.randn(4, 5), "have 3 and 5 numbers"),
        (torch.full((4, 3), torch.nan), "NaN or infinity"),
    ):
        with pytest.raises(InputError, match=fault):
            kernel_distance(good, bad)
