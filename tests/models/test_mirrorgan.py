"""MirrorGAN as users call it: sampling, describing, saving, loading, and bad input."""

import copy
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode

from mirrorgan_fast import weights
from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.errors import InputError, UnknownWordsWarning
from mirrorgan_fast.figures.walk import walk
from mirrorgan_fast.inference.export import export
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.pictures import from_image, to_uint8
from mirrorgan_fast.vocabulary import Vocabulary
from tests.small import SMALL

CONFIG = dataclasses.replace(SMALL, noise_size=6, condition_size=5, caption_length=6)
WORDS = ["<end>", "a", "red", "blue", "bird", "with", "wings", "on", "rock", "طائر", "鸟", "vögel"]


@pytest.fixture(scope="module")
def model() -> MirrorGAN:
    """An untrained model with enlarged word weights; otherwise words would hardly matter."""
    torch.manual_seed(0)
    model = MirrorGAN(CONFIG, Vocabulary(WORDS))
    with torch.no_grad():
        model.stem.embedding.weight.mul_(30)
        model.stream.word_linear.weight.mul_(20)
        for _ in range(20):  # statistics for the batch norms
            tokens = torch.randint(1, len(WORDS), (16, 6))
            lengths = torch.randint(1, 7, (16,))
            images = model(tokens, lengths, torch.randn(16, 6), torch.randn(16, 5)).images[-1]
            model.image_encoder(images)
            model.stream.encode(images)
    return model.eval()


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


# --- captions to pictures -------------------------------------------------------------------------


def test_each_caption_gives_one_picture(model: MirrorGAN) -> None:
    images = model.sample(["a red bird", "a blue bird with red wings", "rock"])
    assert [(image.mode, image.size) for image in images] == [("RGB", (32, 32))] * 3
    assert pixels(images).std() > 1
    assert model.sample([]) == []


def test_a_seed_reproduces_the_pictures(model: MirrorGAN) -> None:
    captions = ["a red bird", "a red bird", "a blue bird"]
    first = pixels(model.sample(captions, seed=3))
    torch.rand(7)  # torch's global random state has no effect
    assert np.array_equal(pixels(model.sample(captions, seed=3)), first)
    assert not np.array_equal(pixels(model.sample(captions, seed=4)), first)
    assert not np.array_equal(first[0], first[1])  # same caption, another index
    assert not np.array_equal(pixels(model.sample(captions)), first)  # seed 0


def test_a_picture_depends_only_on_caption_seed_and_index(model: MirrorGAN) -> None:
    captions = ["a red bird", "a blue bird with red wings", "rock", "a bird on a rock"]
    others = ["bird", "a blue bird with red wings", "a blue rock with blue wings", "on"]
    assert abs(pixels(model.sample(captions))[1] - pixels(model.sample(others))[1]).max() <= 1
    alone = pixels(model.sample([captions[1]], indices=[1]))[0]
    assert abs(alone - pixels(model.sample(captions))[1]).max() <= 1


def test_a_list_can_be_sampled_in_parts(model: MirrorGAN) -> None:
    captions = ["a red bird", "a bird", "blue wings", "a rock", "a bird with wings"]
    whole = pixels(model.sample(captions, seed=9))
    parts = model.sample(captions[:2], 9, range(2)) + model.sample(captions[2:], 9, range(2, 5))
    assert abs(pixels(parts) - whole).max() <= 1
    picked = model.sample([captions[4], captions[0]], 9, [4, 0])
    assert abs(pixels(picked) - whole[[4, 0]]).max() <= 1


def test_a_fused_model_gives_the_same_pictures(model: MirrorGAN) -> None:
    captions = ["a red bird", "a blue bird with red wings", "rock"]
    plain = model.sample(captions, seed=3)
    exact = pixels(fuse(model, torch.float32).sample(captions, seed=3))
    assert abs(exact - pixels(plain)).max() <= 1
    fused = fuse(model, torch.bfloat16)
    assert abs(pixels(fused.sample(captions, seed=3)) - pixels(plain)).mean() < 1


def test_noise_depends_only_on_seed_and_index(model: MirrorGAN) -> None:
    z, eps = model.noise(5, [3, 0, 2**40])
    assert z.shape == (3, 6)
    assert eps.shape == (3, 5)
    assert z.dtype == eps.dtype == torch.float32
    for seeds in (np.int64(5), [5, 5, 5]):
        assert torch.equal(model.noise(seeds, [3, 0, 2**40])[0], z)
    one_z, one_eps = model.noise(5, [2**40])
    assert torch.equal(one_z[0], z[2])
    assert torch.equal(one_eps[0], eps[2])
    rows = torch.cat(model.noise(5, range(50)) + model.noise(6, range(50)), dim=1)
    assert len({tuple(row.tolist()) for row in rows}) == 50
    # The high bits of a seed are not mistaken for an index.
    for seed in (2**32, 5 * 2**32 + 1, 2**64):
        small, index = seed % 2**32, seed >> 32
        assert not torch.equal(model.noise(seed, [0])[0], model.noise(small, [index])[0])
    many = torch.cat(model.noise([2**32, 2**33, 2**32, 2**96], [0, 0, 1, 1]), dim=1)
    assert len({tuple(row.tolist()) for row in many}) == 4


