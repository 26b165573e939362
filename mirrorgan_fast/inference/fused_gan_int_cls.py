"""GAN-INT-CLS's generator for inference: batch norms are folded, and weights are packed."""

import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.inference.fused_blocks import FirstMap, FusedBottleneck
from mirrorgan_fast.inference.packing import FusedLayer, Packing
from mirrorgan_fast.models.gan_int_cls import SLOPE, GanIntClsGenerator
from mirrorgan_fast.ops import Layout
from mirrorgan_fast.pictures import to_uint8


class FusedGanIntCls:
    """Computes images with the package's inference ops.

    The weights are copied, and the arguments are those of ``FusedGLAM``.

    Raises:
        InputError: another data type.
    """

    @torch.inference_mode()
    def __init__(
        self,
        generator: GanIntClsGenerator,
        dtype: torch.dtype | None = None,
        layout: Layout | None = None,
    ) -> None:
        packing = Packing.of(generator, dtype, layout)
        self.dtype = packing.dtype
        project = packing.packed(generator.project.weight, generator.project.bias)
        self.project = FusedLayer(project)
        self.first = FirstMap(packing, generator.first, generator.first_norm)
        self.first_bottleneck = FusedBottleneck(packing, generator.first_bottleneck)
        self.second = FusedLayer(packing.transposed(generator.second, generator.second_norm))
        self.second_bottleneck = FusedBottleneck(packing, generator.second_bottleneck)
        convs, norms = list(generator.upsample)[::2], list(generator.upsample)[1::2]
        self.upsample = [
            FusedLayer(packing.transposed(conv, norm), "relu")
            for conv, norm in zip(convs, norms, strict=True)
        ]
        self.image = FusedLayer(packing.transposed(generator.image[0]))

    @torch.inference_mode()
    def __call__(
        self,
        noise: Tensor,  # (N, noise)
        words: Tensor,  # (N, T, D)
        mask: Tensor,  # (N, T)
        sentence: Tensor,  # (N, D)
        out: Tensor | None = None,  # (N, S, S, 3)
    ) -> Tensor:
        """Return images, uint8 (N, S, S, 3); words and mask are not used.

        Each image depends only on its own row of the arguments, bit for bit. If ``out`` is given,
        the images are written there.
        """
        t = functional.leaky_relu(self.project.of_rows(sentence.to(self.dtype)), SLOPE)
        f = self.first(torch.cat([noise.to(self.dtype), t], dim=1))
        f = self.second_bottleneck(self.second(self.first_bottleneck(f)))
        for up in self.upsample:
            f = up(f)
        images = to_uint8(self.image(f).float().tanh())
        return images if out is None else out.copy_(images)
