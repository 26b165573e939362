"""DAMSM, AttnGAN's attentional multimodal similarity model: how well an image fits a caption."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.models.config import ModelConfig
from mirrorgan_fast.models.image_encoder import SmallImageEncoder
from mirrorgan_fast.models.inception import InceptionV3


class DAMSMImageEncoder(nn.Module):
    """Image regions and the whole image, in the space of STEM's words and sentences.

    ``backbone_weights`` names a file of ImageNet weights for Inception-v3, which stays frozen as
    in AttnGAN; the small CNN is trained with the rest.
    """

    def __init__(self, config: ModelConfig, backbone_weights: str | Path | None = None) -> None:
        super().__init__()
        self.cnn: InceptionV3 | SmallImageEncoder
        if config.image_encoder == "inception_v3":
            self.cnn = InceptionV3(classifier=False)
            if backbone_weights is not None:
                self.cnn.load(backbone_weights)
                self.cnn.requires_grad_(False)
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
        """Do what ``forward`` does with what the CNN has seen in the images."""
        return (
            self.region_embedding(regions).flatten(2).transpose(1, 2),
            self.image_embedding(pooled),
        )


def word_similarity(
    words: Tensor,  # (M, T, D)
    mask: Tensor,  # (M, T)
    regions: Tensor,  # (N, R, D)
    *,
    gamma1: float = 4.0,
    gamma2: float = 5.0,
) -> Tensor:
    """Match every image with every caption by its words (AttnGAN, eq. 7 to 10).

    Each word looks at the regions it fits best, gamma1 sharpening the look; the cosines between
    the words and what they see are pooled by a smooth maximum of sharpness gamma2.

    Args:
        words: w of M captions.
        mask: bool, true at real words; each caption has at least one.
        regions: v of N images.
        gamma1: sharpness of the attention over regions.
        gamma2: sharpness of the pooling over words.

    Returns:
        log sum_t exp(gamma2 cos(c_t, w_t)), (N, M).
    """
    with torch.autocast(words.device.type, enabled=False):
        # the one large product, in the precision that the features came in
        scores = torch.einsum("mtd,nrd->nmtr", words, regions.to(words.dtype)).float()
        words, regions = words.float(), regions.float()
        over_words = scores.masked_fill(~mask[:, :, None], -torch.inf).softmax(dim=2)
        looks = (over_words * gamma1).softmax(dim=3)
        # What a word sees is c_t = sum_r looks v_r. Its product with the word and its length follow
        # from the scores and the regions' products: the (N, M, T, D) tensor of c_t is not needed.
        seen_words = (looks * scores).sum(dim=3)
        region_products = regions @ regions.transpose(1, 2)
        # all captions' looks at an image in one product, or the image's matrix is copied for each
        reached = (looks.flatten(1, 2) @ region_products).view_as(looks)
        seen_norms = (reached * looks).sum(dim=3).clamp(min=1e-12).sqrt()
        # Padding has words of length 0
        word_norms = words.norm(dim=2).clamp(min=1e-6)
        cosines = seen_words / (seen_norms * word_norms)
        similarity: Tensor = (cosines * gamma2).masked_fill(~mask, -torch.inf).logsumexp(dim=2)
    return similarity


def sentence_similarity(
    sentences: Tensor,  # (M, D)
    codes: Tensor,  # (N, D)
) -> Tensor:
    """Return the cosine (N, M) of every image's code with every sentence (AttnGAN, eq. 13)."""
    directions = functional.normalize(codes.float(), dim=1)
    return directions @ functional.normalize(sentences.float(), dim=1).T
