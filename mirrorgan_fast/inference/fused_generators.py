"""The generators of all systems, made ready for inference."""

import torch
from torch import nn

from mirrorgan_fast.inference.fused_gan_int_cls import FusedGanIntCls
from mirrorgan_fast.inference.fused_gawwn import FusedGawwn
from mirrorgan_fast.inference.fused_glam import FusedGLAM
from mirrorgan_fast.inference.fused_stackgan import FusedStackGAN
from mirrorgan_fast.inference.fused_stackgan_v2 import FusedStackGANv2
from mirrorgan_fast.models.gan_int_cls import GanIntClsGenerator
from mirrorgan_fast.models.gawwn import GawwnBoxGenerator
from mirrorgan_fast.models.glam import GLAM
from mirrorgan_fast.models.stackgan import StackGANGenerator

FusedGenerator = FusedGLAM | FusedStackGANv2 | FusedStackGAN | FusedGanIntCls | FusedGawwn
"""Takes what the generator takes, and returns the last images, uint8 (N, S, S, 3). If ``out`` is
given, they are written there."""


def fuse_generator(generator: nn.Module, dtype: torch.dtype | None = None) -> FusedGenerator:
    """Make a generator ready for inference, in a data type (default: the fastest).

    Raises:
        InputError: another data type.
    """
    match generator:
        case GanIntClsGenerator():
            return FusedGanIntCls(generator, dtype)
        case GawwnBoxGenerator():
            return FusedGawwn(generator, dtype)
        case StackGANGenerator():
            return FusedStackGAN(generator, dtype)
        case GLAM() if generator.attends or not generator.F_att:
            return FusedGLAM(generator, dtype)
        case GLAM():
            return FusedStackGANv2(generator, dtype)
    raise TypeError(f"{type(generator).__name__} cannot be fused")
