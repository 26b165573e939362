"""AttnGAN (Xu et al., 2018): a caption goes in, an image comes out, word attention in between."""

from mirrorgan_fast.models.config import AttnGANConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.text_to_image import Cascade
from mirrorgan_fast.vocabulary import Vocabulary


class AttnGAN(Cascade):
    """A text encoder and a cascade with word attention, trained with DAMSM's image encoder.

    The parts that it shares with MirrorGAN have that paper's names: ``stem`` is the text encoder,
    and ``glam`` the cascade, without sentence attention.
    """

    SYSTEM = "attngan"
    CONFIG = AttnGANConfig
    config: AttnGANConfig

    def __init__(self, config: AttnGANConfig, vocabulary: Vocabulary) -> None:
        super().__init__(config, vocabulary)
        self.image_encoder = DAMSMImageEncoder(config)
