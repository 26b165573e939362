"""Ops for inference at the sizes of `cub`'s last stage; that stage, and all of GLAM, as one op."""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from benchmarks.alternatives import alternatives, as_map, work
from benchmarks.harness import Comparison
from benchmarks.shapes import LAST_STAGE
from mirrorgan_fast.inference.fused_glam import FusedGLAM
from mirrorgan_fast.inference.packing import Packing, folded
from mirrorgan_fast.models.glam import GLAM
from mirrorgan_fast.models.layers import ReLUResidualBlock, ReLUUpBlock, ResidualBlock
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.ops import (
    PackedGLAM,
    conv_add,
    conv_glu,
    conv_relu,
    glam,
    glam_attention_mix,
    glam_stage,
    image_head,
)
from mirrorgan_fast.pictures import to_uint8


class Residual(nn.Module):
    """The second half of a residual block."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.second = nn.Sequential(*block.block[2:])

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        added: Tensor = residual + self.second(hidden)
        return added


class ReLUResidual(nn.Module):
    """The second half of a residual block of StackGAN."""

    def __init__(self, block: ReLUResidualBlock) -> None:
        super().__init__()
        self.second = nn.Sequential(*block.block[2:])

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        added: Tensor = residual + self.second(hidden)
        return added.relu()


class GrayLevels(nn.Module):
    def __init__(self, G_i: nn.Module) -> None:  # noqa: N803
        super().__init__()
        self.G_i = G_i

    def forward(self, features: Tensor) -> Tensor:
        return to_uint8(self.G_i(features))


class Stage(nn.Module):
    """The last stage: attention, F_i, and G_i, which makes the image."""

    def __init__(self, F_att_i: nn.Module, F_i: nn.Module, G_i: nn.Module) -> None:  # noqa: N803
        super().__init__()
        self.F_att_i, self.F_i, self.gray_levels = F_att_i, F_i, GrayLevels(G_i)

    def forward(self, features: Tensor, words: Tensor, mask: Tensor, s_ca: Tensor) -> Tensor:
        image: Tensor = self.gray_levels(self.F_i(self.F_att_i(features, words, mask, s_ca)))
        return image


class Generator(nn.Module):
    """All of GLAM, up to the last image."""

    def __init__(self, generator: GLAM) -> None:
        super().__init__()
        self.generator = generator

    def forward(
        self, noise: Tensor, condition_noise: Tensor, words: Tensor, mask: Tensor, sentence: Tensor
    ) -> Tensor:
        generated = self.generator(noise, condition_noise, words, mask, sentence)
        return to_uint8(generated.images[-1])


class Parts(NamedTuple):
    """An op and its arguments, and the module that computes the same, with its inputs."""

    op: object
    arguments: tuple[object, ...]
    module: nn.Module
    inputs: tuple[Tensor, ...]


def parts_of(name: str, model: MirrorGAN, dtype: torch.dtype, batch: int) -> Parts:
    generator = copy.deepcopy(model.glam)
    F_att_i, F_i, G_i = generator.F_att[-1], generator.F[-1], generator.G[-1]
    packed = FusedGLAM(generator, dtype).packed
    stage = packed.stages[-1]
    block = F_i[0]
    channels, size, words = LAST_STAGE
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    f, wide, grown = (
        normal(batch, channels, size, size),
        normal(batch, 2 * channels, size, size),
        normal(batch, channels, 2 * size, 2 * size),
    )
    sizes = model.config.embedding_size, model.config.condition_size, model.config.noise_size
    w, s_ca, z = normal(batch, words, sizes[0]), normal(batch, sizes[1]), normal(batch, sizes[2])
    mask = torch.ones(batch, words, dtype=torch.bool)
    text = (z, s_ca, w, mask, w[:, 0].contiguous())
    keys, v = normal(batch, words, channels).to(dtype), normal(batch, channels).to(dtype)
    attention = (as_map(f, dtype), keys, mask, v, stage.sentence_weight, stage.mix)
    x = as_map(wide, dtype)
    layers, head = stage.layers, packed.head
    packing = Packing(dtype, None)
    relu_block = ReLUResidualBlock(2 * channels).eval()
    relu_up = ReLUUpBlock(2 * channels, channels).eval()
    transposed = nn.ConvTranspose2d(2 * channels, channels, 4, 2, 1, bias=False)
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    return {
        "glam_attention_mix": Parts(glam_attention_mix, attention, F_att_i, (f, w, mask, s_ca)),
        "conv_glu": Parts(conv_glu, (x, *layers[0]), block.block[:2], (wide,)),
        "conv_glu_upsampled": Parts(conv_glu, (x, *layers[-1]), F_i[-1], (wide,)),
        "conv_add": Parts(conv_add, (x, *layers[1], x), Residual(block), (wide, wide)),
        "conv_add_transposed": Parts(
            conv_add, (x, *packing.transposed(transposed)), transposed, (wide,)
        ),
        "conv_relu": Parts(
            conv_relu,
            (x, *packing.packed(*folded(*relu_block.block[2:])), x),
            ReLUResidual(relu_block),
            (wide, wide),
        ),
        "conv_relu_upsampled": Parts(
            conv_relu, (x, *packing.packed(*folded(*relu_up), upsample=True)), relu_up, (wide,)
        ),
        "image_head": Parts(image_head, (as_map(grown, dtype), *head), GrayLevels(G_i), (grown,)),
        "glam_stage": Parts(
            glam_stage,
            (*attention, weights, biases, *head),
            Stage(F_att_i, F_i, G_i),
            (f, w, mask, s_ca),
        ),
        "glam": Parts(glam, (*text, packed), Generator(generator), text),
    }[name]


def tensors_of(given: object) -> list[Tensor]:
    """Return all tensors in the arguments of an op."""
    if isinstance(given, PackedGLAM):
        given = given.flat
    if isinstance(given, list | tuple):
        return [tensor for part in given for tensor in tensors_of(part)]
    return [given] if isinstance(given, Tensor) else []


NAMES = (
    "glam_attention_mix",
    "conv_glu",
    "conv_glu_upsampled",
    "conv_add",
    "conv_add_transposed",
    "conv_relu",
    "conv_relu_upsampled",
    "image_head",
    "glam_stage",
    "glam",
)


@pytest.mark.parametrize(
    ("dtype", "batch"),
    [(torch.bfloat16, 8), (torch.bfloat16, 1), (torch.float32, 8)],
)
@pytest.mark.parametrize("name", NAMES)
def test_op(
    comparison: Comparison, model: MirrorGAN, name: str, dtype: torch.dtype, batch: int
) -> None:
    op, arguments, module, inputs = parts_of(name, model, dtype, batch)
    out = op(*arguments)
    read = [*tensors_of(arguments), out]
    comparison.run(
        lambda: op(*arguments, out=out),
        alternatives(module, *inputs),
        work(module, dtype, read, *inputs),
    )
