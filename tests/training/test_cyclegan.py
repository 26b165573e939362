"""CycleGAN's training: what a step computes, the pool, resuming, and the chain from the command."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mirrorgan_fast.cli.main import main
from mirrorgan_fast.data.painted_birds.data_set import export_image_folder
from mirrorgan_fast.data.unpaired import Unpaired, open_unpaired
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import CycleGANConfig
from mirrorgan_fast.models.cyclegan import CycleGAN
from mirrorgan_fast.pictures import to_signed
from mirrorgan_fast.training.checkpoint import load_checkpoint
from mirrorgan_fast.training.computation import FP32
from mirrorgan_fast.training.cyclegan import CycleGANTraining, ImagePool, train_cyclegan
from mirrorgan_fast.training.settings import CycleGANSettings, CycleGANTrainingSettings

from .runs import CYCLEGAN, HERE, curves, kill, stop

SETTINGS = CycleGANTrainingSettings(
    gan=CycleGANSettings(steps=4, batch_size=2, decay_steps=2, pool_size=3),
    precision="fp32",
    augment=False,
    log_every=1,
)


@pytest.fixture(scope="module")
def unpaired(tmp_path_factory: pytest.TempPathFactory) -> Unpaired:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for domain, low in (("A", 0), ("B", 128)):
        (folder / f"train{domain}").mkdir()
        for i in range(5):
            pixels = rng.integers(low, low + 128, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"train{domain}" / f"{i}.png")
    return open_unpaired(folder)


def batch(count: int = 2) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(3)
    shape = (count, 3, 32, 32)
    return {
        name: torch.randint(0, 256, shape, dtype=torch.uint8, generator=random) for name in "xy"
    }


def task(**changed: Any) -> CycleGANTraining:
    torch.manual_seed(0)
    settings = dataclasses.replace(SETTINGS.gan, **changed)
    return CycleGANTraining(CYCLEGAN, settings, FP32, compiled=False)


@pytest.mark.parametrize("form", ["paper", "authors"])
@pytest.mark.parametrize("identity_weight", [0.0, 0.3])
def test_a_step_lowers_the_formulas(form: Any, identity_weight: float) -> None:
    """The losses by probabilities and sums in float64, with the networks before each step."""
    torch.set_default_dtype(torch.float64)
    try:
        trained = task(form=form, identity_weight=identity_weight)
        before = {n: p.detach().clone() for n, p in trained.model.named_parameters()}
        of_D = {n: p.detach().clone() for n, p in trained.D.named_parameters()}
        model, D = trained.model, trained.D
        given = batch()
        x, y = (to_signed(given[name], torch.device("cpu")) for name in "xy")

        def real_term(logits: Tensor) -> Tensor:
            if form == "authors":
                return (logits - 1).pow(2).mean()
            return -logits.sigmoid().log().mean()

        def fake_term(logits: Tensor) -> Tensor:
            if form == "authors":
                return logits.pow(2).mean()
            return -(1 - logits.sigmoid()).log().mean()

        fake_y, fake_x = model.G(x), model.F(y)
        if form == "authors":
            adversarial = real_term(D["Y"](fake_y)) + real_term(D["X"](fake_x))
        else:
            adversarial = -fake_term(D["Y"](fake_y)) - fake_term(D["X"](fake_x))
        cycle = (model.F(fake_y) - x).abs().mean() + (model.G(fake_x) - y).abs().mean()
        identity = (model.G(y) - y).abs().mean() + (model.F(x) - x).abs().mean()
        loss = adversarial + 10 * cycle + 10 * identity_weight * identity
        names = list(before)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        half = 0.5 if form == "authors" else 1.0
        losses_D = {
            "X": half * (real_term(D["X"](x)) + fake_term(D["X"](fake_x.detach()))),
            "Y": half * (real_term(D["Y"](y)) + fake_term(D["Y"](fake_y.detach()))),
        }
        gradients_D = torch.autograd.grad(sum(losses_D.values()), list(D.parameters()))  # type: ignore[arg-type]

        figures = trained.step(0, 0, given)
        assert float(figures["G"]) == pytest.approx(adversarial.item(), rel=1e-9)
        assert float(figures["cycle"]) == pytest.approx(cycle.item(), rel=1e-9)
        if identity_weight:
            assert float(figures["identity"]) == pytest.approx(identity.item(), rel=1e-9)
        for name, wanted in losses_D.items():
            assert float(figures[f"D_{name}"]) == pytest.approx(wanted.item(), rel=1e-9)
        # Adam's first step: the learning rate in the direction of the gradient's sign
        rate = SETTINGS.gan.learning_rate
        for old, network, grads in (
            (before, trained.model, gradients),
            (of_D, trained.D, gradients_D),
        ):
            now = dict(network.named_parameters())
            for name, gradient in zip(old, grads, strict=True):
                wanted = old[name] - rate * gradient / (gradient.abs() + 1e-8)
                torch.testing.assert_close(now[name].detach(), wanted, rtol=1e-6, atol=1e-9)
        assert names
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_pool_returns_new_and_stored_images() -> None:
    torch.manual_seed(0)
    pool = ImagePool(3, 4, FP32)
    given = 0
    returned: list[int] = []
    for _ in range(200):
        new = torch.stack([torch.full((3, 4, 4), float(given + i)) for i in range(2)])
        given += 2
        returned += [int(image[0, 0, 0]) for image in pool(new)]
    assert returned[:3] == [0, 1, 2]
    fresh = sum(image == number for number, image in enumerate(returned[3:], start=3))
    assert 160 < fresh < 240  # one half of 397
    # the first ones are stored and returned; then a stored one leaves when it is returned
    assert len(set(returned[3:])) == len(returned[3:])
    assert int(pool.stored) == 3


def test_without_a_pool_the_newest_are_seen() -> None:
    new = torch.rand(2, 3, 4, 4)
    assert torch.equal(ImagePool(0, 4, FP32)(new), new)


def test_the_generators_do_not_lower_the_discriminators_loss() -> None:
    """Images in the pool have no gradient, and D's parameters none from the generators' step."""
    trained = task(discriminator_learning_rate=0.0)
    before = {n: p.clone() for n, p in trained.D.state_dict().items()}
    trained.step(0, 0, batch())
    for name, tensor in trained.D.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_stopped_run_resumes_to_the_same_bits(
    unpaired: Unpaired, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same: Any
) -> None:
    settings = dataclasses.replace(SETTINGS, save_every=1)
    train_cyclegan(CYCLEGAN, settings, unpaired, tmp_path / "whole", HERE)
    with monkeypatch.context() as patched:
        stop(patched, 2, kill)
        with pytest.raises(RuntimeError, match="killed"):
            train_cyclegan(CYCLEGAN, settings, unpaired, tmp_path / "run", HERE)
    model = train_cyclegan(CYCLEGAN, settings, unpaired, tmp_path / "run", HERE)
    whole, resumed = (load_checkpoint(tmp_path / name / "gan") for name in ("whole", "run"))
    assert_same(whole, resumed)
    assert curves(tmp_path / "whole/gan") == curves(tmp_path / "run/gan")
    assert int(whole["pools"]["X.stored"]) == 3
    loaded = CycleGAN.from_pretrained(tmp_path / "run")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    sheet = Image.open(tmp_path / "run/gan/samples/0000004.png")
    assert sheet.size == (5 * 34 - 2, 6 * 34 - 2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_trains_in_narrow_precisions(unpaired: Unpaired, tmp_path: Path, precision: Any) -> None:
    settings = dataclasses.replace(SETTINGS, precision=precision)
    train_cyclegan(CYCLEGAN, settings, unpaired, tmp_path, HERE)
    points = curves(tmp_path / "gan")
    assert len(points) == 4
    exact = task().step(0, 0, batch())
    assert points[0]["cycle"] == pytest.approx(float(exact["cycle"]), rel=0.5)


def test_a_run_starts_from_a_model(unpaired: Unpaired, tmp_path: Path) -> None:
    first = train_cyclegan(CYCLEGAN, SETTINGS, unpaired, tmp_path / "first", HERE)
    settings = dataclasses.replace(
        SETTINGS, gan=dataclasses.replace(SETTINGS.gan, learning_rate=0.0, steps=2)
    )
    second = train_cyclegan(
        CYCLEGAN, settings, unpaired, tmp_path / "second", HERE, init_from=first
    )
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name])
    # it has its own copy, so it resumes without the model
    longer = dataclasses.replace(settings, gan=dataclasses.replace(settings.gan, steps=3))
    train_cyclegan(CYCLEGAN, longer, unpaired, tmp_path / "second", HERE)
    with pytest.raises(InputError, match="did not start from a trained model"):
        train_cyclegan(CYCLEGAN, longer, unpaired, tmp_path / "first", HERE, init_from=first)
    other = dataclasses.replace(CYCLEGAN, residual_blocks=2)
    with pytest.raises(InputError, match="has residual_blocks 1, the run has 2"):
        train_cyclegan(other, settings, unpaired, tmp_path / "third", HERE, init_from=first)


def test_other_pictures_and_sizes_are_refused(unpaired: Unpaired, tmp_path: Path) -> None:
    train_cyclegan(CYCLEGAN, SETTINGS, unpaired, tmp_path, HERE)
    swapped = Unpaired(unpaired.y, unpaired.x, unpaired.names[::-1])
    with pytest.raises(InputError, match="was made with data"):
        train_cyclegan(CYCLEGAN, SETTINGS, swapped, tmp_path, HERE)
    for change in ({"residual_blocks": 2}, {"x": "C"}):
        other = dataclasses.replace(CYCLEGAN, **change)
        with pytest.raises(InputError, match="holds a run with"):
            train_cyclegan(other, SETTINGS, unpaired, tmp_path, HERE)


def test_one_picture_a_step_is_allowed(unpaired: Unpaired, tmp_path: Path) -> None:
    settings = dataclasses.replace(
        SETTINGS, gan=dataclasses.replace(SETTINGS.gan, batch_size=1, steps=2)
    )
    train_cyclegan(CYCLEGAN, settings, unpaired, tmp_path, HERE)
    assert len(curves(tmp_path / "gan")) == 2


def test_the_command_trains_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_image_folder(tmp_path / "birds", train=40, test=0, size=64, progress=False)
    run = ["--run", str(tmp_path / "run"), "--quiet"]
    sizes = {
        "image_size": 32,
        "generator_channels": 4,
        "discriminator_channels": 4,
        "residual_blocks": 1,
        "gan.steps": 2,
        "precision": "fp32",
    }
    settings = [text for name, value in sizes.items() for text in ("--set", f"{name}={value}")]
    data = ["--data", str(tmp_path / "birds"), "--domains", "attributes.background=sky,sunset"]
    recipe = ["--recipe", "cyclegan-birds-painted"]
    assert main(["train", "all", *recipe, *data, *settings, *run]) == 0
    config = CycleGAN.from_pretrained(tmp_path / "run").config
    assert config == CycleGANConfig(32, 4, 4, 1, "sky", "sunset")
    assert main(["train", "gan", "--set", "gan.steps=3", *run]) == 0
    assert load_checkpoint(tmp_path / "run/gan")["step"] == 3
    capsys.readouterr()
    for command, expected in (
        (["train", "stem", *run], "train stem: CycleGAN has one stage: train gan"),
        (["train", "all", *data, "--run", str(tmp_path / "x")], "--domains is for CycleGAN"),
        (
            ["train", "all", *recipe, *data[:2], "--run", str(tmp_path / "x")],
            "has no folder trainA",
        ),
        (
            ["train", "all", "--stem-weights", "random", *run],
            "has no CNN that starts from a file",
        ),
    ):
        assert main(command) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
