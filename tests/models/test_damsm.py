"""DAMSM: its image encoder, and the similarity of images and captions."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mirrorgan_fast.metrics.r_precision import sentence_similarity
from mirrorgan_fast.models.backbones.inception_v3 import InceptionV3
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.ops import word_similarity
from mirrorgan_fast.recipes import find_recipe

Match = Callable[[Tensor, Tensor], None]

SMALL = MirrorGANConfig(embedding_size=6, image_encoder="small")


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / ((a @ a).sqrt() * (b @ b).sqrt())


def test_parameters_of_the_authors_image_encoder() -> None:
    with torch.device("meta"):
        encoder = DAMSMImageEncoder(find_recipe("cub").config)
    assert sum(p.numel() for p in encoder.parameters()) == 22_506_720


def test_shapes_with_inception() -> None:
    with torch.device("meta"):
        regions, codes = DAMSMImageEncoder(find_recipe("cub").config)(torch.zeros(2, 3, 256, 256))
    assert regions.shape == (2, 17 * 17, 256)
    assert codes.shape == (2, 256)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_shapes_with_the_small_encoder(size: int) -> None:
    regions, codes = DAMSMImageEncoder(SMALL)(torch.rand(2, 3, size, size) * 2 - 1)
    assert regions.shape == (2, 8 * 8, 6)
    assert codes.shape == (2, 6)


@torch.no_grad()
def test_an_encoding_does_not_depend_on_the_other_images() -> None:
    torch.manual_seed(0)
    encoder = DAMSMImageEncoder(SMALL).eval()
    image = torch.rand(3, 3, 48, 48) * 2 - 1
    regions, codes = encoder(image)
    regions_alone, codes_alone = encoder(image[1:2])
    torch.testing.assert_close(regions_alone, regions[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(codes_alone, codes[1:2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_regions_are_in_the_order_of_the_image() -> None:
    """Region r is at row r // 8, column r % 8 of the image."""
    torch.manual_seed(1)
    encoder = DAMSMImageEncoder(SMALL).eval()
    image = torch.zeros(1, 3, 128, 128)
    changed = image.clone()
    changed[:, :, 80:96, 16:32] = 1  # row 5, column 1 of 8 x 8
    difference = (encoder(changed)[0] - encoder(image)[0]).abs().sum(dim=2)
    row, column = divmod(int(difference.argmax()), 8)
    assert abs(row - 5) <= 1
    assert abs(column - 1) <= 1


def test_sentence_similarity_is_the_cosine(assert_matches: Match) -> None:
    torch.manual_seed(5)
    sentences, codes = torch.randn(4, 6), torch.randn(3, 6)
    expected = torch.tensor(
        [[cosine(code, sentence) for sentence in sentences.double()] for code in codes.double()],
        dtype=torch.float64,
    )
    assert_matches(sentence_similarity(sentences, codes), expected)


def test_matching_pairs_are_the_most_similar() -> None:
    """Among the regions of each of the three images are the words of its own caption."""
    torch.manual_seed(6)
    words = torch.randn(3, 4, 32) * 3
    v = torch.cat([words, torch.randn(3, 12, 32)], dim=1)[:, torch.randperm(16)]
    similarity = word_similarity(words, torch.ones(3, 4, dtype=torch.bool), v)
    assert similarity.argmax(dim=0).tolist() == [0, 1, 2]
    assert similarity.argmax(dim=1).tolist() == [0, 1, 2]


def test_a_backbone_with_published_weights_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(InceptionV3, "load", lambda self, path: loaded.append(path))
    with torch.device("meta"):
        encoder = DAMSMImageEncoder(find_recipe("cub").config, "inception.pth")
        from_nothing = DAMSMImageEncoder(find_recipe("cub").config)
    assert loaded == ["inception.pth"]
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {
        "region_embedding.weight",
        "image_embedding.weight",
        "image_embedding.bias",
    }
    assert all(p.requires_grad for p in from_nothing.parameters())
