"""GLAM for inference: batch norms are folded, and weights are packed for the op `glam`."""

import torch
from torch import Tensor, nn

from mirrorgan_fast.inference.packing import Packing, folded
from mirrorgan_fast.models.glam import GLAM, Attention, FirstTransformer, Transformer
from mirrorgan_fast.models.layers import ResidualBlock
from mirrorgan_fast.ops import Layout, PackedGLAM, PackedStage, glam


class FusedGLAM:
    """Computes a generator's last image with the package's inference ops.

    The weights are copied: ``generator`` is not changed, and later changes to it have no effect
    here. On a GPU, two threads must not call it at the same time: they would share the memory of a
    CUDA graph.

    Args:
        generator: its mode does not matter: its batch norms' running averages are used.
        dtype: of weights and features, float32 or bfloat16, on a GPU also float16 (default: what is
            fastest on the device that ``generator`` is on).
        layout: of the packed weights (default: as ``pack`` has it).

    Raises:
        InputError: another data type.
    """

    # Calling an op with tensors of inference mode takes a sixth of the time of other tensors.
    @torch.inference_mode()
    def __init__(
        self, generator: GLAM, dtype: torch.dtype | None = None, layout: Layout | None = None
    ) -> None:
        packing = Packing.of(generator, dtype, layout)
        augment, first = generator.augment.linear, generator.F[0]
        assert isinstance(first, FirstTransformer)
        self.packed = PackedGLAM(
            packing.packed(augment.weight, augment.bias, glu=True),
            packing.first_linear(first),
            [packing.up_conv(block) for block in first.upsample],
            [
                _stage(packing, F_att_i, F_i)
                for F_att_i, F_i in zip(generator.F_att, generator.F[1:], strict=True)
            ],
            packing.image(generator.G[-1]),
            noise_size=first.linear.in_features - len(augment.bias) // 4,
            embedding_size=augment.in_features,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and features."""
        return self.packed.dtype

    @torch.no_grad()
    def __call__(
        self,
        noise: Tensor,  # (N, noise)
        condition_noise: Tensor,  # (N, condition)
        words: Tensor,  # (N, T, D)
        mask: Tensor,  # (N, T)
        sentence: Tensor,  # (N, D)
        out: Tensor | None = None,  # (N, S, S, 3)
    ) -> Tensor:
        """Return images, uint8 (N, S, S, 3); the arguments are those of ``GLAM.forward``.

        Each image depends only on its own row of the arguments, bit for bit. If ``out`` is given,
        the images are written there.
        """
        return glam(noise, condition_noise, words, mask, sentence, self.packed, out)


def _stage(packing: Packing, F_att_i: nn.Module, F_i: nn.Module) -> PackedStage:  # noqa: N803
    """Pack a later stage."""
    assert isinstance(F_att_i, Attention)
    assert isinstance(F_i, Transformer)
    V = M = None
    mix = torch.eye(2 * F_att_i.U.out_features, device=F_att_i.U.weight.device)
    if F_att_i.V is not None:
        assert isinstance(F_att_i.mix, nn.Conv2d)
        V = packing.packed(F_att_i.V.weight, F_att_i.V.bias)
        mix = F_att_i.mix.weight.detach().flatten(1)
    if F_att_i.sentence_conv is not None:
        M = F_att_i.sentence_conv.weight.detach().flatten(1).to(packing.dtype, copy=True)
    *blocks, up = F_i
    layers = []
    for block in blocks:
        assert isinstance(block, ResidualBlock)
        conv, norm, second_conv, second_norm = block.block
        layers.append(packing.packed(*folded(conv, norm), glu=True))
        layers.append(packing.packed(*folded(second_conv, second_norm)))
    layers.append(packing.up_conv(up))
    U = packing.packed(F_att_i.U.weight, None)
    return PackedStage(U, V, M, mix.to(packing.dtype, copy=True), layers)
