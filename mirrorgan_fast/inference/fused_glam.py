"""GLAM for inference: batch norms are folded, and weights are packed for the op `glam`."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mirrorgan_fast.models.glam import GLAM, Attention, FirstTransformer, Transformer
from mirrorgan_fast.models.layers import BatchNormActivation, ResidualBlock, UpBlock
from mirrorgan_fast.ops import (
    Layout,
    PackedGLAM,
    PackedLayer,
    PackedStage,
    glam,
    instruction_set,
    pack,
)

BF16 = torch.bfloat16
_MULTIPLY_BF16 = ("amx", "avx512_bf16")  # instruction sets


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
        augment = generator.augment.linear
        if dtype is None:
            dtype = fastest_dtype(augment.weight.device.type)
        first, head = generator.F[0], next(generator.G[-1].children())
        assert isinstance(first, FirstTransformer)
        assert isinstance(head, nn.Conv2d)
        packing = Packing(dtype, layout)
        self.packed = PackedGLAM(
            packing.packed(augment.weight, augment.bias, glu=True),
            packing.first_linear(first),
            [packing.up_conv(block) for block in first.upsample],
            [
                packing.stage(F_att_i, F_i)
                for F_att_i, F_i in zip(generator.F_att, generator.F[1:], strict=True)
            ],
            packing.packed(head.weight, None),
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


def fastest_dtype(device: str = "cpu") -> torch.dtype:
    """Return the data type in which a fused generator is fastest on a device of this type."""
    narrow = device == "cuda" or (device == "cpu" and instruction_set() in _MULTIPLY_BF16)
    return BF16 if narrow else torch.float32


class Packing(NamedTuple):
    """How the weights of a generator's layers are packed."""

    dtype: torch.dtype
    layout: Layout | None

    def packed(
        self,
        weight: Tensor,  # (N, C, h, w), or (N, C) of a linear layer
        bias: Tensor | None,  # (N,)
        *,
        glu: bool = False,
        upsample: bool = False,
    ) -> PackedLayer:
        """Pack a layer."""
        weight = weight.detach() if weight.dim() == 4 else weight.detach()[:, :, None, None]
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        packed = pack(weight, glu=glu, upsample=upsample, dtype=self.dtype, layout=self.layout)
        return PackedLayer(packed, bias.float().clone())

    def up_conv(self, block: nn.Module) -> PackedLayer:
        """Pack an up-block."""
        assert isinstance(block, UpBlock)
        return self.packed(*_folded(*block), glu=True, upsample=True)

    def stage(self, F_att_i: nn.Module, F_i: nn.Module) -> PackedStage:  # noqa: N803
        """Pack a later stage."""
        assert isinstance(F_att_i, Attention)
        assert isinstance(F_i, Transformer)
        V = M = None
        mix = torch.eye(2 * F_att_i.U.out_features, device=F_att_i.U.weight.device)
        if F_att_i.V is not None:
            assert isinstance(F_att_i.mix, nn.Conv2d)
            V = self.packed(F_att_i.V.weight, F_att_i.V.bias)
            mix = F_att_i.mix.weight.detach().flatten(1)
        if F_att_i.sentence_conv is not None:
            M = F_att_i.sentence_conv.weight.detach().flatten(1).to(self.dtype, copy=True)
        *blocks, up = F_i
        layers = []
        for block in blocks:
            assert isinstance(block, ResidualBlock)
            conv, norm, second_conv, second_norm = block.block
            layers.append(self.packed(*_folded(conv, norm), glu=True))
            layers.append(self.packed(*_folded(second_conv, second_norm)))
        layers.append(self.up_conv(up))
        U = self.packed(F_att_i.U.weight, None)
        return PackedStage(U, V, M, mix.to(self.dtype, copy=True), layers)

    def first_linear(self, first: FirstTransformer) -> PackedLayer:
        """Pack F_0's linear layer, with its outputs in the order of a channels_last map."""

        def channels_last(rows: Tensor) -> Tensor:
            halves: Tensor = rows.unflatten(0, (2, first.channels, 4 * 4))
            return halves.transpose(1, 2).flatten(0, 2)

        weight, bias = _folded(first.linear, first.norm)
        return self.packed(channels_last(weight), channels_last(bias), glu=True)


def _folded(
    layer: nn.Module,  # without a bias
    norm: nn.Module,
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a layer with the following batch norm folded in."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | BatchNormActivation)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    return weight, norm.bias - norm.running_mean * scale
