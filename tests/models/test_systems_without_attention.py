"""Systems without attention: their sizes, and that all ways of inference give the same images."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mirrorgan_fast
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.figures.walk import walk
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.config import (
    GanIntClsConfig,
    GawwnConfig,
    StackGANConfig,
    StackGANv2Config,
)
from mirrorgan_fast.models.discriminator import Discriminator
from mirrorgan_fast.models.gan_int_cls import GanIntClsDiscriminator, GanIntClsGenerator
from mirrorgan_fast.models.stackgan import StackGAN, StackGANGenerator
from mirrorgan_fast.models.stackgan_v2 import StackGANv2
from mirrorgan_fast.models.systems import system_of
from mirrorgan_fast.models.text_to_image import TextToImage
from mirrorgan_fast.sampling.sampler import Sampler
from mirrorgan_fast.training.stackgan import first_stage_of
from mirrorgan_fast.vocabulary import END, Vocabulary
from tests.small import WORDS, enliven

BLOCKS = "residual_blocks"
SIZES = {
    "embedding_size": 16,
    "word_embedding_size": 8,
    "caption_length": 8,
    "condition_size": 5,
    "noise_size": 6,
    "residual_blocks": 1,
    "discriminator_channels": 4,
    "image_encoder": "small",
}
CONFIGS = {
    "stackgan": StackGANConfig(image_size=32, first_size=16, generator_channels=8, **SIZES),
    "stackgan, four times": StackGANConfig(
        image_size=64, first_size=16, generator_channels=8, **SIZES
    ),
    "stackgan, one stage": StackGANConfig(
        image_size=16, first_size=16, stages=1, generator_channels=8, **SIZES
    ),
    "stackgan-v2": StackGANv2Config(image_size=32, stages=2, generator_channels=8, **SIZES),
    "gan-int-cls": GanIntClsConfig(
        image_size=32, generator_channels=8, **{k: v for k, v in SIZES.items() if k != BLOCKS}
    ),
    "gan-int-cls, 128 px": GanIntClsConfig(
        image_size=128, generator_channels=4, **{k: v for k, v in SIZES.items() if k != BLOCKS}
    ),
    "gawwn": GawwnConfig(
        image_size=32, generator_channels=8, **{k: v for k, v in SIZES.items() if k != BLOCKS}
    ),
    "gawwn, 128 px": GawwnConfig(
        image_size=128, generator_channels=4, **{k: v for k, v in SIZES.items() if k != BLOCKS}
    ),
    "stackgan-v2, three stages": StackGANv2Config(
        image_size=64, stages=3, generator_channels=32, **SIZES
    ),
}
PUBLISHED = {  # the authors' sizes for COCO, and the defaults of their code
    "coco": StackGANConfig(
        generator_channels=192, discriminator_channels=96, residual_blocks=2, embedding_size=1024
    ),
    "birds": StackGANConfig(embedding_size=1024),
}


def model_of(name: str) -> TextToImage:
    config = CONFIGS[name]
    torch.manual_seed(1)
    model = system_of(config)(config, Vocabulary([END, *WORDS])).eval()
    enliven(model.generator)
    return model


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "stage1", "D1", "whole", "D2"),
    [
        ("coco", 20_020_832, 12_407_425, 57_151_312, 159_889_538),
        ("birds", 10_301_248, 5_715_713, 36_591_328, 71_269_122),
    ],
)
def test_stackgan_has_as_many_parameters_as_the_authors(
    name: str,
    stage1: int,
    D1: int,  # noqa: N803
    whole: int,
    D2: int,  # noqa: N803
) -> None:
    config = PUBLISHED[name]
    with torch.device("meta"):
        generator = StackGANGenerator(config)
        first = Discriminator(config, config.first_size, unconditional=False)
        second = Discriminator(config, config.image_size)
    assert (count(generator.stage1), count(generator)) == (stage1, whole)
    assert (count(first), count(second)) == (D1, D2)
    assert count(generator.stage1.augment) == 262_400


def test_stackgan_v2_has_as_many_parameters_as_the_authors() -> None:
    """Counted in the authors' code with a text of 1,024 numbers."""
    config = StackGANv2Config(embedding_size=1024)
    with torch.device("meta"):
        model = StackGANv2(config, Vocabulary([END, "a"]))
        counts = [count(Discriminator(config, size)) for size in config.stage_sizes]
    assert count(model.glam) == 21_239_696
    assert counts == [5_723_906, 18_834_178, 71_269_122]
    assert config.stage_channels == (64, 32, 16)