def test_noise_is_standard_normal(model: MirrorGAN) -> None:
    z, eps = model.noise(0, range(2000))
    values = torch.cat([z, eps], dim=1).double()
    assert values.mean().abs() < 5 / values.numel() ** 0.5
    assert abs(values.var() - 1) < 5 * (2 / values.numel()) ** 0.5
    correlation = torch.corrcoef(values.T) - torch.eye(11)
    assert correlation.abs().max() < 5 / 2000**0.5


def test_unknown_words_are_skipped(model: MirrorGAN) -> None:
    plain = model.sample(["a red bird"])
    with pytest.warns(UnknownWordsWarning, match=r"skipped: gorgeous, tiny$") as told:
        assert np.array_equal(pixels(model.sample(["A gorgeous RED, (tiny) bird!"])), pixels(plain))
    assert [warning.filename for warning in told] == [__file__]
    with pytest.warns(UnknownWordsWarning) as told:  # one warning per call
        model.sample(["a purple bird", "a green bird", "a purple rock"])
    assert [str(warning.message).rpartition(": ")[2] for warning in told] == ["purple, green"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.sample(["a red bird"])


def test_only_the_first_words_of_a_long_caption_are_used(model: MirrorGAN) -> None:
    plain = model.sample(["a red bird with blue wings"])
    longer = model.sample(["a red bird with blue wings on a rock" + " rock" * 100_000])
    assert np.array_equal(pixels(longer), pixels(plain))


@pytest.mark.parametrize(
    "caption",
    [
        "طائر أحمر",
        "红 鸟 🐦",
        "vo\u0308gel",
        "red\0bird red",
        "\ufeffred",
        "red\n\t\rbird",
        "a\u202ered a",
    ],
)
@pytest.mark.filterwarnings("ignore::mirrorgan_fast.errors.UnknownWordsWarning")
def test_any_text_with_a_known_word_is_accepted(model: MirrorGAN, caption: str) -> None:
    assert len(model.sample([caption])) == 1


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "   ",
        "... !?",
        "zzz",
        "🐦🐦",
        "红色",
        "\0",
        "<end>",
        "\ud800",
        pytest.param("zzz " * 100_000, id="100,000 words"),
        pytest.param("z" * 1_000_000, id="a long word"),
    ],
)
def test_a_caption_without_a_known_word_is_refused(model: MirrorGAN, caption: str) -> None:
    with pytest.raises(InputError, match="known") as told:
        model.sample(["a red bird", caption])
    message = str(told.value)
    assert "\n" not in message
    assert "\0" not in message
    assert len(message) < 300


