"""Fine-tuning: what a run starts from that trains a trained model further."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import CascadeConfig, TextToImageConfig
from mirrorgan_fast.models.text_to_image import TextToImage
from mirrorgan_fast.training.settings import (
    STAGES,
    CascadeSettings,
    CommonSettings,
    GANSettings,
)

# Of the learning rates of a training from nothing. At the whole rates, a trained generator forgets
# how a bird looks: after 480 steps on 200 birds the images were blurred and had false colors.
_PACE_OF_G, _PACE_OF_D = 0.15, 0.5
START = "start"
"""The folder, in that of a run, of the model that the run starts from."""
Model = TypeVar("Model", bound=TextToImage)
Settings = TypeVar("Settings", bound=CommonSettings)
# Sizes that the trained networks do not have: D starts new, and a longer caption only has more
# words.
_FREE = {
    "discriminator_channels",
    "discriminator_norm",
    "caption_length",
    "text_dropout",
}
# Stages can be added and left out at the end of a cascade.
_FREE_OF_CASCADES = {"image_size", "stages"}


def for_fine_tuning(settings: Settings) -> Settings:
    """Return the settings for training a model further that was trained with ``settings``."""
    changed: dict[str, Any] = {}
    for stage in STAGES:
        options = getattr(settings, stage, None)
        if options is None:
            continue
        new: dict[str, Any] = {"steps": max(1, options.steps // 10)}
        if isinstance(options, GANSettings):
            new["decay_steps"] = options.decay_steps // 10
            new["learning_rate"] = _PACE_OF_G * options.learning_rate
            new["discriminator_learning_rate"] = _PACE_OF_D * options.discriminator_learning_rate
        if isinstance(options, CascadeSettings):
            new["last_stage_from"] = 0
        changed[stage] = replace(options, **new)
    return replace(settings, **changed)


def check_sizes(before: TextToImageConfig, now: TextToImageConfig) -> None:
    """Check that a model's networks can have other sizes.

    Args:
        before: the sizes of the trained model.
        now: the sizes that it is to be trained with, of the same system.

    Raises:
        InputError: a network would have other shapes, or the model reads text vectors.
    """
    before.check_text(None)
    old, new = asdict(before), asdict(now)
    free = _FREE | (_FREE_OF_CASCADES if isinstance(now, CascadeConfig) else set())
    for name, value in new.items():
        if name not in free and old[name] != value:
            raise InputError(
                f"the model that the run starts from has {name} {old[name]!r}, the run has "
                f"{value!r}; only these may differ: {', '.join(sorted(free))}"
            )
    if (
        isinstance(before, CascadeConfig)
        and isinstance(now, CascadeConfig)
        and before.first_size != now.first_size
    ):
        stages = (now.image_size // before.first_size).bit_length()
        raise InputError(
            f"image_size {now.image_size} with {now.stages} stages begins at {now.first_size} "
            f"pixels, but the first stage of the model that the run starts from makes "
            f"{before.first_size}"
            + (f"; set stages={stages}" if 1 <= stages <= 8 else "; choose a larger image_size")
        )


def starting_model(model: Model, config: TextToImageConfig, captions: Iterable[str]) -> Model:
    """Return the model that a run starts from: a trained one with more words and other stages.

    The words of the captions that the model does not know are added to its vocabulary. In every
    table of words, they start from the mean of the words that it knows. An added stage starts from
    the weights of the last stage of the model; if that has only one stage, the networks between
    the two stages start from random weights.

    Args:
        model: the trained model, which stays as it is.
        config: the sizes of the new model (see ``check_sizes``).
        captions: all captions of the new data.

    Raises:
        InputError: see ``check_sizes``.
    """
    check_sizes(model.config, config)
    vocabulary = model.vocabulary.extended(captions)
    grown = type(model)(config, vocabulary)
    old, last = model.state_dict(), len(model.config.stage_sizes) - 1
    new_words = len(vocabulary) - len(model.vocabulary)
    state: dict[str, Tensor] = {}
    for name, tensor in grown.state_dict().items():
        source = old.get(name if name in old else _in_stage(name, last), tensor)
        if new_words and name.rpartition(".")[0] in model.WORD_TABLES:
            mean = source[1:].mean(dim=0, keepdim=True)  # word 0 is the end
            source = torch.cat([source, mean.expand(new_words, *mean.shape[1:])])
        state[name] = source
    grown.load_state_dict(state)
    return grown.eval()


def _in_stage(name: str, stage: int) -> str:
    """Return the name of a tensor of the cascade in another stage."""
    part, _, rest = name.removeprefix("glam.").partition(".")
    # F_att[i] is between the stages i and i + 1
    index = stage - 1 if part == "F_att" else stage
    return f"glam.{part}.{index}.{rest.partition('.')[2]}"
