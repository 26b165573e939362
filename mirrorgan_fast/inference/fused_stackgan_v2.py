"""StackGAN++'s cascade for inference: batch norms are folded, and weights are packed."""

import torch
from torch import Tensor, nn

from mirrorgan_fast.inference.fused_blocks import FusedAugmentation, FusedResidual, first_map
from mirrorgan_fast.inference.packing import FusedLayer, Packing, folded
from mirrorgan_fast.models.glam import GLAM, FirstTransformer, JoinedSentence, Transformer
from mirrorgan_fast.ops import Layout, image_head


class FusedStackGANv2:
    """Computes a generator's last image with the package's inference ops.

    The weights are copied, and the arguments are those of ``FusedGLAM``.

    Raises:
        InputError: another data type.
    """

    @torch.inference_mode()
    def __init__(
        self, generator: GLAM, dtype: torch.dtype | None = None, layout: Layout | None = None
    ) -> None:
        packing = Packing.of(generator, dtype, layout)
        self.dtype, first = packing.dtype, generator.F[0]
        assert isinstance(first, FirstTransformer)
        self.augment = FusedAugmentation(packing, generator.augment)
        self.linear = FusedLayer(packing.first_linear(first), "glu")
        self.upsample = [FusedLayer(packing.up_conv(block), "glu") for block in first.upsample]
        self.stages = [
            _Stage(packing, F_att_i, F_i)
            for F_att_i, F_i in zip(generator.F_att, generator.F[1:], strict=True)
        ]
        self.head = packing.image(generator.G[-1])

    @torch.inference_mode()
    def __call__(
        self,
        noise: Tensor,  # (N, noise)
        condition_noise: Tensor,  # (N, condition)
        words: Tensor,  # (N, T, D)
        mask: Tensor,  # (N, T)
        sentence: Tensor,  # (N, D)
        out: Tensor | None = None,  # (N, S, S, 3)
    ) -> Tensor:
        """Return images, uint8 (N, S, S, 3); words and mask are not used.

        Each image depends only on its own row of the arguments, bit for bit. If ``out`` is given,
        the images are written there.
        """
        s_ca = self.augment(sentence.to(self.dtype), condition_noise)
        f = first_map(self.linear.of_rows(torch.cat([s_ca, noise.to(self.dtype)], dim=1)))
        for up in self.upsample:
            f = up(f)
        for stage in self.stages:
            f = stage(f, s_ca)
        return image_head(f, *self.head, out=out)


class _Stage:
    """F_i and what joins the sentence with its input."""

    def __init__(self, packing: Packing, F_att_i: nn.Module, F_i: nn.Module) -> None:  # noqa: N803
        assert isinstance(F_att_i, JoinedSentence)
        assert isinstance(F_i, Transformer)
        *blocks, up = F_i
        self.join = FusedLayer(packing.packed(*folded(*F_att_i.join), glu=True), "glu")
        self.blocks = [FusedResidual(packing, block) for block in blocks]
        self.up = FusedLayer(packing.up_conv(up), "glu")

    def __call__(self, f: Tensor, s_ca: Tensor) -> Tensor:
        height, width = f.shape[2:]
        sentence = s_ca[:, None, None].expand(-1, height, width, -1)
        both = torch.cat([sentence, f.permute(0, 2, 3, 1)], dim=3)
        f = self.join(both.permute(0, 3, 1, 2))
        for block in self.blocks:
            f = block(f)
        return self.up(f)
