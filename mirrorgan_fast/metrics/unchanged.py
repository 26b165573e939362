"""How much of an image changes that should not, when one word of its caption changes."""

from torch import Tensor

from mirrorgan_fast.ops.wide import wide

REST = 0.9
"""The share of an image's pixels that is taken for the rest.

The largest part of a painted bird that one color word describes, back and wings, covers at most
8 %."""


def rest_change(before: Tensor, after: Tensor) -> Tensor:
    """Return the mean change of the 90 % of each image's pixels that change least.

    It is differentiable. The change of a pixel is the mean absolute difference of its channels.

    Args:
        before: images (N, C, S, S).
        after: the images of the changed captions, likewise, from the same noise.

    Returns:
        (N,), in the unit of the images; 0: nothing else changes.
    """
    changes = (wide(after) - wide(before)).abs().mean(dim=1).flatten(1)  # (N, S * S)
    rest = max(1, int(changes.shape[1] * REST))
    least: Tensor = changes.topk(rest, largest=False, sorted=False).values
    return least.mean(dim=1)
