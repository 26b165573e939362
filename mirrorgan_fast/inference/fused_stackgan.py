"""StackGAN's generator for inference: batch norms are folded, and weights are packed."""

import torch
from torch import Tensor, nn

from mirrorgan_fast.inference.fused_blocks import (
    FusedAugmentation,
    FusedResidual,
    FusedStrided,
    first_map,
)
from mirrorgan_fast.inference.packing import FusedLayer, Packing, folded
from mirrorgan_fast.models.stackgan import StackGANGenerator, Stage1Generator, Stage2Generator
from mirrorgan_fast.ops import Layout, image_head


class FusedStackGAN:
    """Computes the image of a generator's last stage with the package's inference ops.

    The weights are copied, and the arguments are those of ``FusedGLAM``.

    Raises:
        InputError: another data type.
    """

    @torch.inference_mode()
    def __init__(
        self,
        generator: StackGANGenerator,
        dtype: torch.dtype | None = None,
        layout: Layout | None = None,
    ) -> None:
        packing = Packing.of(generator, dtype, layout)
        self.dtype = packing.dtype
        self.stage1 = _Stage1(packing, generator.stage1)
        self.stage2 = None
        if generator.stage2 is not None:
            self.stage2 = _Stage2(packing, generator.stage2)

    @torch.inference_mode()
    def __call__(
        self,
        noise: Tensor,  # (N, noise)
        condition_noise: Tensor,  # (N, stages condition)
        words: Tensor,  # (N, T, D)
        mask: Tensor,  # (N, T)
        sentence: Tensor,  # (N, D)
        out: Tensor | None = None,  # (N, S, S, 3)
    ) -> Tensor:
        """Return images, uint8 (N, S, S, 3); words and mask are not used.

        Each image depends only on its own row of the arguments, bit for bit. If ``out`` is given,
        the images are written there.
        """
        sentence = sentence.to(self.dtype)
        if self.stage2 is None:
            f = self.stage1(noise, condition_noise, sentence)
            return image_head(f, *self.stage1.image.packed, out=out)
        first, second = condition_noise.chunk(2, dim=1)
        image = self.stage1.image(self.stage1(noise, first, sentence)).tanh()
        f = self.stage2(image, second, sentence)
        return image_head(f, *self.stage2.image.packed, out=out)


class _Stage1:
    """The first stage, up to the features of its image."""

    def __init__(self, packing: Packing, stage: Stage1Generator) -> None:
        self.augment = FusedAugmentation(packing, stage.augment)
        self.linear = FusedLayer(packing.first_linear(stage), "relu")
        self.upsample = [FusedLayer(packing.up_conv(block), "relu") for block in stage.upsample]
        self.image = FusedLayer(packing.image(stage.image))

    def __call__(self, noise: Tensor, condition_noise: Tensor, sentence: Tensor) -> Tensor:
        c = self.augment(sentence, condition_noise)
        f = first_map(self.linear.of_rows(torch.cat([noise.to(c.dtype), c], dim=1)))
        for up in self.upsample:
            f = up(f)
        return f


class _Stage2:
    """The second stage, up to the features of its image."""

    def __init__(self, packing: Packing, stage: Stage2Generator) -> None:
        self.augment = FusedAugmentation(packing, stage.augment)
        first, _, *strided = stage.encoder
        assert isinstance(first, nn.Conv2d)
        self.first = FusedLayer(packing.packed(first.weight, None), "relu")
        self.strided = [
            FusedStrided(packing, conv, norm)
            for conv, norm in zip(strided[::2], strided[1::2], strict=True)
        ]
        self.join = FusedLayer(packing.packed(*folded(*stage.join)), "relu")
        self.blocks = [FusedResidual(packing, block) for block in stage.residual]
        self.upsample = [FusedLayer(packing.up_conv(block), "relu") for block in stage.upsample]
        self.image = FusedLayer(packing.image(stage.image))

    def __call__(self, image: Tensor, condition_noise: Tensor, sentence: Tensor) -> Tensor:
        c = self.augment(sentence, condition_noise)
        f = self.first(image)
        for strided in self.strided:
            f = strided(f)
        c_map = c[:, None, None].expand(-1, *f.shape[2:], -1)
        f = self.join(torch.cat([f.permute(0, 2, 3, 1), c_map], dim=3).permute(0, 3, 1, 2))
        for block in self.blocks:
            f = block(f)
        for up in self.upsample:
            f = up(f)
        return f
