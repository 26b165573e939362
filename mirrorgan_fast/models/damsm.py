"""DAMSM, AttnGAN's attentional multimodal similarity model: how well an image matches a caption."""

from pathlib import Path

from torch import Tensor, nn

from mirrorgan_fast.models.backbones.efficientnet_lite import EfficientNetLite, lite0
from mirrorgan_fast.models.backbones.inception_v3 import InceptionV3
from mirrorgan_fast.models.backbones.small import SmallImageEncoder
from mirrorgan_fast.models.config import TextToImageConfig


class DAMSMImageEncoder(nn.Module):
    """Embeds image regions and whole images in the space of STEM's words and sentences.

    ``backbone_weights`` is a file of ImageNet weights for Inception-v3, which stays frozen as in
    AttnGAN. EfficientNet-Lite0 comes with the package and never learns. The small CNN is trained
    before, and then stays frozen too (``training.matcher``).
    """

    def __init__(
        self, config: TextToImageConfig, backbone_weights: str | Path | None = None
    ) -> None:
        super().__init__()
        self.cnn: InceptionV3 | EfficientNetLite | SmallImageEncoder
        if config.image_encoder == "inception_v3":
            self.cnn = InceptionV3(classifier=False)
            if backbone_weights is not None:
                self.cnn.load(backbone_weights)
                self.cnn.requires_grad_(False)
        elif config.image_encoder == "efficientnet_lite0":
            self.cnn = lite0()
        else:
            self.cnn = SmallImageEncoder()
        self.region_embedding = nn.Conv2d(
            self.cnn.region_channels, config.embedding_size, 1, bias=False
        )
        self.image_embedding = nn.Linear(self.cnn.pooled_size, config.embedding_size)
        nn.init.uniform_(self.region_embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.image_embedding.weight, -0.1, 0.1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images (N, 3, S, S) in [-1, 1].

        Returns:
            regions v (N, R, D) and the image's code (N, D).
        """
        return self.embed(*self.cnn(image))

    def embed(
        self,
        regions: Tensor,  # (N, C, H, W)
        pooled: Tensor,  # (N, P)
    ) -> tuple[Tensor, Tensor]:
        """Do what ``forward`` does, with the features that the CNN computed from the images."""
        return (
            self.region_embedding(regions).flatten(2).transpose(1, 2),
            self.image_embedding(pooled),
        )
