"""MirrorGAN, fast and complete: a caption goes in, an image comes out and can be described back."""

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.sampling.sampler import Sampler

__all__ = ["InputError", "MirrorGAN", "Sampler"]
