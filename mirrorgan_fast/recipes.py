"""The recipes: the sizes of a model and how it is trained, by name; the only such table."""

from typing import NamedTuple

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import ModelConfig
from mirrorgan_fast.training.settings import (
    GANSettings,
    STEMSettings,
    STREAMSettings,
    TrainingSettings,
)


class Recipe(NamedTuple):
    """A model and its training."""

    config: ModelConfig
    settings: TrainingSettings


RECIPES: dict[str, Recipe] = {
    "birds-painted": Recipe(
        ModelConfig(
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
        TrainingSettings(
            stem=STEMSettings(steps=5_500, decay=0.85),
            stream=STREAMSettings(steps=16_000, batch_size=192, learning_rate=2e-3),
            gan=GANSettings(
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
    "cub": Recipe(
        ModelConfig(),
        TrainingSettings(),
    ),
    "coco": Recipe(
        ModelConfig(
            generator_channels=48,
            discriminator_channels=96,
            residual_blocks=3,
            caption_length=12,
        ),
        TrainingSettings(gan=GANSettings(batch_size=14, steps=710_000)),
    ),
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        InputError: there is none of that name; the message lists those there are.
    """
    if name not in RECIPES:
        raise InputError(f"no preset {name!r}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]
