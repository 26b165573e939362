"""Fast text-to-image GANs: generate images from captions, and describe images in words."""

from mirrorgan_fast.openmp import spin_briefly

spin_briefly()  # before PyTorch is loaded

from mirrorgan_fast.errors import InputError  # noqa: E402
from mirrorgan_fast.inference.translator import Translator  # noqa: E402
from mirrorgan_fast.models.attngan import AttnGAN  # noqa: E402
from mirrorgan_fast.models.cyclegan import CycleGAN  # noqa: E402
from mirrorgan_fast.models.gan_int_cls import GanIntCls  # noqa: E402
from mirrorgan_fast.models.gawwn import Gawwn  # noqa: E402
from mirrorgan_fast.models.mirrorgan import MirrorGAN  # noqa: E402
from mirrorgan_fast.models.stackgan import StackGAN  # noqa: E402
from mirrorgan_fast.models.stackgan_v2 import StackGANv2  # noqa: E402
from mirrorgan_fast.recipes import load  # noqa: E402
from mirrorgan_fast.sampling.sampler import Sampler  # noqa: E402

__all__ = [
    "AttnGAN",
    "CycleGAN",
    "GanIntCls",
    "Gawwn",
    "InputError",
    "MirrorGAN",
    "Sampler",
    "StackGAN",
    "StackGANv2",
    "Translator",
    "load",
]
