"""StackGAN++'s cascade for inference: batch norms are folded, and weights are packed."""

import torch
from torch import Tensor, nn

from mirrorgan_fast.inference.packing import FusedLayer, Packing, fastest_dtype, folded
from mirrorgan_fast.models.glam import GLAM, FirstTransformer, JoinedSentence, Transformer
from mirrorgan_fast.models.layers import ResidualBlock
from mirrorgan_fast.ops import Layout, image_head

_SIDE = 4  # height and width of the map that F_0's linear layer makes


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
        augment = generator.augment.linear
        if dtype is None:
            dtype = fastest_dtype(augment.weight.device.type)
        self.dtype = dtype
        first = generator.F[0]
        assert isinstance(first, FirstTransformer)
        packing = Packing(dtype, layout)
        self.augment = FusedLayer(packing.packed(augment.weight, augment.bias, glu=True), "glu")
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
        dtype = self.dtype
        mu, log_var = self.augment.of_rows(sentence.to(dtype)).float().chunk(2, dim=1)
        s_ca = (mu + torch.exp(0.5 * log_var) * condition_noise).to(dtype)
        f = self.linear.of_rows(torch.cat([s_ca, noise.to(dtype)], dim=1))
        f = f.view(len(f), _SIDE, _SIDE, -1).permute(0, 3, 1, 2)
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
        self.blocks = []
        for block in blocks:
            assert isinstance(block, ResidualBlock)
            conv, norm, second_conv, second_norm = block.block
            glu = FusedLayer(packing.packed(*folded(conv, norm), glu=True), "glu")
            add = FusedLayer(packing.packed(*folded(second_conv, second_norm)))
            self.blocks.append((glu, add))
        self.up = FusedLayer(packing.up_conv(up), "glu")

    def __call__(self, f: Tensor, s_ca: Tensor) -> Tensor:
        height, width = f.shape[2:]
        sentence = s_ca[:, None, None].expand(-1, height, width, -1)
        both = torch.cat([sentence, f.permute(0, 2, 3, 1)], dim=3)
        f = self.join(both.permute(0, 3, 1, 2))
        for glu, add in self.blocks:
            f = add(glu(f), f)
        return self.up(f)
