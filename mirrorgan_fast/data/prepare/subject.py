"""Where in a picture its subject is: the thing near the middle, told from its surroundings."""

import numpy as np
from numpy.typing import NDArray

from mirrorgan_fast.data.prepare.lab import shrunk, to_lab

GRID = 32
"""The side of the grid on which a subject is looked for, whatever the size of the picture."""
CERTAIN = 0.8
"""A cell with at least this probability surely belongs to the subject."""

_ROUNDS = 8
_COLOR_WIDTH = 7.0  # distance in CIELAB at which two colors begin to count as different
_LIGHTNESS_WEIGHT = 0.6  # light and shade change the lightness of one cloth more than its hue
_PLACE_WIDTH = 0.6  # in halves of the picture: a door behind a shirt is not on both sides
_BORDER = 0.93  # of the way from the middle to the edge


def subject_probability(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return how probably each cell of a grid shows the subject of a picture.

    This begins with a guess by place alone: the middle is the subject, the border is not. Then the
    colors of both are estimated from the guess, by kernel density with color and place, and the
    guess is made again from place and color (Bayes), and smoothed. After a few rounds it follows
    the outline of the thing in the middle.

    Args:
        image: of any size, uint8 (H, W, 3).

    Returns:
        probabilities (GRID, GRID), of which each cell is an equal part of the picture.
    """
    axis = np.linspace(-1, 1, GRID)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    colors = to_lab(shrunk(image, GRID)).reshape(-1, 3) / _COLOR_WIDTH
    colors[:, 0] *= _LIGHTNESS_WEIGHT
    places = np.stack([x.ravel(), y.ravel()], axis=1) / _PLACE_WIDTH
    features = np.concatenate([colors, places], axis=1).astype(np.float32)
    # einsum, because results of BLAS depend on the number of its threads.
    squares = (features**2).sum(axis=1)
    products = np.einsum("ik,jk->ij", features, features)
    kernel = np.exp(np.minimum(products - (squares[:, None] + squares) / 2, 0))
    of_both = kernel.sum(axis=1)
    prior = _prior(x, y)
    guess = prior
    for _ in range(_ROUNDS):
        subject = guess.ravel().astype(np.float32)
        near_subject = np.einsum("ij,j->i", kernel, subject)
        of_subject = (near_subject / subject.sum()).reshape(GRID, GRID)
        of_rest = ((of_both - near_subject) / (GRID**2 - subject.sum())).reshape(GRID, GRID)
        guess = _smoothed(prior * of_subject / (prior * of_subject + (1 - prior) * of_rest))
    return guess


def _prior(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities by place alone, with x and y from -1 to 1."""
    to_edge = np.maximum(np.abs(x), np.abs(y))
    away = (to_edge + np.hypot(x, y)) / 2
    prior = np.clip(0.85 - 0.75 * away**2, 0.02, 0.98)
    prior[to_edge > _BORDER] = 0.02
    return prior


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each cell and its eight neighbors."""
    height, width = values.shape
    padded = np.pad(values, 1, mode="edge")
    shifted = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.asarray(sum(shifted) / 9)
