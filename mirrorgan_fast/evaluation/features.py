"""Features of images that no model was trained with, for measures such as the kernel distance."""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from mirrorgan_fast.models.backbones.efficientnet_lite import has_lite2, lite2
from mirrorgan_fast.pictures import to_signed

_BATCH = 16


class FeatureReader:
    """Reads features with EfficientNet-Lite2, which was trained on ImageNet.

    Discriminators and encoders may see with Lite0, which was trained on the same photographs.

    Raises:
        InputError: it is not installed (``lite2``).
    """

    def __init__(self) -> None:
        self._network = lite2()

    @classmethod
    def if_installed(cls) -> Self | None:
        """Return a reader; None: EfficientNet-Lite2 is not installed."""
        return cls() if has_lite2() else None

    @torch.no_grad()
    def read(self, images: Tensor, title: str = "", *, quiet: bool = True) -> Tensor:
        """Map uint8 images (N, 3, S, S) to features (N, 1280).

        Args:
            images: of any size; they are resized to 260 x 260.
            title: of the progress bar.
            quiet: no progress bar.
        """
        network, found = self._network, []
        with tqdm(total=len(images), desc=title, unit="image", disable=quiet) as bar:
            for batch in images.split(_BATCH):
                x = to_signed(batch, torch.device("cpu"))
                x = functional.interpolate(x, size=network.size, mode="bilinear", antialias=True)
                found.append(network.pooled(network.maps(x)[-1]))
                bar.update(len(batch))
        return torch.cat(found)
