"""The table of all text-to-image systems."""

from mirrorgan_fast.models.attngan import AttnGAN
from mirrorgan_fast.models.config import TextToImageConfig
from mirrorgan_fast.models.gan_int_cls import GanIntCls
from mirrorgan_fast.models.gawwn import Gawwn
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.models.stackgan import StackGAN
from mirrorgan_fast.models.stackgan_v2 import StackGANv2
from mirrorgan_fast.models.text_to_image import TextToImage

SYSTEMS: dict[str, type[TextToImage]] = {
    system.SYSTEM: system for system in (MirrorGAN, AttnGAN, StackGANv2, StackGAN, GanIntCls, Gawwn)
}
"""The class of each system, by its name in config.json."""


def system_of(config: TextToImageConfig) -> type[TextToImage]:
    """Return the class of the system that has sizes of this class."""
    return next(system for system in SYSTEMS.values() if system.CONFIG is type(config))
