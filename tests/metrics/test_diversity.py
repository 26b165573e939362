"""Diversity between the images of one caption."""

import itertools

import numpy as np
import torch

from mirrorgan_fast.metrics.diversity import diversity


def test_it_is_the_mean_difference_of_all_pairs() -> None:
    images = torch.randint(0, 256, (3, 4, 3, 5, 7), dtype=torch.uint8)
    pairs = [
        np.abs(one.astype(float) - other.astype(float)).mean()
        for caption in images.numpy()
        for one, other in itertools.combinations(caption, 2)
    ]
    assert abs(diversity(images) - np.mean(pairs)) < 1e-4


def test_images_that_are_alike_have_none() -> None:
    one = torch.randint(0, 256, (2, 1, 3, 4, 4), dtype=torch.uint8)
    assert diversity(one.expand(-1, 3, -1, -1, -1)) == 0