def test_gan_int_cls_has_as_many_parameters_as_the_authors() -> None:
    """Of the authors' networks for birds, with a text of 256 and without biases of convolutions."""
    with torch.device("meta"):
        generator = GanIntClsGenerator(GanIntClsConfig())
        discriminator = GanIntClsDiscriminator(GanIntClsConfig())
        large = GanIntClsConfig(embedding_size=1024)
        of_1024 = GanIntClsGenerator(large), GanIntClsDiscriminator(large)
    assert (count(generator), count(discriminator)) == (18_807_168, 3_931_776)
    assert count(of_1024[0]) == 18_909_699 - 4_227
    assert count(of_1024[1]) == 4_032_321 - 2_241


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_fused_images_are_those_of_the_plain_layers(name: str, dtype: torch.dtype) -> None:
    model = model_of(name)
    inputs = model.encode(["a red bird", "a blue bird with green wings and a bill", "a bill"])
    arguments = (inputs.tokens, inputs.lengths, *model.noise(3, [0, 1, 2]))
    plain = model.render(*arguments).float()
    assert plain.std() > 20  # nearly gray images would be the same too easily
    difference = (fuse(model, dtype).render(*arguments).float() - plain).abs()
    if dtype == torch.float32:
        assert difference.max() <= 1
    else:
        assert difference.mean() < 1.5


@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    model = model_of(name)
    captions = ["a red bird", "a blue bird with wings", "a bill", "a green bird"] * 5
    images = {}
    for batch_size in (1, 3, 16):
        sampler = Sampler(model, batch_size=batch_size)
        images[batch_size] = [result.image for result in sampler(captions, seed=2)]
    for one, three, sixteen in zip(*images.values(), strict=True):
        assert (one == three).all()
        assert (one == sixteen).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_it_compiles_as_one_graph(name: str) -> None:
    model = model_of(name)
    inputs = model.encode(["a red bird", "a bill"])
    words, sentence = model.stem(inputs.tokens, inputs.lengths)
    mask = torch.ones(words.shape[:2], dtype=torch.bool)
    arguments = (*model.noise(3, [0, 1]), words, mask, sentence)
    torch.compiler.reset()
    compiled = torch.compile(model.generator, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for ours, theirs in zip(
            model.generator(*arguments).images, compiled(*arguments).images, strict=True
        ):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    model.save_pretrained(tmp_path)
    loaded = mirrorgan_fast.load(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert loaded.sample(["a red bird"]) == model.sample(["a red bird"])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_walk_goes_from_image_to_image(name: str) -> None:
    model = model_of(name)
    frames = walk(model, ["a red bird", "a blue bill with wings"], 4, seed=5)
    captions = ["a red bird", "a blue bill with wings"]
    ends = [np.asarray(model.sample([each], seed=5, indices=[0])[0]) for each in captions]
    for frame, end in ((frames[0], ends[0]), (frames[-1], ends[1])):
        assert np.abs(frame.astype(int) - end.astype(int)).max() <= 1
    assert not np.array_equal(frames[1], frames[2])


def test_the_second_stage_sees_the_noise_only_through_the_first_image() -> None:
    model = model_of("stackgan")
    assert isinstance(model, StackGAN)
    sentence = torch.randn(2, 16)
    mask = torch.ones(2, 3, dtype=torch.bool)
    noise, eps = torch.randn(2, 6), torch.randn(2, 10)
    with torch.no_grad():
        images, mu, _ = model.G(noise, eps, torch.zeros(2, 3, 16), mask, sentence)
        assert model.G.stage2 is not None
        again, _, _ = model.G.stage2(images[0], eps[:, 5:], sentence)
        first = model.G.stage1(noise, eps[:, :5], sentence)
    torch.testing.assert_close(images[1], again)
    torch.testing.assert_close(images[0], first.images[0])
    assert (mu >= 0).all()  # a ReLU is before it


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"image_size": 48}, "expected powers of two"),
        ({"first_size": 4}, "first_size is 4"),
        ({"image_size": 16}, "two or four times as large, for 2 stages"),
        ({"image_size": 256}, "two or four times as large, for 2 stages"),
        ({"stages": 1}, "expected image_size equal, for 1 stages"),
        ({"generator_channels": 6}, "a multiple of 4"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(changed: dict[str, int], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        dataclasses.replace(CONFIGS["stackgan"], **changed)


def test_the_discriminator_of_gan_int_cls_has_batch_norm() -> None:
    with pytest.raises(
        InputError, match="is 'none', but the discriminator of GAN-INT-CLS can only have batch"
    ):
        GanIntClsConfig(discriminator_norm="none")


def test_channels_must_be_halved_from_stage_to_stage() -> None:
    with pytest.raises(InputError, match="generator_channels is 6 with 3 stages"):
        StackGANv2Config(image_size=64, stages=3, generator_channels=6)


def test_the_first_stage_is_a_model_by_itself() -> None:
    config = CONFIGS["stackgan"]
    assert isinstance(config, StackGANConfig)
    first = first_stage_of(config)
    assert (first.stages, first.image_size, first.stage_sizes) == (1, 16, (16,))
    assert first.noises == {"noise": 6, "condition_noise": 5}
    assert config.noises == {"noise": 6, "condition_noise": 10}