def test_wrong_arguments_are_refused(model: MirrorGAN) -> None:
    with pytest.raises(InputError, match="seed is -1"):
        model.sample(["a red bird"], seed=-1)
    with pytest.raises(InputError, match="list"):
        model.sample("a red bird")
    with pytest.raises(InputError, match="NoneType"):
        model.sample(["a red bird", None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="index"):
        model.sample(["a red bird"], indices=[-1])
    with pytest.raises(InputError, match="indices"):
        model.sample(["a red bird", "a bird"], indices=[1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["noise", "condition_noise"])
def test_nan_or_infinite_noise_is_refused(
    model: MirrorGAN, name: str, fused: bool, value: float
) -> None:
    """It would give a black image."""
    encoded, (noise, condition_noise) = model.encode(["a red bird"]), model.noise(0, [0])
    given = {"noise": noise.clone(), "condition_noise": condition_noise.clone()}
    given[name][0, 1] = value
    paints = fuse(model) if fused else model
    with pytest.raises(InputError, match=f"^{name}: found NaN or infinity"):
        paints.render(encoded.tokens, encoded.lengths, *given.values())


def test_tracing_does_not_read_the_noise(model: MirrorGAN) -> None:
    encoded, noise, fused = model.encode(["a red bird"]), model.noise(0, [0]), fuse(model)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        given = map(mode.from_tensor, (encoded.tokens, encoded.lengths, *noise))
        assert fused.render(*given).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("weight", ["glam.G.1.0.weight", "stem.lstm.bias_hh_l0"])
def test_nan_weights_are_refused(model: MirrorGAN, weight: str) -> None:
    broken = copy.deepcopy(model)
    broken.get_parameter(weight).data.view(-1)[3] = torch.nan
    with pytest.raises(InputError, match=rf"^weights {weight}: found NaN"):
        fuse(broken)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_data_type_give_nearly_the_same_pictures(
    model: MirrorGAN, dtype: torch.dtype
) -> None:
    captions = ["a red bird", "a blue bird with red wings"]
    converted = copy.deepcopy(model).to(dtype)
    images = pixels(model.sample(captions))
    for other in (converted, fuse(converted)):
        assert np.abs(pixels(other.sample(captions)) - images).mean() < 2
    assert len(converted.describe(model.sample(captions))) == 2


def test_training_mode_does_not_change_samples_and_descriptions(model: MirrorGAN) -> None:
    trained = copy.deepcopy(model).train()
    trained.stem.eval()  # frozen, as in training
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    images = model.sample(["a red bird", "a blue bird"])
    assert np.array_equal(pixels(trained.sample(["a red bird", "a blue bird"])), pixels(images))
    assert trained.describe(images) == model.describe(images)
    assert all(torch.equal(before[name], now) for name, now in trained.state_dict().items())
    assert trained.glam.training
    assert trained.glam.F[0].norm.training
    assert not trained.stem.training


def test_forward_returns_the_images_of_every_stage(model: MirrorGAN) -> None:
    encoded = model.vocabulary.encode(["a red bird", "rock"], CONFIG.caption_length)
    with torch.no_grad():
        images, mu, log_var = model(encoded.tokens, encoded.lengths, *model.noise(0, range(2)))
    assert [tuple(image.shape) for image in images] == [(2, 3, 16, 16), (2, 3, 32, 32)]
    assert mu.shape == log_var.shape == (2, 5)
    expected = to_uint8(images[-1]).numpy()
    assert abs(pixels(model.sample(["a red bird", "rock"])) - expected).max() <= 1


# --- pictures to captions -------------------------------------------------------------------------


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(0)
    width, height = size
    colors = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, (height, width), dtype=np.uint16))
    return colors.convert(mode)


@pytest.mark.parametrize("size", [(1, 1), (300, 20), (20, 300), (32, 32), (33, 31)])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pictures_of_any_kind_are_described(
    model: MirrorGAN, mode: str, size: tuple[int, int]
) -> None:
    (caption,) = model.describe([picture(mode, size)])
    assert set(caption.split()) <= set(WORDS) - {"<end>"}
    assert len(caption.split()) <= CONFIG.caption_length


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_pictures_without_a_defined_white_are_refused(model: MirrorGAN, mode: str) -> None:
    with pytest.raises(InputError, match=f"pixels of type {mode}; make them 8 bits"):
        model.describe([picture(mode, (32, 32))])


