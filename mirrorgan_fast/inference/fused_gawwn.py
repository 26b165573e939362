"""GAWWN's generator for inference: batch norms are folded, and weights are packed."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.inference.fused_blocks import FirstMap, FusedBottleneck, FusedStrided
from mirrorgan_fast.inference.packing import FusedLayer, Packing, folded
from mirrorgan_fast.models.gawwn import GawwnBoxGenerator, covered, points_around, resampled
from mirrorgan_fast.models.layers import BatchNormReLU, Bottleneck
from mirrorgan_fast.ops import Layout
from mirrorgan_fast.pictures import to_uint8


class FusedGawwn:
    """Computes images with the package's inference ops; boxes are applied in float32.

    The weights are copied, and the arguments are those of ``FusedGLAM``.

    Raises:
        InputError: another data type.
    """

    @torch.inference_mode()
    def __init__(
        self,
        generator: GawwnBoxGenerator,
        dtype: torch.dtype | None = None,
        layout: Layout | None = None,
    ) -> None:
        packing = Packing.of(generator, dtype, layout)
        self.dtype, self.grid = packing.dtype, generator.grid
        self.project, self.global_noise, self.local_noise = (
            FusedLayer(packing.packed(linear.weight, linear.bias))
            for linear in (generator.project, generator.global_noise, generator.local_noise)
        )
        *strided, last, last_norm = generator.place
        self.place = [
            FusedStrided(packing, conv, norm)
            for conv, norm in zip(strided[::2], strided[1::2], strict=True)
        ]
        weight, bias = folded(last, last_norm)  # (C', C, 4, 4), of a map of that size
        self.last_of_place = FusedLayer(
            packing.packed(weight.permute(0, 2, 3, 1).flatten(1), bias), "relu"
        )
        self.global_path = _path(packing, generator.global_path)
        self.local_path = _path(packing, generator.local_path)
        first, first_norm, *ups = generator.joint
        self.joint = [
            FusedLayer(packing.packed(*folded(first, first_norm)), "relu"),
            *_path(packing, ups),
        ]
        self.image = FusedLayer(packing.transposed(generator.image[0]))

    @torch.inference_mode()
    def __call__(
        self,
        noise: Tensor,  # (N, noise)
        box: Tensor,  # (N, 4)
        words: Tensor,  # (N, T, D)
        mask: Tensor,  # (N, T)
        sentence: Tensor,  # (N, D)
        out: Tensor | None = None,  # (N, S, S, 3)
    ) -> Tensor:
        """Return images, uint8 (N, S, S, 3); words and mask are not used.

        Each image depends only on its own row of the arguments, bit for bit. If ``out`` is given,
        the images are written there.
        """
        t = self.project.of_rows(sentence.to(self.dtype))
        z = noise.to(self.dtype)
        points = points_around(box, self.grid)
        place = _channels_last(t[:, :, None, None] * covered(points).to(self.dtype))
        for strided in self.place:
            place = strided(place)
        place = self.last_of_place.of_rows(place.permute(0, 2, 3, 1).flatten(1))
        whole = torch.cat([functional.relu(self.global_noise.of_rows(z)), place], dim=1)
        for layer in self.global_path:
            whole = layer(whole)
        local = functional.relu(torch.cat([self.local_noise.of_rows(z), t], dim=1))
        for layer in self.local_path:
            local = layer(local)
        local = functional.relu(resampled(local, points))
        f = _channels_last(torch.cat([whole, local], dim=1))
        for layer in self.joint:
            f = layer(f)
        images = to_uint8(self.image(f).float().tanh())
        return images if out is None else out.copy_(images)


def _path(
    packing: Packing, layers: nn.Sequential | list[nn.Module]
) -> list[FirstMap | FusedBottleneck | FusedLayer]:
    """Fuse transposed convolutions, each with its batch norm, and the bottlenecks between them."""
    fused: list[FirstMap | FusedBottleneck | FusedLayer] = []
    unread = iter(layers)
    for layer in unread:
        if isinstance(layer, Bottleneck):
            fused.append(FusedBottleneck(packing, layer))
            continue
        assert isinstance(layer, nn.ConvTranspose2d)
        norm = next(unread)
        relu = isinstance(norm, BatchNormReLU)
        if layer.stride == (1, 1):
            fused.append(FirstMap(packing, layer, norm, "relu" if relu else "none"))
        else:
            fused.append(FusedLayer(packing.transposed(layer, norm), "relu" if relu else "none"))
    return fused


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
