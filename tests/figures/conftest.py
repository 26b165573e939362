"""A small untrained model, which generates images quickly."""

import pytest

from mirrorgan_fast.models.mirrorgan import MirrorGAN
from tests.small import small_model


@pytest.fixture
def model() -> MirrorGAN:
    return small_model()
