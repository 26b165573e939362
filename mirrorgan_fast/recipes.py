"""All recipes by name. A recipe is a model's sizes and training settings."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import StrPath
from mirrorgan_fast.models.config import (
    AttnGANConfig,
    CycleGANConfig,
    GanIntClsConfig,
    GawwnConfig,
    MirrorGANConfig,
    StackGANConfig,
    StackGANv2Config,
    SystemConfig,
)
from mirrorgan_fast.models.systems import SYSTEMS, config_class, names
from mirrorgan_fast.models.text_to_image import TextToImage
from mirrorgan_fast.training.settings import (
    AttnGANSettings,
    AttnGANTrainingSettings,
    CommonSettings,
    CycleGANSettings,
    CycleGANTrainingSettings,
    GanIntClsSettings,
    GanIntClsTrainingSettings,
    GawwnSettings,
    GawwnTrainingSettings,
    MirrorGANSettings,
    MirrorGANTrainingSettings,
    StackGANSettings,
    StackGANTrainingSettings,
    StackGANv2Settings,
    StackGANv2TrainingSettings,
    STEMSettings,
    STREAMSettings,
)
from mirrorgan_fast.weights import CONFIG, find_pretrained, load_config


def load(name_or_path: StrPath = "birds-painted") -> TextToImage:
    """Load a text-to-image model for inference, from the package by name or from a folder.

    Raises:
        InputError: there is no such model, its system is unknown or reads no captions, or one of
            its files is missing, damaged or from a newer version.
    """
    folder = find_pretrained(name_or_path)
    system = load_description(folder).system
    if system not in SYSTEMS:
        raise InputError(
            f"{folder}: a {system} model translates images (mirrorgan-fast translate), expected "
            f"one that reads captions: {' or '.join(SYSTEMS)}"
        )
    return SYSTEMS[system].from_pretrained(folder)


class Description(NamedTuple):
    """The content of a model's config.json."""

    system: str
    config: SystemConfig


def load_description(folder: StrPath) -> Description:
    """Read the config.json of a model of any system.

    Raises:
        InputError: it is missing or damaged, or its system is unknown.
    """
    system, sizes = load_config(folder)
    path = Path(folder) / CONFIG
    config = config_class(system)
    if config is None:
        raise InputError(f"{path}: system is {system!r:.80}, expected {' or '.join(names())}")
    return Description(system, config.from_dict(sizes, path))


class Recipe(NamedTuple):
    """A model's sizes and training settings; the class of ``config`` determines the system."""

    config: SystemConfig
    settings: CommonSettings


