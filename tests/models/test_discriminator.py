"""The discriminators: their shapes and parameters, and what each logit depends on."""

import dataclasses

import pytest
import torch

from mirrorgan_fast.models.config import MirrorGANConfig, Norm
from mirrorgan_fast.models.discriminator import Discriminator
from mirrorgan_fast.recipes import find_recipe

CONFIG = MirrorGANConfig(discriminator_channels=2, embedding_size=6)


@pytest.mark.parametrize(
    ("image_size", "parameters"), [(64, 6_313_730), (128, 19_424_002), (256, 71_858_946)]
)
def test_parameters_of_the_authors_discriminators(image_size: int, parameters: int) -> None:
    with torch.device("meta"):
        discriminator = Discriminator(find_recipe("cub").config, image_size)
    assert sum(p.numel() for p in discriminator.parameters()) == parameters


@pytest.mark.parametrize("image_size", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_image_size_gives_4x4_features_and_one_logit(image_size: int, batch: int) -> None:
    discriminator = Discriminator(CONFIG, image_size)
    features = discriminator(torch.rand(batch, 3, image_size, image_size) * 2 - 1)
    assert features.shape == (batch, 2 * min(8, image_size // 8), 4, 4)
    assert discriminator.unconditional(features).shape == (batch,)
    assert discriminator.conditional(features, torch.randn(batch, 6)).shape == (batch,)


@torch.no_grad()
def test_a_conditional_logit_depends_on_its_own_image_and_sentence_only() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(CONFIG, 32).eval()
    image, sentence = torch.rand(4, 3, 32, 32) * 2 - 1, torch.randn(4, 6)
    features = discriminator(image)
    logits = discriminator.conditional(features, sentence)
    moved = discriminator.conditional(features, sentence.roll(1, dims=0))
    assert (logits - moved).abs().min() > 1e-5
    for n in range(4):
        alone = discriminator(image[n : n + 1])
        torch.testing.assert_close(
            discriminator.conditional(alone, sentence[n : n + 1]), logits[n : n + 1]
        )
        torch.testing.assert_close(
            discriminator.unconditional(alone), discriminator.unconditional(features)[n : n + 1]
        )


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("size", [32, 48])
def test_the_joint_convolution_sees_the_sentence_at_every_pixel(norm: Norm, size: int) -> None:
    torch.manual_seed(4)
    config = dataclasses.replace(CONFIG, discriminator_norm=norm)
    discriminator = Discriminator(config, 32).double()
    image = torch.rand(3, 3, size, size, dtype=torch.float64).requires_grad_()
    sentences = [torch.randn(3, 6, dtype=torch.float64).requires_grad_() for _ in range(2)]
    features = discriminator(image)
    wanted = []
    for sentence in sentences:
        everywhere = sentence[:, :, None, None].expand(-1, -1, *features.shape[2:])
        joint = discriminator.joint(torch.cat([features, everywhere], dim=1))
        wanted.append(discriminator.conditional_logit(joint).flatten())
    found = discriminator.conditionals(features, sentences)
    learned = [image, *sentences, *discriminator.parameters()]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        cotangent = torch.randn_like(one)
        grads, others = (
            torch.autograd.grad(result, learned, cotangent, retain_graph=True, allow_unused=True)
            for result in (one, other)
        )
        torch.testing.assert_close(grads, others, rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_computing_logits_does_not_change_the_features() -> None:
    torch.manual_seed(1)
    discriminator = Discriminator(CONFIG, 64)
    features = discriminator(torch.rand(2, 3, 64, 64))
    before = features.clone()
    discriminator.conditional(features, torch.randn(2, 6))
    discriminator.unconditional(features)
    assert torch.equal(features, before)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_odd_widths(channels: int) -> None:
    config = dataclasses.replace(CONFIG, discriminator_channels=channels)
    features = Discriminator(config, 128)(torch.rand(2, 3, 128, 128))
    assert features.shape == (2, 8 * channels, 4, 4)


@pytest.mark.parametrize(("norm", "independent"), [("batch", False), ("none", True)])
def test_without_a_norm_a_logit_does_not_depend_on_other_images(
    norm: Norm, independent: bool
) -> None:
    torch.manual_seed(2)
    discriminator = Discriminator(dataclasses.replace(CONFIG, discriminator_norm=norm), 32)
    images = (torch.rand(4, 3, 32, 32) * 2 - 1).requires_grad_()
    features = discriminator(images)
    logits = discriminator.unconditional(features) + discriminator.conditional(
        features, torch.randn(4, 6)
    )
    (slope,) = torch.autograd.grad(logits[1], images)
    assert slope[1].abs().max() > 1e-3
    assert (slope[[0, 2, 3]].abs().max() == 0) == independent


@torch.no_grad()
def test_without_a_norm_the_features_keep_the_scale_of_the_image() -> None:
    torch.manual_seed(3)
    config = dataclasses.replace(CONFIG, discriminator_channels=32, discriminator_norm="none")
    discriminator = Discriminator(config, 64)
    image = torch.randn(8, 3, 64, 64)
    assert 0.2 < discriminator(image).std() / image.std() < 2
