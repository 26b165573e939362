"""GLAM against its formulas, and the images' independence of the other captions."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.glam import (
    GLAM,
    Attention,
    FirstTransformer,
    ImageGenerator,
    Transformer,
)
from mirrorgan_fast.models.layers import BatchNormActivation, ResidualBlock, UpBlock, initialize
from mirrorgan_fast.models.stem import word_mask
from mirrorgan_fast.recipes import find_recipe

Match = Callable[[Tensor, Tensor], None]

CONFIG = MirrorGANConfig(
    image_size=32,
    generator_channels=4,
    residual_blocks=1,
    noise_size=7,
    condition_size=5,
    embedding_size=6,
)
FORMS = ("paper", "authors", "none")


class Inputs(NamedTuple):
    """The arguments of GLAM for a batch of captions."""

    noise: Tensor
    condition_noise: Tensor
    words: Tensor
    mask: Tensor
    sentence: Tensor


def inputs(config: MirrorGANConfig, lengths: list[int], width: int) -> Inputs:
    mask = word_mask(torch.tensor(lengths), width)
    return Inputs(
        torch.randn(len(lengths), config.noise_size),
        torch.randn(len(lengths), config.condition_size),
        torch.randn(len(lengths), width, config.embedding_size) * mask[:, :, None],
        mask,
        torch.randn(len(lengths), config.embedding_size),
    )


def with_form(form: str) -> MirrorGANConfig:
    return dataclasses.replace(CONFIG, sentence_attention=form)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


@pytest.mark.parametrize(
    ("form", "parameters"),
    [
        ("authors", 7_105_392),  # qiaott/MirrorGAN
        ("none", 7_084_592),  # taoxugit/AttnGAN
        ("paper", 7_105_392 - 2 * 32 * 32),  # without the two 1x1 convolutions
    ],
)
def test_parameters_of_the_birds_generator(form: str, parameters: int) -> None:
    config = dataclasses.replace(find_recipe("cub").config, sentence_attention=form)
    with torch.device("meta"):
        glam = GLAM(config)
    assert sum(p.numel() for p in glam.parameters()) == parameters


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("image_size", "stages", "channels", "blocks"),
    [(8, 1, 3, 1), (16, 2, 5, 2), (64, 2, 2, 1), (64, 4, 4, 3)],
)
def test_shapes_and_ranges(
    form: str, image_size: int, stages: int, channels: int, blocks: int
) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(
        with_form(form),
        image_size=image_size,
        stages=stages,
        generator_channels=channels,
        residual_blocks=blocks,
    )
    given = inputs(config, [3, 5, 1], 5)
    glam = GLAM(config)
    images, mu, log_var = glam(*given)
    assert [tuple(image.shape) for image in images] == [
        (3, 3, size, size) for size in config.stage_sizes
    ]
    assert all(image.abs().max() <= 1 and image.std() > 0.01 for image in images)
    assert mu.shape == log_var.shape == (3, config.condition_size)
    maps = glam.attention_maps(*given)
    assert [tuple(part.shape) for part in maps] == [
        (3, 5, size, size) for size in config.stage_sizes[:-1]
    ]


@pytest.mark.parametrize("preset", ["cub", "coco", "cub-paper", "attngan-coco", "birds-painted"])
@torch.no_grad()
def test_shapes_of_the_presets(preset: str) -> None:
    config = find_recipe(preset).config
    images, _, _ = GLAM(config).eval()(*inputs(config, [3], 5))
    assert [tuple(image.shape) for image in images] == [
        (1, 3, size, size) for size in config.stage_sizes
    ]


@pytest.mark.parametrize("form", FORMS)
def test_attention_matches_the_formulas(assert_matches: Match, form: str) -> None:
    torch.manual_seed(1)
    attention = Attention(with_form(form))
    lengths = [4, 1, 7]
    given = inputs(CONFIG, lengths, 7)
    f, s_ca = torch.randn(3, 4, 2, 3), torch.randn(3, 5)
    actual = attention(f, given.words, given.mask, s_ca)

    attention.double()
    expected = torch.empty(3, 8, 2, 3, dtype=torch.float64)
    for n, length in enumerate(lengths):
        keys = [attention.U.weight @ given.words[n, t].double() for t in range(length)]
        for row in range(2):
            for column in range(3):
                h = f[n, :, row, column].double()
                weights = [(h @ key).exp() for key in keys]
                weighted = [w * key for w, key in zip(weights, keys, strict=True)]
                parts = [h, sum(weighted) / sum(weights)]
                if form != "none":
                    s = attention.V.weight @ s_ca[n].double() + attention.V.bias
                    gate = h * s
                    if form == "authors":
                        gate = attention.sentence_conv.weight[:, :, 0, 0] @ gate
                    parts.append(s * gate.exp() / gate.exp().sum())
                context = torch.cat(parts)
                if form != "none":
                    context = attention.mix.weight[:, :, 0, 0] @ context
                expected[n, :, row, column] = context
    assert_matches(actual, expected.detach())


@torch.no_grad()
def test_blocks_match_the_formulas(assert_matches: Match) -> None:
    torch.manual_seed(2)
    x = torch.randn(3, 4, 6, 5)

    def norm(values: Tensor, module: nn.BatchNorm2d) -> Tensor:
        mean = values.mean(dim=(0, 2, 3), keepdim=True)
        variance = ((values - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
        scaled = (values - mean) / (variance + module.eps).sqrt()
        return scaled * module.weight[:, None, None] + module.bias[:, None, None]

    def glu(values: Tensor) -> Tensor:
        half = values.shape[1] // 2
        return values[:, :half] * sigmoid(values[:, half:])

    def conv(values: Tensor, module: nn.Conv2d) -> Tensor:
        assert module.bias is None
        patches = nn.functional.unfold(values, 3, padding=1)
        return (module.weight.flatten(1) @ patches).view(len(values), -1, *values.shape[2:])

    for height, width in ((6, 5), (15, 18), (17, 16)):  # from 16 px on: sub-pixel form
        small = torch.randn(3, 4, height, width)
        up = UpBlock(4, 3)
        initialize(up)
        actual = up(small)
        up.double()
        enlarged = small.double().repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        assert_matches(actual, glu(norm(conv(enlarged, up[0]), up[1])))

    residual = ResidualBlock(4)
    initialize(residual)
    actual = residual(x)
    first, first_norm, second, second_norm = residual.double().block
    inner = glu(norm(conv(x.double(), first), first_norm))
    assert_matches(actual, x.double() + norm(conv(inner, second), second_norm))

    image = ImageGenerator(CONFIG.generator_channels)
    actual = image(x)
    exponential = torch.exp(2 * conv(x.double(), image.double()[0]))
    assert_matches(actual, (exponential - 1) / (exponential + 1))


@torch.no_grad()
def test_first_features_come_from_condition_and_noise(assert_matches: Match) -> None:
    torch.manual_seed(3)
    first = FirstTransformer(CONFIG)
    noise, s_ca = torch.randn(4, 7), torch.randn(4, 5)
    first.upsample = nn.Sequential()  # only what comes before it is tested
    actual = first(noise, s_ca)

    first.double()
    x = torch.cat([s_ca, noise], dim=1).double() @ first.linear.weight.T
    x = (x - x.mean(0)) / (x.var(0, correction=0) + first.norm.eps).sqrt()
    x = x * first.norm.weight + first.norm.bias
    half = x.shape[1] // 2
    assert_matches(actual, (x[:, :half] * sigmoid(x[:, half:])).view(4, 8, 4, 4))


@torch.no_grad()
def test_the_cascade_matches_the_paper() -> None:
    """f_0 = F_0(z, s_ca); f_i = F_i(F_att_i(f_{i-1}, w, s_ca)); I_i = G_i(f_i)."""
    torch.manual_seed(4)
    glam = GLAM(CONFIG).eval()
    given = inputs(CONFIG, [3, 6], 6)
    images, mu, log_var = glam(*given)

    s_ca = mu + (log_var / 2).exp() * given.condition_noise
    f_0 = glam.F[0](given.noise, s_ca)
    f_1 = glam.F[1](glam.F_att[0](f_0, given.words, given.mask, s_ca))
    f_2 = glam.F[2](glam.F_att[1](f_1, given.words, given.mask, s_ca))
    for image, G_i, f_i in zip(images, glam.G, (f_0, f_1, f_2), strict=True):
        torch.testing.assert_close(image, G_i(f_i))


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_an_image_depends_on_its_own_caption_only(form: str) -> None:
    """The other captions of the batch, their lengths and the padding have no effect."""
    torch.manual_seed(5)
    glam = GLAM(with_form(form)).eval()
    lengths = [2, 9, 1, 5]
    given = inputs(CONFIG, lengths, 9)
    images, maps = glam(*given).images, glam.attention_maps(*given)
    for n, length in enumerate(lengths):
        alone = Inputs(*(tensor[n : n + 1] for tensor in given))
        alone = alone._replace(words=alone.words[:, :length], mask=alone.mask[:, :length])
        for image, image_alone in zip(images, glam(*alone).images, strict=True):
            torch.testing.assert_close(image[n : n + 1], image_alone, rtol=1e-4, atol=1e-5)
        for part, part_alone in zip(maps, glam.attention_maps(*alone), strict=True):
            torch.testing.assert_close(part[n, :length], part_alone[0], rtol=1e-4, atol=1e-5)

    garbage = given.words.masked_fill(~given.mask[:, :, None], 1e4)
    for image, same in zip(images, glam(*given._replace(words=garbage)).images, strict=True):
        torch.testing.assert_close(same, image)


@torch.no_grad()
def test_attention_maps_sum_to_one_without_the_padding() -> None:
    torch.manual_seed(6)
    glam = GLAM(CONFIG).eval()
    given = inputs(CONFIG, [2, 9, 1, 5], 9)
    for part in glam.attention_maps(*given):
        torch.testing.assert_close(part.sum(dim=1), torch.ones_like(part[:, 0]))
        assert not part[~given.mask].any()
        assert (part >= 0).all()
        torch.testing.assert_close(part[2, 0], torch.ones_like(part[2, 0]))  # the only word


@torch.no_grad()
def test_every_input_changes_the_image() -> None:
    torch.manual_seed(7)
    glam = GLAM(CONFIG).eval()
    given = inputs(CONFIG, [3, 6], 6)
    image = glam(*given).images[-1]
    for name in ("noise", "condition_noise", "words", "sentence"):
        changed = getattr(given, name).clone()
        changed[0] += torch.randn_like(changed[0])
        other = glam(*given._replace(**{name: changed})).images[-1]
        assert (other[0] - image[0]).abs().max() > 1e-3, name
        torch.testing.assert_close(other[1], image[1])


@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_the_layers_it_needs(form: str) -> None:
    expected = {
        "paper": {"U", "V", "mix"},
        "authors": {"U", "V", "mix", "sentence_conv"},
        "none": {"U"},
    }
    names = {name.split(".")[0] for name, _ in Attention(with_form(form)).named_parameters()}
    assert names == expected[form]


def test_initialization_matches_the_authors_code() -> None:
    torch.manual_seed(8)
    blocks = Transformer(64, 32, CONFIG.residual_blocks)
    initialize(blocks)
    for module in blocks.modules():
        if isinstance(module, nn.Conv2d):
            rows = module.weight.detach().flatten(1)
            torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), rtol=0, atol=1e-5)
        elif isinstance(module, nn.BatchNorm2d | BatchNormActivation):
            assert not module.bias.any()
            count = module.weight.numel()
            assert abs(module.weight.mean() - 1) < 0.02 * 5 / math.sqrt(count)
            assert 0.01 < module.weight.std() < 0.03