DEFAULT_RECIPE = "birds-painted"
PHOTOS = "photos"
"""The recipe for pictures that are not painted birds."""
_TIMES_SEEN, _LEAST_STEPS = 40, 3_000
RECIPES: dict[str, Recipe] = {
    "birds-painted": Recipe(
        MirrorGANConfig(
            image_size=128,
            discriminator_channels=32,
            discriminator_norm="none",
            residual_blocks=1,
            word_embedding_size=128,
            text_dropout=0.1,
            image_encoder="small",
            stream_encoder="small",
            stream_hidden_size=256,
        ),
        MirrorGANTrainingSettings(
            stem=STEMSettings(steps=5_500, decay=0.85),
            stream=STREAMSettings(steps=16_000, batch_size=192, learning_rate=2e-3),
            gan=MirrorGANSettings(
                steps=15_000,
                decay_steps=3_000,
                batch_size=32,
                learning_rate=2e-3,
                discriminator_learning_rate=6e-4,
                form="authors",
                stream_weight=1.0,
                damsm_weight=2.0,
                r1_weight=0.1,
                last_stage_from=3_000,
            ),
            augment=False,
        ),
    ),
    # For a few thousand photographs, with the CNN of the package. Its values are those of a trial
    # with another program, on photographs of clothing; none was compared with others here. Its
    # steps depend on the number of pictures (``for_pictures``).
    PHOTOS: Recipe(
        MirrorGANConfig(
            image_size=128,
            discriminator="projected",
            word_embedding_size=128,
            text_dropout=0.1,
            image_encoder="efficientnet_lite0",
            stream_encoder="efficientnet_lite0",
            stream_hidden_size=256,
        ),
        MirrorGANTrainingSettings(
            stem=STEMSettings(steps=3_000, decay=0.95, crops=4),
            stream=STREAMSettings(steps=4_000, batch_size=192, learning_rate=2e-3, crops=4),
            gan=MirrorGANSettings(
                steps=5_000,
                decay_steps=1_000,
                batch_size=32,
                betas=(0.0, 0.99),
                average_decay=0.998,
                form="authors",
                stream_weight=0.0,
                kl_weight=0.1,
                sentence_gain=10.0,
                augment=True,
                difference_weight=2.0,
            ),
        ),
    ),
    # As in the authors' code: STREAM's loss is a mean over words, times 10. In the paper it is a
    # sum over words, times 20, and the adversarial terms are halved, so STREAM weighs about sixty
    # times as much.
    "cub": Recipe(
        MirrorGANConfig(sentence_attention="authors"),
        MirrorGANTrainingSettings(gan=MirrorGANSettings(form="authors", stream_weight=10.0)),
    ),
    "coco": Recipe(
        MirrorGANConfig(
            generator_channels=48,
            discriminator_channels=96,
            residual_blocks=3,
            caption_length=12,
            sentence_attention="authors",
        ),
        MirrorGANTrainingSettings(
            gan=MirrorGANSettings(batch_size=14, steps=710_000, form="authors", stream_weight=10.0)
        ),
    ),
    "cub-paper": Recipe(MirrorGANConfig(), MirrorGANTrainingSettings()),
    "coco-paper": Recipe(
        MirrorGANConfig(
            generator_channels=48,
            discriminator_channels=96,
            residual_blocks=3,
            caption_length=12,
        ),
        MirrorGANTrainingSettings(gan=MirrorGANSettings(batch_size=14, steps=710_000)),
    ),
    "attngan-birds-painted": Recipe(
        AttnGANConfig(
            image_size=128,
            discriminator_channels=32,
            discriminator_norm="none",
            residual_blocks=1,
            word_embedding_size=128,
            text_dropout=0.1,
            image_encoder="small",
        ),
        AttnGANTrainingSettings(
            stem=STEMSettings(steps=5_500, decay=0.85),
            gan=AttnGANSettings(
                steps=15_000,
                decay_steps=3_000,
                batch_size=32,
                learning_rate=2e-3,
                discriminator_learning_rate=6e-4,
                r1_weight=0.1,
                last_stage_from=3_000,
            ),
            augment=False,
        ),
    ),
    "attngan-cub": Recipe(AttnGANConfig(), AttnGANTrainingSettings()),
    "attngan-coco": Recipe(
        AttnGANConfig(
            generator_channels=48,
            discriminator_channels=96,
            residual_blocks=3,
            caption_length=12,
        ),
        AttnGANTrainingSettings(
            gan=AttnGANSettings(batch_size=14, steps=710_000, damsm_weight=50.0),
        ),
    ),
    # The KL's weight and the gain were measured with StackGAN's first stage at 16 px and batches of
    # 32. With the authors' weight of 2, mu is nearly the same for all captions after 250 steps (its
    # standard deviation is 0.03), so D is told nothing, and G learns nothing: the images of 200
    # held-out captions show 18.5 % of the attributes that these name, and 17.8 % of those that
    # others name. After 600 steps with 0.02, it is 31.0 and 18.4 %, and 23.1 and 17.0 % with a gain
    # of 1. StackGAN's second stage at 32 px: 17.3 and 17.0 % after 600 steps without R1, with a
    # rate of 6e-4 for D and 0.02 for the KL; 33.9 and 17.8 % after 1,400 as here. What each of
    # these does was not measured apart.
    "stackgan2-birds-painted": Recipe(
        StackGANv2Config(
            image_size=128,
            generator_channels=64,
            discriminator_channels=32,
            discriminator_norm="none",
            residual_blocks=1,
            condition_size=100,
            word_embedding_size=128,
            text_dropout=0.1,
            image_encoder="small",
        ),
        StackGANv2TrainingSettings(
            stem=STEMSettings(steps=5_500, decay=0.85),
            gan=StackGANv2Settings(
                steps=15_000,
                decay_steps=3_000,
                batch_size=32,
                learning_rate=2e-3,
                discriminator_learning_rate=6e-4,
                kl_weight=0.02,
                sentence_gain=10.0,
                detach_mu=True,
                r1_weight=0.1,
                last_stage_from=3_000,
            ),
            augment=False,
        ),
    ),
    "stackgan-birds-painted": Recipe(
        StackGANConfig(
            image_size=128,
            generator_channels=64,
            discriminator_channels=32,
            discriminator_norm="none",
            condition_size=100,
            residual_blocks=1,
            word_embedding_size=128,
            text_dropout=0.1,
            image_encoder="small",
        ),
        StackGANTrainingSettings(
            stem=STEMSettings(steps=5_500, decay=0.85),
            stage1=StackGANSettings(
                steps=12_000,
                decay_steps=3_000,
                batch_size=32,
                learning_rate=2e-3,
                discriminator_learning_rate=6e-4,
                kl_weight=0.02,
                sentence_gain=10.0,
            ),
            stage2=StackGANSettings(
                steps=8_000,
                decay_steps=2_000,
                batch_size=32,
                learning_rate=2e-3,
                discriminator_learning_rate=1e-3,
                kl_weight=0.0,
                sentence_gain=10.0,
                r1_weight=0.1,
            ),
            augment=False,
        ),
    ),
    # 600 epochs of 8,855 birds in each stage. The code of the authors, for COCO alone, has a
    # learning rate that is halved every 20 of 120 epochs; the paper's is halved every 100.
    "stackgan-cub": Recipe(StackGANConfig(), StackGANTrainingSettings()),
    "gan-int-cls-birds-painted": Recipe(
        GanIntClsConfig(
            generator_channels=64,
            discriminator_channels=32,
            word_embedding_size=128,
            text_dropout=0.1,
            image_encoder="small",
        ),
        GanIntClsTrainingSettings(
            stem=STEMSettings(steps=5_500, decay=0.85),
            gan=GanIntClsSettings(
                steps=20_000,
                decay_steps=5_000,
                learning_rate=5e-4,
                discriminator_learning_rate=5e-4,
                halve_every=0,
                captions=1,
                sentence_gain=10.0,
                r1_weight=0.1,
            ),
            augment=False,
        ),
    ),
    "gan-int-cls-cub": Recipe(GanIntClsConfig(), GanIntClsTrainingSettings()),
    # For birds that are painted with --places varied; others are all in the middle.
    "gawwn-birds-painted": Recipe(
        GawwnConfig(
            image_size=64,
            generator_channels=64,
            discriminator_channels=32,
            discriminator_norm="none",
            word_embedding_size=128,
            text_dropout=0.1,
            image_encoder="small",
        ),
        GawwnTrainingSettings(
            stem=STEMSettings(steps=5_500, decay=0.85),
            gan=GawwnSettings(
                steps=20_000,
                decay_steps=5_000,
                batch_size=32,
                learning_rate=1e-3,
                discriminator_learning_rate=6e-4,
                halve_every=0,
                captions=1,
                sentence_gain=10.0,
                r1_weight=0.1,
            ),
            augment=False,
        ),
    ),
    "gawwn-cub": Recipe(GawwnConfig(), GawwnTrainingSettings()),
    "stackgan2-cub": Recipe(StackGANv2Config(), StackGANv2TrainingSettings()),
    # The pictures of horses and zebras: 1,067 and 1,334 in 200 epochs.
    "cyclegan-horses": Recipe(CycleGANConfig(), CycleGANTrainingSettings()),
    "cyclegan-birds-painted": Recipe(
        CycleGANConfig(
            image_size=128, generator_channels=32, discriminator_channels=32, residual_blocks=6
        ),
        CycleGANTrainingSettings(
            gan=CycleGANSettings(steps=7_000, decay_steps=5_000),
            augment=False,
        ),
    ),
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe with this name.

    Raises:
        InputError: there is no such recipe; the message lists the names.
    """
    if name not in RECIPES:
        raise InputError(f"no recipe {name!r}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]


def for_pictures(recipe: Recipe, count: int) -> Recipe:
    """Return the recipe with as many steps of the generator as so many pictures need.

    Each is seen 40 times, but there are at least 3,000 steps: with 97,000 pictures seen, a trial
    with another program named the garments of 128 pixels.

    Args:
        recipe: for text-to-image, with one stage ``gan``.
        count: of the pictures to train on, at least 1.
    """
    settings = recipe.settings
    assert isinstance(settings, MirrorGANTrainingSettings)
    steps = max(_LEAST_STEPS, count * _TIMES_SEEN // settings.gan.batch_size)
    gan = dataclasses.replace(settings.gan, steps=steps, decay_steps=steps // 5)
    return Recipe(recipe.config, dataclasses.replace(settings, gan=gan))
