"""The discriminators: sizes, what each judgement depends on."""

import dataclasses

import pytest
import torch

from mirrorgan_fast.models.config import ModelConfig
from mirrorgan_fast.models.discriminator import Discriminator

CONFIG = ModelConfig(discriminator_channels=2, embedding_size=6)


@pytest.mark.parametrize(
    ("image_size", "parameters"), [(64, 6_313_730), (128, 19_424_002), (256, 71_858_946)]
)
def test_parameters_of_the_authors_discriminators(image_size: int, parameters: int) -> None:
    with torch.device("meta"):
        discriminator = Discriminator(ModelConfig.preset("cub"), image_size)
    assert sum(p.numel() for p in discriminator.parameters()) == parameters


@pytest.mark.parametrize("image_size", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_size_ends_in_4x4_and_a_logit(image_size: int, batch: int) -> None:
    discriminator = Discriminator(CONFIG, image_size)
    features = discriminator(torch.rand(batch, 3, image_size, image_size) * 2 - 1)
    assert features.shape == (batch, 2 * min(8, image_size // 8), 4, 4)
    assert discriminator.unconditional(features).shape == (batch,)
    assert discriminator.conditional(features, torch.randn(batch, 6)).shape == (batch,)


@torch.no_grad()
def test_the_conditional_logit_is_of_the_pair() -> None:
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


@torch.no_grad()
def test_judging_does_not_change_the_features() -> None:
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


@torch.no_grad()
def test_spectral_norm_bounds_every_convolution() -> None:
    torch.manual_seed(2)
    config = dataclasses.replace(CONFIG, discriminator_norm="spectral")
    discriminator = Discriminator(config, 32)
    for parameter in discriminator.parameters():
        parameter.normal_(0, 3)
    image, sentence = torch.rand(4, 3, 32, 32) * 2 - 1, torch.randn(4, 6)
    for _ in range(30):  # one step of the power iteration each
        logits = discriminator.conditional(discriminator(image), sentence)
        discriminator.unconditional(discriminator(image))
    convolutions = [m for m in discriminator.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 6
    for convolution in convolutions:
        largest = torch.linalg.matrix_norm(convolution.weight.flatten(1), ord=2)
        torch.testing.assert_close(largest, torch.ones(()), rtol=0.02, atol=0)
    # Nothing is normalised over the batch, training or not.
    alone = discriminator.conditional(discriminator(image[:1]), sentence[:1])
    torch.testing.assert_close(alone, logits[:1], rtol=0.05, atol=0.05)
