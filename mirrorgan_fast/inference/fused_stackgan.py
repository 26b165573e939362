"""StackGAN's generator for inference: batch norms are folded, and weights are packed."""

import torch
from torch import Tensor, nn

from mirrorgan_fast.inference.fused_blocks import FusedStrided
from mirrorgan_fast.inference.packing import FusedLayer, Packing, fastest_dtype, folded
from mirrorgan_fast.models.layers import ReLUConditioningAugmentation, ReLUResidualBlock
from mirrorgan_fast.models.stackgan import StackGANGenerator, Stage1Generator, Stage2Generator
from mirrorgan_fast.ops import Layout, image_head

_SIDE = 4  # height and width of the map that the first stage's linear layer makes


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
        if dtype is None:
            dtype = fastest_dtype(generator.stage1.linear.weight.device.type)
        self.dtype = dtype
        packing = Packing(dtype, layout)
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


class _Augmentation:
    """The conditioning augmentation."""

    def __init__(self, packing: Packing, augment: ReLUConditioningAugmentation) -> None:
        self.linear = FusedLayer(packing.packed(augment.linear.weight, augment.linear.bias), "relu")

    def __call__(self, sentence: Tensor, noise: Tensor) -> Tensor:
        mu, log_var = self.linear.of_rows(sentence).float().chunk(2, dim=1)
        return (mu + torch.exp(0.5 * log_var) * noise).to(sentence.dtype)


class _Stage1:
    """The first stage, up to the features of its image."""

    def __init__(self, packing: Packing, stage: Stage1Generator) -> None:
        self.augment = _Augmentation(packing, stage.augment)

        def channels_last(rows: Tensor) -> Tensor:
            pixels: Tensor = rows.unflatten(0, (stage.channels, _SIDE * _SIDE))
            return pixels.transpose(0, 1).flatten(0, 1)

        weight, bias = map(channels_last, folded(stage.linear, stage.norm))
        self.linear = FusedLayer(packing.packed(weight, bias), "relu")
        self.upsample = [
            FusedLayer(packing.packed(*folded(*block.children()), upsample=True), "relu")
            for block in stage.upsample
        ]
        self.image = FusedLayer(packing.image(stage.image))

    def __call__(self, noise: Tensor, condition_noise: Tensor, sentence: Tensor) -> Tensor:
        c = self.augment(sentence, condition_noise)
        f = self.linear.of_rows(torch.cat([noise.to(c.dtype), c], dim=1))
        f = f.view(len(f), _SIDE, _SIDE, -1).permute(0, 3, 1, 2)
        for up in self.upsample:
            f = up(f)
        return f


class _Stage2:
    """The second stage, up to the features of its image."""

    def __init__(self, packing: Packing, stage: Stage2Generator) -> None:
        self.augment = _Augmentation(packing, stage.augment)
        first, _, *strided = stage.encoder
        assert isinstance(first, nn.Conv2d)
        self.first = FusedLayer(packing.packed(first.weight, None), "relu")
        self.strided = [
            FusedStrided(packing, conv, norm)
            for conv, norm in zip(strided[::2], strided[1::2], strict=True)
        ]
        self.join = FusedLayer(packing.packed(*folded(*stage.join)), "relu")
        self.blocks = []
        for block in stage.residual:
            assert isinstance(block, ReLUResidualBlock)
            conv, norm, second_conv, second_norm = block.block
            relu = FusedLayer(packing.packed(*folded(conv, norm)), "relu")
            add = FusedLayer(packing.packed(*folded(second_conv, second_norm)), "relu")
            self.blocks.append((relu, add))
        self.upsample = [
            FusedLayer(packing.packed(*folded(*block.children()), upsample=True), "relu")
            for block in stage.upsample
        ]
        self.image = FusedLayer(packing.image(stage.image))

    def __call__(self, image: Tensor, condition_noise: Tensor, sentence: Tensor) -> Tensor:
        c = self.augment(sentence, condition_noise)
        f = self.first(image)
        for strided in self.strided:
            f = strided(f)
        c_map = c[:, None, None].expand(-1, *f.shape[2:], -1)
        f = self.join(torch.cat([f.permute(0, 2, 3, 1), c_map], dim=3).permute(0, 3, 1, 2))
        for relu, add in self.blocks:
            f = add(relu(f), f)
        for up in self.upsample:
            f = up(f)
        return f
