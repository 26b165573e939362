"""EfficientNet-Lite against another implementation, and against its description."""

import hashlib
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.backbones.efficientnet_lite import (
    LITE0_FILE,
    EfficientNetLite,
    Variant,
    fold,
    lite0,
    read_published,
)

# Repeats, kernel, stride, expansion and channels of each group of blocks
LITE0 = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
LITE2 = (
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
    (5, 5, 2, 6, 208),
    (1, 3, 1, 6, 352),
)
GROUPS: dict[Variant, tuple[tuple[int, ...], ...]] = {"lite0": LITE0, "lite2": LITE2}


def published(variant: Variant) -> dict[str, Tensor]:
    """Make random weights with the names of the published ones."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def layer(conv: str, norm: str, *shape: int) -> None:
        kernel = torch.randn(shape, generator=generator)
        state[f"{conv}.weight"] = kernel * (2 / math.prod(shape[1:])) ** 0.5
        for name in ("weight", "running_var"):
            state[f"{norm}.{name}"] = torch.rand(shape[0], generator=generator) + 0.5
        for name in ("bias", "running_mean"):
            state[f"{norm}.{name}"] = torch.rand(shape[0], generator=generator) - 0.5
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    layer("_conv_stem", "_bn0", 32, 3, 3, 3)
    channels, number = 32, 0
    for repeats, kernel, _, expansion, after in GROUPS[variant]:
        for _ in range(repeats):
            block, wide = f"_blocks.{number}.", channels * expansion
            if expansion > 1:
                layer(f"{block}_expand_conv", f"{block}_bn0", wide, channels, 1, 1)
            layer(f"{block}_depthwise_conv", f"{block}_bn1", wide, 1, kernel, kernel)
            layer(f"{block}_project_conv", f"{block}_bn2", after, wide, 1, 1)
            channels, number = after, number + 1
    layer("_conv_head", "_bn1", 1280, channels, 1, 1)
    state["_fc.weight"] = torch.randn(1000, 1280, generator=generator)
    state["_fc.bias"] = torch.randn(1000, generator=generator)
    return state


def described(state: dict[str, Tensor], variant: Variant, image: Tensor) -> list[Tensor]:
    """Compute the maps, the pooled feature and the logits as the network is described, in float64.

    Batch norms are on their own, and "same" padding is that of TensorFlow's documentation.
    """
    state = {name: tensor.double() for name, tensor in state.items()}

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        kernel = state[f"{conv}.weight"]
        size, groups = kernel.shape[2], x.shape[1] // kernel.shape[1]
        ends = []
        for length in (x.shape[3], x.shape[2]):
            rest = length % stride
            total = max(size - (stride if rest == 0 else rest), 0)
            ends += [total // 2, total - total // 2]
        x = functional.conv2d(functional.pad(x, ends), kernel, None, stride, groups=groups)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-3).sqrt()
        return x * state[f"{norm}.weight"][:, None, None] + state[f"{norm}.bias"][:, None, None]

    x = (image.double() + 1) * 127.5
    x = layer((x - 127) / 128, "_conv_stem", "_bn0", 2).clamp(0, 6)
    maps, number = [], 0
    for place, (repeats, _, stride, expansion, _) in enumerate(GROUPS[variant]):
        for repeat in range(repeats):
            block, y = f"_blocks.{number}.", x
            if expansion > 1:
                y = layer(y, f"{block}_expand_conv", f"{block}_bn0").clamp(0, 6)
            each = stride if repeat == 0 else 1
            y = layer(y, f"{block}_depthwise_conv", f"{block}_bn1", each).clamp(0, 6)
            y = layer(y, f"{block}_project_conv", f"{block}_bn2")
            x = x + y if repeat else y
            number += 1
        if place in (1, 2, 4, 6):
            maps.append(x)
    pooled = layer(x, "_conv_head", "_bn1").clamp(0, 6).mean((2, 3))
    return [*maps, pooled, pooled @ state["_fc.weight"].T + state["_fc.bias"]]


@pytest.mark.parametrize(
    ("variant", "height", "width"), [("lite0", 64, 64), ("lite0", 97, 45), ("lite2", 50, 65)]
)
def test_it_computes_what_is_described(variant: Variant, height: int, width: int) -> None:
    state = published(variant)
    image = torch.rand(2, 3, height, width) * 2 - 1
    network = EfficientNetLite(variant, fold(state, "")).double()
    maps = network.maps(image.double())
    pooled = network.pooled(maps[-1])
    wanted = described(state, variant, image)
    for ours, theirs in zip([*maps, pooled, network.logits(pooled)], wanted, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5  # weights are in float32
    assert tuple(part.shape[1] for part in maps) == network.map_channels
    for stride, part in zip((4, 8, 16, 32), maps, strict=True):
        assert part.shape[2:] == (-(-height // stride), -(-width // stride))


def smooth_picture(size: int) -> Tensor:
    """Return an image (1, 3, size, size) of waves."""
    place = torch.linspace(0, 1, size)
    waves = [torch.sin(20 * place + c)[:, None] * torch.cos(9 * place - c) for c in range(3)]
    return torch.stack(waves)[None]


@torch.no_grad()
def test_the_weights_of_the_package_see_what_the_published_ones_see() -> None:
    """The figures are those of efficientnet-lite-pytorch 0.1.0, with the published weights."""
    network = lite0()
    pooled = network.pooled(network.maps(smooth_picture(224))[-1])[0]
    strongest = [71, 897, 66, 1259, 693, 747]
    known = torch.tensor([5.7233, 3.9410, 3.7291, 3.5981, 3.5920, 3.2052])
    torch.testing.assert_close(pooled[strongest], known, rtol=0.02, atol=0)
    assert sorted(pooled.topk(6).indices.tolist()) == sorted(strongest)
    assert float(pooled.mean()) == pytest.approx(0.0949, rel=0.01)


def test_the_weights_of_the_package_are_those_that_models_record() -> None:
    digest = hashlib.sha256(LITE0_FILE.read_bytes()).hexdigest()
    assert digest == "5a9cba3a25fb976a9eb15b919109369906056180c670d19eeef5fb6e4a1efd3b"


def test_it_is_in_no_state_dict_and_does_not_learn() -> None:
    network = lite0()
    assert not network.state_dict()
    assert not list(network.parameters())
    image = smooth_picture(64).requires_grad_()
    network.maps(image)[-1].sum().backward()
    assert image.grad is not None
    assert bool(image.grad.isfinite().all())
    assert float(image.grad.abs().max()) > 0


def test_it_is_read_from_a_published_file(tmp_path: Path) -> None:
    path = tmp_path / "lite0.pth"
    torch.save(published("lite0"), path)
    pooled = torch.rand(2, 1280)
    assert read_published(path, "lite0").logits(pooled).shape == (2, 1000)
    with pytest.raises(InputError, match="have no classifier"):
        lite0().logits(pooled)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save(published("lite2"), path)
    with pytest.raises(InputError, match="EfficientNet-lite0: blocks"):
        read_published(path, "lite0")
    state = published("lite0")
    del state["_blocks.3._bn1.bias"]
    torch.save(state, path)
    with pytest.raises(InputError, match=r"file\.pth: _blocks\.3\._bn1\.bias is missing"):
        read_published(path, "lite0")
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="not a state dict"):
        read_published(path, "lite0")
    weights = fold(published("lite0"), "")
    weights["head.bias"] = weights["head.bias"][1:]
    with pytest.raises(InputError, match=r"head\.bias has shape \(1279,\), expected \(1280,\)"):
        EfficientNetLite("lite0", weights)
