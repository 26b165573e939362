"""DiffAugment: whole-pixel shifts and gray squares, against NumPy."""

import numpy as np
import pytest
import torch

from mirrorgan_fast.processes import ALONE
from mirrorgan_fast.training.augmentation import Augmentation

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [16, 33, 64])
def test_images_are_shifted_by_reflection_and_have_a_gray_square(size: int) -> None:
    torch.manual_seed(0)
    images = torch.rand(7, 3, size, size) + 1  # nowhere 0
    augmentation = Augmentation.drawn(7, ALONE, CPU)
    augmentation.shifts[0], augmentation.shifts[1] = 0, 1 - 1e-7
    most = round(size / 8)
    for image, shift, hole, got in zip(images, *augmentation, augmentation(images), strict=True):
        down, right = (min(int(each * (2 * most + 1)), 2 * most) for each in shift.tolist())
        padded = np.pad(image.numpy(), ((0, 0), (most, most), (most, most)), mode="reflect")
        wanted = padded[:, down : down + size, right : right + size].copy()
        place = np.arange(size)
        rows, columns = (abs(place - middle * size) < size / 6 for middle in hole.tolist())
        wanted[:, rows[:, None] & columns] = 0
        assert np.array_equal(got.numpy(), wanted)
    assert float((augmentation(images) == 0).float().mean()) > 0.02


def test_both_images_of_a_pair_are_augmented_alike() -> None:
    torch.manual_seed(0)
    augmentation = Augmentation.drawn(6, ALONE, CPU, alike=2)
    images = torch.rand(3, 3, 16, 16).repeat_interleave(2, dim=0)
    augmented = augmentation(images)
    assert torch.equal(augmented[::2], augmented[1::2])
    assert len({tuple(row) for row in torch.cat([*augmentation], dim=1).tolist()}) == 3


def test_gradients_reach_the_pixels_that_are_seen() -> None:
    torch.manual_seed(0)
    augmentation = Augmentation.drawn(2, ALONE, CPU)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    seen = augmentation(images)
    assert seen.dtype == torch.float64
    weights = torch.rand_like(seen)
    (gradient,) = torch.autograd.grad((seen * weights).sum(), images)
    change = torch.rand_like(images)
    with torch.no_grad():
        difference = ((augmentation(images + change) - seen) * weights).sum()
    assert float((gradient * change).sum()) == pytest.approx(float(difference))
    assert augmentation(images.bfloat16()).dtype == torch.bfloat16
