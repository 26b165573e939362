"""How different the images of one caption are from each other."""

from torch import Tensor


def diversity(
    images: Tensor,  # (captions, noises, ...)
) -> float:
    """Return the mean absolute difference between two images of the same caption.

    Args:
        images: several images of each caption, from different noise, in gray levels from 0 to 255.

    Returns:
        in gray levels. 0: the images of each caption are all the same, the generator has collapsed.
    """
    noises = images.shape[1]
    values = images.flatten(2).float()
    total = sum((values[:, i] - values[:, j]).abs().mean() for i in range(noises) for j in range(i))
    return float(total) / (noises * (noises - 1) / 2)
