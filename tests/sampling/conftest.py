"""A small untrained model, which generates images quickly."""

import copy
import random

import pytest

from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.sampling.sampler import Sampler
from tests.small import captions, small_model


@pytest.fixture(scope="session")
def kept_model() -> MirrorGAN:
    return small_model()


@pytest.fixture
def model(kept_model: MirrorGAN) -> MirrorGAN:
    return copy.deepcopy(kept_model)


@pytest.fixture
def sampler(model: MirrorGAN) -> Sampler:
    return Sampler(model, batch_size=5)


@pytest.fixture
def texts() -> list[str]:
    """37 captions of different lengths, some of which occur twice."""
    return captions(30, random.Random(1)) + captions(7, random.Random(1))
