"""The table of all systems."""

from mirrorgan_fast.models.attngan import AttnGAN
from mirrorgan_fast.models.config import CycleGANConfig, SystemConfig, TextToImageConfig
from mirrorgan_fast.models.cyclegan import CycleGAN
from mirrorgan_fast.models.gan_int_cls import GanIntCls
from mirrorgan_fast.models.gawwn import Gawwn
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.models.stackgan import StackGAN
from mirrorgan_fast.models.stackgan_v2 import StackGANv2
from mirrorgan_fast.models.text_to_image import TextToImage

SYSTEMS: dict[str, type[TextToImage]] = {
    system.SYSTEM: system for system in (MirrorGAN, AttnGAN, StackGANv2, StackGAN, GanIntCls, Gawwn)
}
"""The class of each text-to-image system, by its name in config.json."""


def system_of(config: TextToImageConfig) -> type[TextToImage]:
    """Return the class of the system that has sizes of this class."""
    return next(system for system in SYSTEMS.values() if system.CONFIG is type(config))


def name_of(config: SystemConfig) -> str:
    """Return the name of the system that has sizes of this class, as it is in config.json."""
    if isinstance(config, TextToImageConfig):
        return system_of(config).SYSTEM
    return CycleGAN.SYSTEM


def config_class(name: str) -> type[SystemConfig] | None:
    """Return the class of the sizes of the system with this name; None: there is none."""
    if name == CycleGAN.SYSTEM:
        return CycleGANConfig
    return SYSTEMS[name].CONFIG if name in SYSTEMS else None


def names() -> list[str]:
    """Return the names of all systems."""
    return [*SYSTEMS, CycleGAN.SYSTEM]
