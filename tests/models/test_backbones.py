"""Inception-v3 and ResNet-152 against torchvision: names, shapes, outputs and weight files.

torchvision does not work with every version of torch, so it is not imported. The digests and
figures below were computed with the networks of torchvision 0.29.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.backbones.inception_v3 import InceptionV3
from mirrorgan_fast.models.backbones.resnet152 import ResNet152
from mirrorgan_fast.weights import load_backbone

Backbone = InceptionV3 | ResNet152


def on_meta(network: type[Backbone], *, classifier: bool = True) -> Backbone:
    with torch.device("meta"):
        return network(classifier=classifier)


def filled(network: Backbone) -> Backbone:
    """Fill the state dict with fixed random numbers, and switch to evaluation mode."""
    rng = np.random.default_rng(0)
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        value = torch.from_numpy(rng.random(tensor.shape, dtype=np.float32))
        if tensor.dim() > 1:
            value = (value - 0.5) * (24 / tensor[0].numel()) ** 0.5  # keeps the variance
        elif name.endswith(("bias", "running_mean")):
            value = value - 0.5
        else:
            value = value + 0.5
        if name.endswith("bn3.weight"):
            value = value * 0.2  # otherwise each of the 50 residual blocks doubles the variance
        tensor.copy_(value)
    return network.eval()


def picture(*shape: int) -> Tensor:
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.random(shape, dtype=np.float32)) * 2 - 1


def figures(features: Tensor) -> Tensor:
    samples = features.flatten()[:: features.numel() // 5][:5]
    return torch.cat([features.mean()[None], features.std()[None], samples])


@pytest.mark.parametrize(
    ("network", "parameters", "entries", "digest"),
    [
        (InceptionV3, 23_834_568, 566, "f3a329f258a780ee"),
        (ResNet152, 60_192_808, 932, "685c66205bc823aa"),
    ],
)
def test_names_and_shapes_match_torchvision(
    network: type[Backbone], parameters: int, entries: int, digest: str
) -> None:
    built = on_meta(network)
    state = built.state_dict()
    lines = "\n".join(f"{name} {tuple(tensor.shape)}" for name, tensor in state.items())
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters
    assert len(state) == entries
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == digest


# The digest does not say which entry is wrong, so these are entries of each kind of block.
@pytest.mark.parametrize(
    ("network", "name", "shape"),
    [
        (InceptionV3, "Conv2d_1a_3x3.conv.weight", (32, 3, 3, 3)),
        (InceptionV3, "Conv2d_2b_3x3.bn.running_var", (64,)),
        (InceptionV3, "Conv2d_4a_3x3.conv.weight", (192, 80, 3, 3)),
        (InceptionV3, "Mixed_5b.branch5x5_2.conv.weight", (64, 48, 5, 5)),
        (InceptionV3, "Mixed_5d.branch_pool.bn.num_batches_tracked", ()),
        (InceptionV3, "Mixed_6a.branch3x3.conv.weight", (384, 288, 3, 3)),
        (InceptionV3, "Mixed_6a.branch3x3dbl_3.conv.weight", (96, 96, 3, 3)),
        (InceptionV3, "Mixed_6b.branch7x7_2.conv.weight", (128, 128, 1, 7)),
        (InceptionV3, "Mixed_6c.branch7x7dbl_2.conv.weight", (160, 160, 7, 1)),
        (InceptionV3, "Mixed_6e.branch7x7dbl_5.conv.weight", (192, 192, 1, 7)),
        (InceptionV3, "Mixed_7a.branch3x3_2.conv.weight", (320, 192, 3, 3)),
        (InceptionV3, "Mixed_7a.branch7x7x3_4.bn.bias", (192,)),
        (InceptionV3, "Mixed_7b.branch3x3_2a.conv.weight", (384, 384, 1, 3)),
        (InceptionV3, "Mixed_7c.branch3x3dbl_3b.conv.weight", (384, 384, 3, 1)),
        (InceptionV3, "Mixed_7c.branch_pool.conv.weight", (192, 2048, 1, 1)),
        (InceptionV3, "fc.weight", (1000, 2048)),
        (ResNet152, "conv1.weight", (64, 3, 7, 7)),
        (ResNet152, "bn1.running_mean", (64,)),
        (ResNet152, "layer1.0.downsample.0.weight", (256, 64, 1, 1)),
        (ResNet152, "layer2.7.conv2.weight", (128, 128, 3, 3)),
        (ResNet152, "layer3.0.downsample.1.bias", (1024,)),
        (ResNet152, "layer3.35.conv3.weight", (1024, 256, 1, 1)),
        (ResNet152, "layer4.2.bn3.weight", (2048,)),
        (ResNet152, "fc.bias", (1000,)),
    ],
)
def test_known_entries(network: type[Backbone], name: str, shape: tuple[int, ...]) -> None:
    assert tuple(on_meta(network).state_dict()[name].shape) == shape


@pytest.mark.parametrize("network", [InceptionV3, ResNet152])
def test_without_classifier_only_fc_is_gone(network: type[Backbone]) -> None:
    whole = on_meta(network).state_dict()
    assert list(on_meta(network, classifier=False).state_dict()) == [
        name for name in whole if not name.startswith("fc.")
    ]


@torch.no_grad()
def test_inception_gives_the_outputs_of_torchvision() -> None:
    inception = filled(InceptionV3())
    assert isinstance(inception, InceptionV3)
    regions, pooled = inception(picture(2, 3, 299, 299))
    assert regions.shape == (2, 768, 17, 17)
    assert pooled.shape == (2, 2048)
    assert inception.logits(pooled).shape == (2, 1000)
    known = [
        [6.64003, 11.0054, 1.25363, 0, 0, 45.1658, 40.4245],
        [11.2604, 15.354, 2.29913, 0.798091, 19.1567, 1.51767, 0.256517],
        [-0.574427, 26.6948, 11.8382, -5.77736, -41.6982, 6.74163, -27.141],
    ]
    found = torch.stack([figures(x) for x in (regions, pooled, inception.logits(pooled))])
    torch.testing.assert_close(found, torch.tensor(known), rtol=1e-3, atol=1e-3)

    small = picture(1, 3, 64, 80)
    resized = functional.interpolate(small, size=(299, 299), mode="bilinear")
    for ours, wanted in zip(inception(small), inception(resized), strict=True):
        torch.testing.assert_close(ours, wanted)


@torch.no_grad()
def test_resnet_gives_the_outputs_of_torchvision() -> None:
    resnet = filled(ResNet152())
    assert isinstance(resnet, ResNet152)
    pooled = resnet(picture(2, 3, 97, 65))
    assert pooled.shape == (2, 2048)
    assert resnet.logits(pooled).shape == (2, 1000)
    known = [
        [10.1637, 11.4527, 9.91859, 6.54333, 0, 3.74399, 0.393742],
        [0.145957, 21.4517, -14.5352, -28.8416, 17.8164, 8.71441, -47.6174],
    ]
    found = torch.stack([figures(x) for x in (pooled, resnet.logits(pooled))])
    torch.testing.assert_close(found, torch.tensor(known), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("network", [InceptionV3, ResNet152])
def test_gradients_reach_the_image_and_every_parameter(network: type[Backbone]) -> None:
    torch.manual_seed(0)
    built = network(classifier=False)
    size = 299 if network is InceptionV3 else 64
    image = picture(2, 3, size, size).requires_grad_()
    pooled = built(image)[1] if network is InceptionV3 else built(image)
    (pooled * torch.randn_like(pooled)).sum().backward()
    assert image.grad is not None
    for gradient in (image.grad, *(parameter.grad for parameter in built.parameters())):
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.mark.parametrize(
    ("network", "classifier"), [(InceptionV3, True), (InceptionV3, False), (ResNet152, False)]
)
def test_files_published_by_torchvision_are_loaded(
    tmp_path: Path, network: type[Backbone], classifier: bool
) -> None:
    """They contain the auxiliary and the final classifier, but no ``num_batches_tracked``."""
    names = on_meta(network).state_dict()
    weights = {
        name: torch.tensor(float(number)).expand(tensor.shape)  # one number: a small file
        for number, (name, tensor) in enumerate(names.items(), start=1)
        if not name.endswith("num_batches_tracked")
    }
    extra = {"AuxLogits.conv0.conv.weight": torch.zeros(128, 768, 1, 1)}
    path = tmp_path / "weights.pth"
    torch.save(weights | (extra if network is InceptionV3 else {}), path)
    if network is InceptionV3 and classifier:
        built: Backbone = InceptionV3.from_file(path)
        assert not built.training
    else:
        built = network(classifier=classifier)
        built.load(path)
    for name, parameter in built.named_parameters():
        assert parameter.eq(weights[name].flatten()[0]).all(), name


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def save(state: object, path: Path) -> Path:
    if path.suffix == ".safetensors":
        assert isinstance(state, dict)
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    source, target = small_network(), small_network().bfloat16()
    path = save(source.state_dict(), tmp_path / f"weights{suffix}")
    load_backbone(target, path)
    for name, tensor in target.state_dict().items():
        wanted = source.state_dict()[name]
        assert tensor.dtype == (torch.bfloat16 if wanted.is_floating_point() else wanted.dtype)
        assert torch.equal(tensor, wanted.to(tensor.dtype)), name


Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {n: t for n, t in s.items() if "0." not in n}, "0.weight is missing"),
        (lambda s: {n: t for n, t in s.items() if "mean" not in n}, "1.running_mean is missing"),
        (lambda s: s | {"2.weight": torch.ones(1)}, "2.weight is unknown"),
        (lambda s: s | {"0.bias": torch.ones(5)}, r"0.bias has the shape \(5,\), not \(4,\)"),
        (lambda s: {f"module.{n}": t for n, t in s.items()}, "0.weight is missing"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, suffix: str, change: Change, message: str
) -> None:
    network = small_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    path = save(change(small_network().state_dict()), tmp_path / f"weights{suffix}")
    with pytest.raises(InputError, match=rf"^.*weights{suffix}: .*{message}; give .*$") as caught:
        load_backbone(network, path, ignore=("fc.",))
    assert "\n" not in str(caught.value)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_inception_needs_its_classifier_from_the_file(tmp_path: Path) -> None:
    names = on_meta(InceptionV3, classifier=False).state_dict()
    weights = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in names.items()}
    with pytest.raises(InputError, match=r"does not fit InceptionV3: fc.weight is missing"):
        InceptionV3.from_file(save(weights, tmp_path / "weights.pth"))


@pytest.mark.parametrize("content", [[torch.ones(1)], {"state_dict": {}}, {1: torch.ones(1)}])
def test_anything_but_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    path = save(content, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="is not a state dict; save "):
        load_backbone(small_network(), path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    path = save(small_network().state_dict(), tmp_path / f"weights{suffix}")
    content = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "cut": content[: len(content) // 2], "other": b"<html>404</html>" * 9}[
            damage
        ]
    )
    with pytest.raises(InputError, match=f"weights{suffix}: cannot be read as weights") as caught:
        load_backbone(small_network(), path)
    assert "\n" not in str(caught.value)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    path = save(small_network(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match="contains more than tensors"):
        load_backbone(small_network(), path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("weights.h5", "must be .pth, .pt or .safetensors"), ("weights.pth", "No such file")],
)
def test_unknown_suffixes_and_missing_files_are_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_backbone(small_network(), tmp_path / name)
