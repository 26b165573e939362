"""StackGAN++ (v2; Zhang et al., 2018): a cascade of generators without attention."""

from mirrorgan_fast.models.config import StackGANv2Config
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.text_to_image import Cascade
from mirrorgan_fast.vocabulary import Vocabulary


class StackGANv2(Cascade):
    """A text encoder and a cascade in which every stage sees the sentence, s_ca.

    It is MirrorGAN without word and sentence attention and without STREAM. Parts have that paper's
    names: ``glam`` is the cascade, and its ``F_att`` joins s_ca with the features. DAMSM's image
    encoder has no part in the training; with it, the text encoder was trained, and R-precision is
    measured.
    """

    SYSTEM = "stackgan-v2"
    CONFIG = StackGANv2Config
    config: StackGANv2Config

    def __init__(self, config: StackGANv2Config, vocabulary: Vocabulary) -> None:
        super().__init__(config, vocabulary)
        self.image_encoder = DAMSMImageEncoder(config)
