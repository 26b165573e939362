"""Walks begin and end at the images of the model, and go smoothly between them."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mirrorgan_fast.cli.main import main
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.figures.walk import _great_circle, walk, write_walk
from mirrorgan_fast.models.mirrorgan import MirrorGAN


@pytest.fixture(scope="module")
def birds() -> MirrorGAN:
    """A trained model, whose images depend on the caption."""
    return MirrorGAN.from_pretrained()


@pytest.mark.parametrize("frames", [2, 3, 21])
@pytest.mark.parametrize(
    ("captions", "ends"),
    [
        (["a red bird"], [("a red bird", 0), ("a red bird", 1)]),
        (
            ["a red bird", "a blue bird with green wings"],
            [("a red bird", 0), ("a blue bird with green wings", 0)],
        ),
    ],
)
def test_the_ends_are_images_of_the_model(
    captions: list[str], ends: list[tuple[str, int]], frames: int, birds: MirrorGAN
) -> None:
    images = walk(birds, captions, frames, seed=4)
    assert images.shape == (frames, 128, 128, 3)
    for found, (caption, index) in zip((images[0], images[-1]), ends, strict=True):
        expected = np.asarray(birds.sample([caption], 4, [index])[0]).astype(int)
        assert np.abs(found - expected).max() <= 1
    steps = np.abs(np.diff(images.astype(int), axis=0)).mean(axis=(1, 2, 3))
    whole = np.abs(images[0].astype(int) - images[-1]).mean()
    assert whole > 1
    assert steps.max() < whole * (1.01 if frames < 4 else 0.6)


def test_the_great_circle_keeps_the_length_and_the_plane() -> None:
    ends = torch.nn.functional.normalize(torch.randn(2, 50, dtype=torch.float64)) * 3
    t = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
    points = _great_circle(ends, t)
    torch.testing.assert_close(points.norm(dim=1), torch.full((9,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(points[[0, -1]], ends)
    angle = torch.acos(torch.nn.functional.cosine_similarity(*ends, dim=0))
    between = torch.acos(torch.nn.functional.cosine_similarity(points, ends[:1]).clamp(-1, 1))
    torch.testing.assert_close(between, t[:, 0] * angle, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("psi", [0.0, 0.5])
def test_a_small_psi_makes_the_frames_more_alike(psi: float, model: MirrorGAN) -> None:
    images = walk(model, ["a red bird"], 5, psi=psi)
    whole = walk(model, ["a red bird"], 5)
    assert images.std(axis=0).mean() < whole.std(axis=0).mean()
    assert (images.std(axis=0).max() == 0) == (psi == 0)


@pytest.mark.parametrize("name", ["walk.webp", "walk.gif"])
def test_the_command_writes_an_animation_that_goes_there_and_back(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sample", "a blue bird", "a red bird"]
    out = tmp_path / name
    assert main([*arguments, "--walk", "7", "-o", str(out)]) == 0
    animation = Image.open(out)
    assert animation.n_frames == 12
    assert animation.info["loop"] == 0
    before = out.read_bytes()
    assert main([*arguments, "--walk", "7", "-o", str(out)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*arguments, "--walk", "2", "-o", str(out), "--overwrite"]) == 0


@pytest.mark.parametrize(
    "given", [["-n", "2"], ["--quality", "90"], ["--batch-size", "8"], ["--stats"]]
)
def test_the_command_refuses_options_that_a_walk_does_not_have(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "walk.webp")
    assert main(["sample", "a bird", "--walk", "7", "-o", out, *given]) == 2
    assert f"cannot be combined with {given[0]};" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_training_mode_does_not_change_a_walk(model: MirrorGAN) -> None:
    trained = copy.deepcopy(model).train()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    images = walk(trained, ["a red bird"], 3)
    assert np.array_equal(images, walk(copy.deepcopy(model).eval(), ["a red bird"], 3))
    assert all(torch.equal(before[name], now) for name, now in trained.state_dict().items())
    assert trained.training


def test_weights_of_another_data_type_give_nearly_the_same_walk(model: MirrorGAN) -> None:
    images = walk(model, ["a red bird"], 5).astype(int)
    narrow = walk(copy.deepcopy(model).bfloat16(), ["a red bird"], 5)
    assert np.abs(images - narrow).mean() < 2


@pytest.mark.parametrize(
    ("captions", "frames", "fault"),
    [
        ([], 5, "found 0"),
        (["a bird"] * 3, 5, "found 3"),
        (["a bird"], 1, "found 1"),
        (["a bird"], 10**20, "2 to 10,000 frames"),
        (["zebra"], 5, "no word of the caption"),
    ],
)
def test_wrong_captions_or_frame_counts_are_refused(
    captions: list[str], frames: int, fault: str, model: MirrorGAN
) -> None:
    with pytest.raises(InputError, match=fault):
        walk(model, captions, frames)


def test_other_suffixes_and_bad_folders_are_refused(model: MirrorGAN, tmp_path: Path) -> None:
    images = walk(model, ["a bird"], 2)
    with pytest.raises(InputError, match=r"name the file \.webp or \.gif"):
        write_walk(tmp_path / "walk.png", images)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        write_walk(tmp_path / "file" / "walk.gif", images)
