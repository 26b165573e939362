"""How much the rest of an image changes with one word of its caption."""

import numpy as np
import pytest
import torch

from mirrorgan_fast.metrics.unchanged import rest_change


@pytest.mark.parametrize("size", [1, 5, 16])
def test_it_is_the_mean_of_the_pixels_that_change_least(size: int) -> None:
    before, after = torch.randn(2, 3, 3, size, size, dtype=torch.float64)
    found = rest_change(before, after)
    for one, other, value in zip(before.numpy(), after.numpy(), found.tolist(), strict=True):
        changes = np.sort(np.abs(one - other).mean(axis=0).ravel())
        kept = changes[: max(1, len(changes) * 9 // 10)]
        assert value == pytest.approx(kept.mean())


def test_a_part_of_a_tenth_may_change_at_will() -> None:
    before = torch.rand(2, 3, 10, 10)
    after = before.clone()
    after[0, :, 4] = 0
    after[1, :, 4:6] = 2
    assert rest_change(before, after)[0] == 0
    assert rest_change(before, after)[1] > 0.1


def test_the_rest_is_pulled_back_and_the_part_is_not() -> None:
    before = torch.zeros(1, 3, 10, 10)
    after = torch.full((1, 3, 10, 10), 0.1)
    after[0, :, 4] = 1.0
    after.requires_grad_()
    (slope,) = torch.autograd.grad(rest_change(before, after).sum(), after)
    assert not slope[0, :, 4].any()
    assert (slope[0, :, :4] > 0).all()
    assert (slope[0, :, 5:] > 0).all()
