"""CycleGAN's networks: sizes as published, and a restatement with the published names."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mirrorgan_fast.convert import cyclegan_discriminator, cyclegan_generator
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import CycleGANConfig
from mirrorgan_fast.models.cyclegan import CycleGAN, PatchDiscriminator, ResNetGenerator
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.recipes import load

SMALL = CycleGANConfig(
    image_size=32,
    generator_channels=4,
    discriminator_channels=4,
    residual_blocks=2,
    x="day",
    y="night",
)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("blocks", "count"), [(9, 11_378_179), (6, 7_837_699)])
def test_published_sizes(blocks: int, count: int) -> None:
    assert parameters(ResNetGenerator(CycleGANConfig(residual_blocks=blocks))) == count
    assert parameters(PatchDiscriminator(CycleGANConfig())) == 2_764_737


class PublishedBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.conv_block(x)
        return x + inner


def published_generator(ngf: int, blocks: int) -> nn.Module:
    """Return the layers of the authors' generator, with their names in ``model``."""

    def normed(*layers: nn.Module, channels: int) -> list[nn.Module]:
        return [*layers, nn.InstanceNorm2d(channels), nn.ReLU()]

    def up(inputs: int) -> nn.Module:
        return nn.ConvTranspose2d(inputs, inputs // 2, 3, stride=2, padding=1, output_padding=1)

    layers = [
        *normed(nn.ReflectionPad2d(3), nn.Conv2d(3, ngf, 7), channels=ngf),
        *normed(nn.Conv2d(ngf, 2 * ngf, 3, stride=2, padding=1), channels=2 * ngf),
        *normed(nn.Conv2d(2 * ngf, 4 * ngf, 3, stride=2, padding=1), channels=4 * ngf),
        *(PublishedBlock(4 * ngf) for _ in range(blocks)),
        *normed(up(4 * ngf), channels=2 * ngf),
        *normed(up(2 * ngf), channels=ngf),
        *(nn.ReflectionPad2d(3), nn.Conv2d(ngf, 3, 7), nn.Tanh()),
    ]
    return nn.ModuleDict({"model": nn.Sequential(*layers)})


def published_discriminator(ndf: int) -> nn.Module:
    def normed(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1)
        return [convolution, nn.InstanceNorm2d(outputs), nn.LeakyReLU(0.2)]

    layers = [
        *(nn.Conv2d(3, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2)),
        *(*normed(ndf, 2 * ndf, 2), *normed(2 * ndf, 4 * ndf, 2), *normed(4 * ndf, 8 * ndf, 1)),
        nn.Conv2d(8 * ndf, 1, 4, padding=1),
    ]
    return nn.ModuleDict({"model": nn.Sequential(*layers)})


@pytest.mark.parametrize("blocks", [6, 9])
def test_published_generators_are_the_same_function(blocks: int) -> None:
    torch.manual_seed(0)
    theirs = published_generator(6, blocks).double()
    ours = ResNetGenerator(CycleGANConfig(generator_channels=6, residual_blocks=blocks)).double()
    state = theirs.state_dict()
    # files from before PyTorch 0.4 have these too
    old = {
        "model.2.running_mean": torch.zeros(6),
        "model.11.conv_block.2.running_var": torch.ones(24),
    }
    ours.load_state_dict(cyclegan_generator({**state, **old}))
    image = torch.rand(2, 3, 24, 32, dtype=torch.float64) * 2 - 1
    wanted = theirs["model"](image)  # type: ignore[operator]
    torch.testing.assert_close(ours(image), wanted, rtol=1e-10, atol=1e-10)


def test_published_generators_with_dropout_have_other_names() -> None:
    config = CycleGANConfig(generator_channels=2, residual_blocks=6)
    state = published_generator(2, 6).state_dict()
    renamed = {
        name.replace("conv_block.5.", "conv_block.6."): tensor for name, tensor in state.items()
    }
    ours, with_dropout = ResNetGenerator(config), ResNetGenerator(config)
    ours.load_state_dict(cyclegan_generator(state))
    with_dropout.load_state_dict(cyclegan_generator(renamed))
    for name, tensor in ours.state_dict().items():
        assert torch.equal(with_dropout.state_dict()[name], tensor)


def test_published_discriminators_are_the_same_function() -> None:
    torch.manual_seed(0)
    theirs = published_discriminator(5).double()
    ours = PatchDiscriminator(CycleGANConfig(discriminator_channels=5)).double()
    ours.load_state_dict(cyclegan_discriminator(theirs.state_dict()))
    image = torch.rand(2, 3, 64, 72, dtype=torch.float64) * 2 - 1
    logits = ours(image)
    assert logits.shape == (2, 1, 6, 7)
    wanted = theirs["model"](image)  # type: ignore[operator]
    torch.testing.assert_close(logits, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["model.3.weight", "model.10.conv_block.4.bias", "weight"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="this name is not one of CycleGAN's"):
        cyclegan_generator({name: torch.zeros(1)})


def test_images_do_not_depend_on_each_other() -> None:
    """Instance norm: each image by its own statistics, also in training mode."""
    torch.manual_seed(0)
    network = ResNetGenerator(SMALL).double().train()
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64) * 2 - 1
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("autocast", [False, True])
def test_it_is_compiled_whole(autocast: bool) -> None:
    torch.manual_seed(0)
    network = ResNetGenerator(SMALL).eval()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.testing.assert_close(compiled(image), network(image))


def test_a_model_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CycleGAN(SMALL)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "vocabulary.txt").exists()
    loaded = CycleGAN.from_pretrained(tmp_path)
    assert loaded.config == SMALL
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert loaded.to_domain("night") is loaded.G
    assert loaded.to_domain("day") is loaded.F
    with pytest.raises(InputError, match="translates to 'day' and to 'night', not to 'noon'"):
        loaded.to_domain("noon")
    with pytest.raises(InputError, match=r"a cyclegan model translates images"):
        load(tmp_path)
    with pytest.raises(InputError, match="system 'mirrorgan', expected 'cyclegan'"):
        CycleGAN.from_pretrained("birds-painted")
    with pytest.raises(InputError, match="system 'cyclegan', expected 'mirrorgan'"):
        MirrorGAN.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"image_size": 30}, "from 32"),
        ({"image_size": 34}, "a multiple of 4"),
        ({"x": ""}, "x is '', expected a name"),
        ({"y": "a\nb"}, "expected a name"),
        ({"y": 3}, "y is 3, expected a name"),
        ({"x": "z", "y": "z"}, "both 'z', expected two names"),
        ({"residual_blocks": 0}, "from 1 to 32"),
    ],
)
def test_sizes_out_of_bounds_are_refused(sizes: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        CycleGANConfig.from_dict(sizes)
