"""Fast MirrorGAN and AttnGAN: generate images from captions, and describe images in words."""

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.attngan import AttnGAN
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.recipes import load
from mirrorgan_fast.sampling.sampler import Sampler

__all__ = ["AttnGAN", "InputError", "MirrorGAN", "Sampler", "load"]
