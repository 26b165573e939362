"""Fine-tuning: the model that a run starts from, and runs that start from one."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mirrorgan_fast import AttnGAN, MirrorGAN
from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import AttnGANConfig, MirrorGANConfig
from mirrorgan_fast.models.text_to_image import TextToImage
from mirrorgan_fast.recipes import find_recipe
from mirrorgan_fast.training.chain import train
from mirrorgan_fast.training.checkpoint import load_checkpoint
from mirrorgan_fast.training.fine_tuning import for_fine_tuning, starting_model
from mirrorgan_fast.training.run import Run
from mirrorgan_fast.training.settings import MirrorGANTrainingSettings
from mirrorgan_fast.vocabulary import END, Vocabulary

from ..small import SMALL, WORDS, small_model
from .runs import HERE, curves, kill, stop

CAPTIONS = ["a scarlet bird", "a bird with azure wings and a scarlet bill"]


def images(model: TextToImage, stages: int) -> list[Tensor]:
    """Return the images of the first stages for a caption of known words."""
    encoded = model.encode(["a red bird with blue wings"])
    with torch.no_grad():
        return model(encoded.tokens, encoded.lengths, *model.noise(3, [0])).images[:stages]


# --- the model that a run starts from -------------------------------------------------------------


def test_new_words_start_from_the_mean_of_the_known_ones() -> None:
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grown = starting_model(model, SMALL, CAPTIONS)
    assert grown.vocabulary.words == (END, *WORDS, "scarlet", "azure")  # the common one first
    known = len(model.vocabulary)
    tables = 0
    for name, tensor in grown.state_dict().items():
        old = before[name]
        assert torch.equal(tensor[: len(old)] if tensor.dim() else tensor, old), name
        if tensor.shape != old.shape:
            assert tensor.shape == (known + 2, *old.shape[1:])
            tables += 1
            mean = old[1:].double().numpy().mean(axis=0)
            np.testing.assert_allclose(tensor[known:], np.stack([mean] * 2), atol=1e-6)
    assert tables == 4  # STEM's and STREAM's words, and STREAM's predictions with their bias
    assert torch.equal(images(grown, 2)[1], images(model, 2)[1])
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_a_cascade_can_grow_and_shrink() -> None:
    model = small_model()
    larger = dataclasses.replace(SMALL, stages=3, image_size=64)
    grown = starting_model(model, larger, [])
    for ours, theirs in zip(images(grown, 2), images(model, 2), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert images(grown, 3)[2].shape == (1, 3, 64, 64)
    state, old = grown.state_dict(), model.state_dict()
    for part, new, last in (("F", 2, 1), ("G", 2, 1), ("F_att", 1, 0)):
        names = [name for name in state if name.startswith(f"glam.{part}.{new}.")]
        assert names
        for name in names:
            assert torch.equal(state[name], old[name.replace(f".{new}.", f".{last}.", 1)]), name
    smaller = dataclasses.replace(SMALL, stages=1, image_size=16, caption_length=20)
    shrunk = starting_model(grown, smaller, [])
    torch.testing.assert_close(images(shrunk, 1)[0], images(model, 1)[0])
    again = starting_model(shrunk, SMALL, [])
    state = again.state_dict()
    assert torch.equal(state["glam.G.1.0.weight"], old["glam.G.0.0.weight"])
    assert images(again, 2)[1].isfinite().all()


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"residual_blocks": 2}, "has residual_blocks 1, the run has 2; only these may differ"),
        ({"stream_hidden_size": 9}, "has stream_hidden_size 8, the run has 9"),
        ({"sentence_attention": "none"}, "has sentence_attention 'paper', the run has 'none'"),
        ({"image_size": 64}, "begins at 32 pixels, .* makes 16; set stages=3"),
        ({"image_size": 16}, "begins at 8 pixels, .* makes 16; set stages=1"),
        ({"image_size": 8, "stages": 1}, "choose a larger image_size"),
    ],
)
def test_networks_of_other_shapes_are_refused(changed: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        starting_model(small_model(), dataclasses.replace(SMALL, **changed), [])


def test_the_settings_are_those_of_a_tenth_of_the_training() -> None:
    recipe = find_recipe("birds-painted").settings
    assert isinstance(recipe, MirrorGANTrainingSettings)
    settings = for_fine_tuning(recipe)
    assert (settings.stem.steps, settings.stream.steps, settings.gan.steps) == (550, 1600, 1500)
    assert (settings.gan.last_stage_from, settings.gan.decay_steps) == (0, 300)
    assert settings.gan.learning_rate == pytest.approx(3e-4)
    assert settings.gan.discriminator_learning_rate == pytest.approx(3e-4)
    assert settings.stem.learning_rate == recipe.stem.learning_rate
    attngan = for_fine_tuning(find_recipe("attngan-cub").settings)
    assert attngan.gan.steps == 26_500


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture
def begun(config: MirrorGANConfig, vocabulary: Vocabulary) -> MirrorGAN:
    """A model to start from that lacks a third of the words."""
    torch.manual_seed(3)
    return MirrorGAN(config, Vocabulary(vocabulary.words[: 2 * len(vocabulary) // 3])).eval()


def test_a_run_starts_from_a_model_and_keeps_it(
    tmp_path: Path,
    begun: MirrorGAN,
    run: Callable[..., None],
    vocabulary: Vocabulary,
) -> None:
    run("stem", init_from=begun)
    run("stream", "gan")  # goes on without it
    start = MirrorGAN.from_pretrained(tmp_path / "start")
    trained = MirrorGAN.from_pretrained(tmp_path)
    assert set(trained.vocabulary.words) == set(vocabulary.words)
    assert trained.vocabulary.words[: len(begun.vocabulary)] == begun.vocabulary.words
    learned = 0
    for name, tensor in trained.state_dict().items():
        old = begun.state_dict().get(name)
        kept = start.state_dict()[name]
        assert old is not None
        assert torch.equal(old, kept[: len(old)] if old.dim() else kept), name
        if ".cnn." in name:
            assert torch.equal(tensor, old), name  # CNNs stay as they are
        else:
            learned += not torch.equal(tensor, kept)
    assert learned > 50
    with pytest.raises(InputError, match=r"train cnn: the CNN of the model .* stays as it is"):
        run("cnn")


def test_the_first_step_is_taken_from_the_models_weights(
    tmp_path: Path, begun: MirrorGAN, run: Callable[..., None], settings: MirrorGANTrainingSettings
) -> None:
    still = {
        stage: dataclasses.replace(getattr(settings, stage), learning_rate=0.0)
        for stage in ("stem", "stream", "gan")
    }
    run("stem", "stream", "gan", init_from=begun, **still)
    start = MirrorGAN.from_pretrained(tmp_path / "start").state_dict()
    for name, tensor in MirrorGAN.from_pretrained(tmp_path).state_dict().items():
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        if not name.endswith(statistics):
            torch.testing.assert_close(tensor, start[name], msg=name)


def test_the_gan_can_do_with_the_models_other_networks(
    tmp_path: Path, begun: MirrorGAN, run: Callable[..., None]
) -> None:
    run("gan", init_from=begun)
    assert not (tmp_path / "stem").exists()
    start = MirrorGAN.from_pretrained(tmp_path / "start").state_dict()
    for name, tensor in MirrorGAN.from_pretrained(tmp_path).state_dict().items():
        if name.startswith(("stem.", "stream.", "image_encoder.")):
            assert torch.equal(tensor, start[name]), name


def test_a_killed_run_that_starts_from_a_model_resumes_exactly(
    tmp_path: Path,
    begun: MirrorGAN,
    run: Callable[..., None],
    write_every: Callable[[int, int], None],
    monkeypatch: pytest.MonkeyPatch,
    assert_same: Any,
) -> None:
    write_every(1, 1)
    run("stem", "gan", init_from=begun)
    whole = {stage: load_checkpoint(tmp_path / stage) for stage in ("stem", "gan")}
    shutil.rmtree(tmp_path)
    for stage in ("stem", "gan"):
        with monkeypatch.context() as patch:
            stop(patch, 3, kill)
            with pytest.raises(RuntimeError, match="killed"):
                run(stage, init_from=begun)
        run(stage, init_from=begun)
        assert_same(load_checkpoint(tmp_path / stage), whole[stage])


def test_what_does_not_go_together_is_refused(
    tmp_path: Path,
    begun: MirrorGAN,
    run: Callable[..., None],
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    birds: CaptionedImages,
) -> None:
    attngan = AttnGAN(AttnGANConfig(image_size=32, stages=2), Vocabulary([END, "bird"]))
    with pytest.raises(InputError, match="is of the system 'attngan', the run is of 'mirrorgan'"):
        run("stem", init_from=attngan)
    with pytest.raises(InputError, match=r"a\.pth: the CNNs are those of the model"):
        train(
            ("stem",),
            config,
            settings,
            birds,
            tmp_path,
            HERE,
            init_from=begun,
            backbone_weights={"stem": Path("a.pth")},
        )
    late = dataclasses.replace(settings.gan, generator_from=6)
    with pytest.raises(InputError, match=r"generator_from is 6 of 6 .* generator would never be"):
        run("gan", init_from=begun, gan=late)
    assert not list(tmp_path.iterdir())
    run("cnn")
    with pytest.raises(InputError, match="holds a run that did not start from a trained model"):
        run("stem", init_from=begun)


def test_another_model_in_the_folder_is_refused(
    tmp_path: Path, begun: MirrorGAN, run: Callable[..., None]
) -> None:
    run("stem", init_from=begun)
    folder = tmp_path / "start"
    start = MirrorGAN.from_pretrained(folder)
    with torch.no_grad():
        start.stem.embedding.weight[1, 1] += 1
    start.save_pretrained(folder)
    with pytest.raises(InputError, match="weights that it started from"):
        run("stem")


def test_the_discriminators_train_alone_first(
    tmp_path: Path,
    begun: MirrorGAN,
    run: Callable[..., None],
    settings: MirrorGANTrainingSettings,
    monkeypatch: pytest.MonkeyPatch,
    write_every: Callable[[int, int], None],
) -> None:
    write_every(1, 1)
    states: dict[int, dict[str, Any]] = {}
    validated = []

    def validate(model: TextToImage) -> dict[str, float]:
        validated.append(model)
        return {"held_out": 0.5}

    def keep(self: Run, step: int, state: dict[str, Any]) -> None:
        states[step] = {
            part: {name: tensor.clone() for name, tensor in state[part].items()}
            for part in ("glam", "average", "D")
        }

    monkeypatch.setattr(Run, "save", keep)
    gan = dataclasses.replace(settings.gan, generator_from=3)
    run("gan", init_from=begun, validate=validate, validate_every=1, gan=gan)
    start = MirrorGAN.from_pretrained(tmp_path / "start").glam.state_dict()
    for name in (name for name, _ in begun.glam.named_parameters()):
        assert torch.equal(states[2]["glam"][name], start[name]), name
        assert not torch.equal(states[3]["glam"][name], start[name]), name
    for name, tensor in states[2]["average"].items():
        assert torch.equal(tensor, start[name]), name
    for name in ("0.unconditional_logit.weight", "1.unconditional_logit.weight"):
        assert not torch.equal(states[1]["D"][name], states[0]["D"][name]), name
    points = [point for point in curves(tmp_path / "gan") if "D_0" in point]
    assert ["G_0" in point for point in points] == [False] * 3 + [True] * 3
    held_out = [point["step"] for point in curves(tmp_path / "gan") if "held_out" in point]
    assert held_out == [4, 5, 6]
    assert len(validated) == 3  # of a generator that trains
