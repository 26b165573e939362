"""The translator: pictures of any size, as the generator translates them."""

import numpy as np
import pytest
import torch
from PIL import Image

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.inference.translator import Translator, padded_size
from mirrorgan_fast.models.config import CycleGANConfig
from mirrorgan_fast.models.cyclegan import CycleGAN


@pytest.fixture(scope="module")
def model() -> CycleGAN:
    torch.manual_seed(0)
    config = CycleGANConfig(generator_channels=4, residual_blocks=2, image_size=32)
    return CycleGAN(config).train()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (7, 8), (8, 8), (13, 30), (64, 21)])
def test_any_size_is_padded_by_reflection_and_cut_back(
    model: CycleGAN, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(size[0])
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    translated = Translator(model, dtype=torch.float32).translate([pixels])[0]
    assert translated.shape == pixels.shape
    more = [max(8, -(-side // 4) * 4) - side for side in size]
    assert padded_size(pixels) == (size[0] + more[0], size[1] + more[1])
    padded = np.pad(pixels, [(0, more[0]), (0, more[1]), (0, 0)], mode="reflect")
    image = torch.from_numpy(padded).permute(2, 0, 1)[None].double() / 127.5 - 1
    with torch.no_grad():
        wanted = model.G.double()(image)[0].permute(1, 2, 0)[: size[0], : size[1]]
    model.float()
    gray_levels = (wanted + 1) * 127.5
    assert np.abs(translated - gray_levels.numpy()).max() < 0.51


def test_each_direction_has_its_generator(model: CycleGAN) -> None:
    picture = Image.effect_noise((16, 16), 90).convert("RGB")
    there, back = (Translator(model, to)(picture) for to in ("B", "A"))
    assert np.array_equal(np.asarray(Translator(model)(picture)), np.asarray(there))
    assert not np.array_equal(np.asarray(there), np.asarray(back))
    with pytest.raises(InputError, match="not to 'C'"):
        Translator(model, "C")


def test_pictures_of_one_padded_size_share_a_batch(model: CycleGAN) -> None:
    rng = np.random.default_rng(0)
    sizes = ((15, 22), (16, 24), (13, 21))
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    translator = Translator(model, dtype=torch.float32)
    together = translator.translate(pictures)
    for picture, made in zip(pictures, together, strict=True):
        alone = translator.translate([picture])[0]
        assert np.abs(made.astype(int) - alone).max() <= 1


def test_larger_pictures_are_scaled_down(model: CycleGAN) -> None:
    translator = Translator(model)
    assert translator(Image.new("RGB", (80, 20)), max_size=40).size == (40, 10)
    assert translator(Image.new("RGB", (40, 20)), max_size=40).size == (40, 20)
    assert translator(Image.new("RGB", (4000, 2)), max_size=40).size == (40, 1)


def test_transparent_pixels_are_on_white_and_exif_is_obeyed(model: CycleGAN) -> None:
    translator = Translator(model)
    white = np.asarray(translator(Image.new("RGB", (16, 16), "white")))
    clear = np.asarray(translator(Image.new("RGBA", (16, 16), (9, 9, 9, 0))))
    assert np.array_equal(white, clear)
    turned = Image.effect_noise((16, 24), 90).convert("RGB")
    turned.getexif()[0x112] = 6  # to be turned by 90 degrees
    assert translator(turned).size == (24, 16)


def test_weights_are_copied(model: CycleGAN) -> None:
    picture = Image.effect_noise((16, 16), 90).convert("RGB")
    translator = Translator(model)
    before = np.asarray(translator(picture))
    weight = model.G.first.weight
    with torch.no_grad():
        weight.mul_(2)
    assert np.array_equal(np.asarray(translator(picture)), before)
    with torch.no_grad():
        weight.div_(2)
    assert model.training


def test_bad_weights_and_types_are_refused(model: CycleGAN) -> None:
    with pytest.raises(InputError, match=r"dtype is torch\.int8, expected float32"):
        Translator(model, dtype=torch.int8)
    bad = CycleGAN(model.config)
    torch.nn.init.constant_(bad.F.last.weight, torch.nan)
    Translator(bad, "B")
    with pytest.raises(InputError, match=r"weights last\.weight: found NaN"):
        Translator(bad, "A")