def test_pictures_are_prepared_as_in_training(tmp_path: Path) -> None:
    """They are turned upright, put on white and scaled in the same way."""
    picture("RGBA", (50, 40)).save(tmp_path / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture("RGB", (40, 61)).save(tmp_path / "b.jpg", exif=turned)
    rows = [{"file_name": name, "captions": ["a bird"]} for name in ("a.png", "b.jpg")]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = TrainingExamples(ImageFolder(tmp_path), Vocabulary(["<end>", "a"]), 16)
    for i, row in enumerate(rows):
        with Image.open(tmp_path / row["file_name"]) as opened:
            seen = from_image(opened, 16)
        assert torch.equal((seen + 1).mul(127.5).round().to(torch.uint8), examples[i]["image"])


def test_images_paths_and_arrays_are_described(model: MirrorGAN, tmp_path: Path) -> None:
    image = picture("RGB", (40, 30))
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    described = model.describe([image])
    for one in (image, tmp_path / "a.png", str(tmp_path / "a.png"), array):
        assert model.describe(one) == described
        assert model.describe([one, image]) == described * 2
        assert model.describe(iter([one])) == described
    assert model.describe(np.stack([array, array])) == described * 2
    assert model.describe(array[..., 0]) == model.describe([Image.fromarray(array[..., 0])])


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (5, "found int"),
        (None, "found NoneType"),
        ([5], "image 0: found int"),
        ([picture("RGB", (8, 8)), None], "image 1: found NoneType"),
        (np.zeros((8, 8, 3)), "image 0: found an array of float64"),
        (np.zeros((2, 8, 8, 3), np.float32), "image 0: found an array of float32"),
        (torch.zeros(1, 3, 8, 8), "image 0: found Tensor"),
        ("nowhere.png", "nowhere.png: cannot be read"),
        (b"png", "image 0: found int"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_anything_but_pictures_is_refused(model: MirrorGAN, given: Any, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        model.describe(given)


def test_a_captioner_that_gives_nan_is_refused(model: MirrorGAN) -> None:
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        damaged.stream.word_linear.weight[3, 2] = float("nan")
    with pytest.raises(InputError, match="describe: found NaN"):
        damaged.describe([picture("RGB", (40, 40))])


@pytest.mark.parametrize("part", ["stem", "glam"])
def test_infinite_weights_are_refused_by_fuse_walk_and_export(
    model: MirrorGAN, part: str, tmp_path: Path
) -> None:
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        next(getattr(damaged, part).parameters()).flatten()[0] = float("inf")
    for use in (
        lambda: fuse(damaged),
        lambda: walk(damaged, ["a bird"], 2),
        lambda: export(damaged, tmp_path / "model.onnx", "onnx"),
    ):
        with pytest.raises(InputError, match=f"weights {part}.* found NaN or infinity"):
            use()
    assert not any(tmp_path.iterdir())


def test_a_description_does_not_depend_on_the_other_pictures(model: MirrorGAN) -> None:
    images = [picture("RGB", (40, 40)), picture("L", (64, 32)), Image.new("RGB", (8, 8), "red")]
    assert model.describe(images) == [model.describe([image])[0] for image in images]
    assert model.describe([]) == []


# --- on disk --------------------------------------------------------------------------------------


def test_a_loaded_model_equals_the_saved_one(model: MirrorGAN, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = MirrorGAN.from_pretrained(tmp_path)
    assert not any(module.training for module in loaded.modules())
    assert loaded.config == model.config
    assert loaded.vocabulary.words == model.vocabulary.words
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    captions = ["a red bird", "a blue bird on a rock"]
    images = loaded.sample(captions, seed=2)
    assert np.array_equal(pixels(images), pixels(model.sample(captions, seed=2)))
    assert loaded.describe(images) == model.describe(images)


def test_half_precision_halves_the_file_and_hardly_changes_the_pictures(
    model: MirrorGAN, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "half", torch.float16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert 0.49 < sizes[1] / sizes[0] < 0.55
    loaded = MirrorGAN.from_pretrained(tmp_path / "half")
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    captions = ["a red bird", "a blue bird on a rock"]
    difference = abs(pixels(loaded.sample(captions)) - pixels(model.sample(captions)))
    assert difference.mean() < 1


def test_a_model_is_loaded_by_its_name(
    model: MirrorGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "PRETRAINED", tmp_path)
    model.save_pretrained(tmp_path / "birds-painted")
    model.save_pretrained(tmp_path / "other")
    assert torch.equal(MirrorGAN.from_pretrained().glam.G[0][0].weight, model.glam.G[0][0].weight)
    MirrorGAN.from_pretrained("other")
    with pytest.raises(InputError, match="birds-painted, other"):
        MirrorGAN.from_pretrained("birds")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"generator_channels": 8}, "glam"),
        ({"stages": 3}, "glam"),
        ({"residual_blocks": 2}, "glam.F.1.1"),
        ({"embedding_size": 8}, "stem"),
        ({"stream_hidden_size": 4}, "stream.lstm"),
        ({"sentence_attention": "none"}, "glam.F_att"),
    ],
)
def test_weights_of_another_config_are_refused(
    model: MirrorGAN, tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    model.save_pretrained(tmp_path)
    changed = dataclasses.replace(CONFIG, **changes)
    weights.save_description(tmp_path, MirrorGAN.SYSTEM, changed, model.vocabulary)
    with pytest.raises(InputError, match=name) as told:
        MirrorGAN.from_pretrained(tmp_path)
    assert str(tmp_path) in str(told.value)


def test_weights_of_another_vocabulary_are_refused(model: MirrorGAN, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    more = Vocabulary([*WORDS, "more"])
    weights.save_description(tmp_path, MirrorGAN.SYSTEM, CONFIG, more)
    with pytest.raises(InputError, match=r"stem\.embedding\.weight"):
        MirrorGAN.from_pretrained(tmp_path)


def test_weights_that_lack_a_part_are_refused(model: MirrorGAN, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("glam.F.0.norm.running_mean")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"glam\.F\.0\.norm\.running_mean is missing"):
        MirrorGAN.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "vocabulary.txt", "model.safetensors"])
@pytest.mark.parametrize("how", ["missing", "empty", "truncated"])
def test_a_damaged_file_is_named(model: MirrorGAN, tmp_path: Path, name: str, how: str) -> None:
    model.save_pretrained(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        # Without its last 16 bytes, the vocabulary is still readable but has other words.
        path.write_bytes(b"" if how == "empty" else content[:-16])
    with pytest.raises(InputError) as told:
        MirrorGAN.from_pretrained(tmp_path)
    message = str(told.value)
    assert str(tmp_path) in message
    assert "\n" not in message
    assert name in message or (name, how) == ("vocabulary.txt", "truncated")


def test_a_folder_that_cannot_be_written_is_refused(model: MirrorGAN, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        model.save_pretrained(tmp_path / "file" / "model")
