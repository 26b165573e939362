"""Training of the GAN: who learns, who must not, what is averaged, and that it resumes exactly."""

import copy
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import MirrorGANConfig, Norm
from mirrorgan_fast.models.damsm import DAMSMImageEncoder
from mirrorgan_fast.models.glam import GLAM
from mirrorgan_fast.models.stem import STEM
from mirrorgan_fast.models.stream import STREAM
from mirrorgan_fast.training import mirrorgan
from mirrorgan_fast.training import run as run_module
from mirrorgan_fast.training.captioner import train_stream
from mirrorgan_fast.training.checkpoint import load_checkpoint
from mirrorgan_fast.training.mirrorgan import train_mirrorgan
from mirrorgan_fast.training.run import Run
from mirrorgan_fast.training.settings import MirrorGANTrainingSettings
from mirrorgan_fast.vocabulary import Vocabulary

from .runs import HERE, curves, interrupt, kill, stop


class Pretrained(NamedTuple):
    stem: STEM
    image_encoder: DAMSMImageEncoder
    stream: STREAM


@pytest.fixture
def pretrained(config: MirrorGANConfig, vocabulary: Vocabulary) -> Pretrained:
    """Untrained, which is all the same here, with statistics in every batch norm."""
    torch.manual_seed(5)
    networks = Pretrained(
        STEM(config, len(vocabulary)),
        DAMSMImageEncoder(config),
        STREAM(config, len(vocabulary)),
    )
    image = torch.rand(6, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        networks.image_encoder(image)
        networks.stream.encode(image)
    return networks


Train = Callable[..., GLAM]


@pytest.fixture
def train(
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    examples: TrainingExamples,
    pretrained: Pretrained,
) -> Train:
    """Train the GAN in a folder, with other settings where they are given."""

    def run(
        folder: Path,
        *,
        seed: int = 0,
        precision: str = "fp32",
        sheet_every: int = 1000,
        quiet: bool = True,
        discriminator_norm: Norm = "batch",
        **changed: Any,
    ) -> GLAM:
        return train_mirrorgan(
            dataclasses.replace(config, discriminator_norm=discriminator_norm),
            dataclasses.replace(
                settings,
                seed=seed,
                precision=precision,
                sheet_every=sheet_every,
                gan=dataclasses.replace(settings.gan, **changed),
            ),
            examples,
            *pretrained,
            folder,
            dataclasses.replace(HERE, quiet=quiet),
        )

    return run


@pytest.fixture
def states(
    monkeypatch: pytest.MonkeyPatch, write_every: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """A list which every step's state is added to."""
    write_every(1, 1)
    saved: list[dict[str, Any]] = []
    monkeypatch.setattr(Run, "save", lambda self, step, state: saved.append(copy.deepcopy(state)))
    return saved


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_ctrl_c_and_resume_end_as_without(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch, assert_same: Any, norm: str
) -> None:
    train = functools.partial(
        train, discriminator_norm=norm, r1_weight=float(norm == "none"), decay_steps=4
    )
    whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop(patch, 2, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "resumed")
    assert load_checkpoint(tmp_path / "resumed")["step"] == 3
    resumed = train(tmp_path / "resumed")
    assert_same(load_checkpoint(tmp_path / "resumed"), load_checkpoint(tmp_path / "whole"))
    assert_same(resumed.state_dict(), whole.state_dict())


def test_a_killed_run_goes_on_from_its_checkpoint(
    tmp_path: Path,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    write_every: Callable[[int, int], None],
    assert_same: Any,
) -> None:
    write_every(1, 2)
    train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop(patch, 4, kill)
        with pytest.raises(RuntimeError, match="killed"):
            train(tmp_path / "killed")
    train(tmp_path / "killed")
    assert_same(load_checkpoint(tmp_path / "killed"), load_checkpoint(tmp_path / "whole"))
    whole, killed = ((tmp_path / run / "curves.jsonl").read_text() for run in ("whole", "killed"))
    assert killed == whole
    assert [json.loads(row)["step"] for row in whole.splitlines()] == [1, 2, 3, 4, 5, 6]


def test_a_run_made_longer_is_as_if_asked_for(
    tmp_path: Path, train: Train, assert_same: Any
) -> None:
    train(tmp_path / "longer", steps=3)
    longer = train(tmp_path / "longer", steps=5)
    assert_same(longer.state_dict(), train(tmp_path / "whole", steps=5).state_dict())


def test_the_seed_decides(tmp_path: Path, train: Train) -> None:
    first, other = train(tmp_path / "0", steps=2), train(tmp_path / "1", steps=2, seed=1)
    for name, parameter in first.named_parameters():
        if parameter.dim() > 1:
            assert not torch.equal(parameter, other.state_dict()[name]), name


@pytest.mark.parametrize(
    "changed", [{"stream_weight": 5.0}, {"form": "paper"}, {"average_decay": 0.5}]
)
def test_other_settings_are_refused(tmp_path: Path, train: Train, changed: dict[str, Any]) -> None:
    train(tmp_path, steps=1)
    ((name, value),) = changed.items()
    with pytest.raises(InputError, match=f"{name}.*({value}|its default)"):
        train(tmp_path, **changed)


def test_too_few_images_are_refused(tmp_path: Path, train: Train) -> None:
    with pytest.raises(InputError, match="12 training images"):
        train(tmp_path, batch_size=13)


# --- who learns -----------------------------------------------------------------------------------


def test_the_pretrained_networks_stay_as_they_are(
    tmp_path: Path, train: Train, pretrained: Pretrained, assert_same: Any
) -> None:
    before = copy.deepcopy([network.state_dict() for network in pretrained])
    train(tmp_path, stream_weight=3.0, damsm_weight=2.0)
    for network, state in zip(pretrained, before, strict=True):
        assert_same(network.state_dict(), state)  # with the statistics of their batch norms
        assert not any(p.requires_grad for p in network.parameters())
        assert all(p.grad is None for p in network.parameters())


def test_generator_and_discriminators_learn(
    tmp_path: Path, train: Train, states: list[dict[str, Any]]
) -> None:
    train(tmp_path, steps=3)
    for part in ("glam", "D"):
        for name, value in states[-1][part].items():
            assert value.isfinite().all(), name
            assert not torch.equal(value, states[0][part][name]), name


def test_discriminators_learn_from_their_own_loss_alone(
    tmp_path: Path, train: Train, states: list[dict[str, Any]], assert_same: Any
) -> None:
    """What the generator is asked for in the first step does not reach them."""
    train(tmp_path / "a", steps=1, stream_weight=0.0, damsm_weight=0.0, kl_weight=0.0)
    train(tmp_path / "b", steps=1, stream_weight=9.0, damsm_weight=9.0, kl_weight=9.0)
    assert_same(states[1]["D"], states[0]["D"])
    assert_same(states[1]["D_adam"], states[0]["D_adam"])
    assert not torch.equal(states[1]["glam"]["G.1.0.weight"], states[0]["glam"]["G.1.0.weight"])


@pytest.mark.parametrize(
    ("rate", "still", "moved"),
    [("learning_rate", "glam", "D"), ("discriminator_learning_rate", "D", "glam")],
)
def test_each_side_has_its_own_learning_rate(
    tmp_path: Path, train: Train, states: list[dict[str, Any]], rate: str, still: str, moved: str
) -> None:
    train(tmp_path, steps=3, **{rate: 0.0})
    weights = {"glam": "G.1.0.weight", "D": "0.features.0.weight"}
    assert torch.equal(states[-1][still][weights[still]], states[0][still][weights[still]])
    assert not torch.equal(states[-1][moved][weights[moved]], states[0][moved][weights[moved]])


@pytest.mark.parametrize(
    ("weight", "figure"), [("stream_weight", "stream"), ("damsm_weight", "damsm")]
)
def test_a_loss_without_weight_is_left_out(
    tmp_path: Path, train: Train, weight: str, figure: str
) -> None:
    train(tmp_path / "with", steps=1)
    train(tmp_path / "without", steps=1, **{weight: 0.0})
    ((given,), (left_out,)) = curves(tmp_path / "with"), curves(tmp_path / "without")
    assert figure in given
    assert given.keys() - left_out.keys() == {figure}
    assert {"D_0", "D_1", "G_0", "G_1", "KL"} <= left_out.keys()


def test_r1_is_added_every_so_many_steps_as_many_times(
    tmp_path: Path, train: Train, states: list[dict[str, Any]]
) -> None:
    """Adam's first moment is the gradient where betas[0] is 0, and nothing moves at rate 0."""
    still = {"betas": (0.0, 0.999), "learning_rate": 0.0, "discriminator_learning_rate": 0.0}

    def gradients(weight: float, steps: int, every: int = 4) -> list[Tensor]:
        states.clear()
        folder = tmp_path / f"{weight} {every}"
        train(folder, steps=steps, r1_weight=weight, r1_every=every, **still)
        moments = [state["D_adam"]["state"].values() for state in states]
        return [torch.cat([m["exp_avg"].flatten() for m in step]) for step in moments]

    without, single = gradients(0.0, 5), gradients(0.5, 5)
    (double,), (seldom,) = gradients(1.0, 1), gradients(0.5, 1, every=8)
    assert [torch.equal(*pair) for pair in zip(without, single, strict=True)] == [
        False, True, True, True, False,
    ]  # fmt: skip
    for twice in (double, seldom):
        torch.testing.assert_close(
            twice - without[0], 2 * (single[0] - without[0]), rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("form", ["paper", "authors"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_twenty_steps_stay_finite(tmp_path: Path, train: Train, form: str, precision: str) -> None:
    glam = train(tmp_path, steps=20, form=form, precision=precision, stream_weight=20.0)
    assert all(value.isfinite().all() for value in glam.state_dict().values())
    assert all(p.dtype == torch.float32 for p in glam.parameters())
    (point,) = curves(tmp_path)
    assert all(abs(value) < 1e3 for value in point.values())


def test_hundreds_of_steps_are_alike_in_every_precision(tmp_path: Path, train: Train) -> None:
    """fp16 is PyTorch's autocast on the CPU, where STREAM and DAMSM would take too long in it."""
    options = {"stream_weight": 0.0, "damsm_weight": 0.0, "r1_weight": 0.1, "batch_size": 4}
    points = {}
    for precision in ("fp32", "bf16", "fp16"):
        train(tmp_path / precision, steps=200, precision=precision, **options)
        points[precision] = curves(tmp_path / precision)
        checkpoint = load_checkpoint(tmp_path / precision)
        for part in ("glam", "D", "average"):
            assert all(tensor.isfinite().all() for tensor in checkpoint[part].values())
        assert ("loss scale of G" in checkpoint) == (precision == "fp16")
    first, *_, last = points["fp32"]
    assert last["D_1"] != pytest.approx(first["D_1"], rel=0.02)
    losses = [name for name in last if not name.startswith("gradient norm")]
    for precision in ("bf16", "fp16"):
        for name in losses:
            assert points[precision][-1][name] == pytest.approx(last[name], rel=0.1, abs=0.02), name


def test_a_run_in_fp16_resumes_with_its_scale(
    tmp_path: Path, train: Train, assert_same: Any
) -> None:
    options = {"precision": "fp16", "stream_weight": 0.0, "damsm_weight": 0.0}
    train(tmp_path / "whole", steps=5, **options)
    train(tmp_path / "resumed", steps=3, **options)
    train(tmp_path / "resumed", steps=5, **options)
    whole, resumed = (load_checkpoint(tmp_path / run) for run in ("whole", "resumed"))
    assert_same(resumed, whole)
    assert float(whole["loss scale of G"]["scale"]) != 2.0**16


def test_cnns_that_see_alike_see_an_image_once(
    tmp_path: Path, train: Train, pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained.stream.cnn.load_state_dict(pretrained.image_encoder.cnn.state_dict())
    seen: list[str] = []
    for name, cnn in (("DAMSM", pretrained.image_encoder.cnn), ("STREAM", pretrained.stream.cnn)):
        cnn.register_forward_hook(lambda *_, name=name: seen.append(name))
    # One step: after Adam's first, figures of float32 may differ in the fourth digit
    train(tmp_path / "once", steps=1)
    assert seen == ["DAMSM"]
    monkeypatch.setattr(mirrorgan, "_same", lambda *_: False)
    train(tmp_path / "twice", steps=1)
    assert sorted(seen) == ["DAMSM"] * 2 + ["STREAM"]
    once, twice = (
        json.loads((tmp_path / run / "curves.jsonl").read_text()) for run in ("once", "twice")
    )
    assert once == pytest.approx(twice, rel=1e-4)


def test_the_ablation_without_global_attention_trains(
    tmp_path: Path,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    examples: TrainingExamples,
    pretrained: Pretrained,
) -> None:
    for attention in ("none", "authors"):
        glam = train_mirrorgan(
            dataclasses.replace(config, sentence_attention=attention),
            settings,
            examples,
            *pretrained,
            tmp_path / attention,
            HERE,
        )
        assert (glam.F_att[0].V is None) == (attention == "none")


def test_whether_ends_count_is_a_setting_of_both_trainings(
    tmp_path: Path,
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    birds: CaptionedImages,
    vocabulary: Vocabulary,
    pretrained: Pretrained,
) -> None:
    examples = TrainingExamples(birds, vocabulary, 32, caption_length=18)  # so that ends fit
    for ends in (True, False):
        changed = dataclasses.replace(
            settings,
            stream=dataclasses.replace(settings.stream, ends=ends, steps=1),
            gan=dataclasses.replace(settings.gan, steps=1, last_stage_from=0),
        )
        words = len(pretrained.stem.embedding.weight)
        train_stream(config, changed, examples, words, tmp_path / f"stream {ends}", HERE)
        train_mirrorgan(config, changed, examples, *pretrained, tmp_path / f"gan {ends}", HERE)
    for stage, figure in (("stream", "cross_entropy"), ("gan", "stream")):
        (without,), (given,) = (curves(tmp_path / f"{stage} {ends}") for ends in (False, True))
        assert without[figure] != given[figure]
    with pytest.raises(InputError, match=r"stream\.ends False, now it is its default"):
        train_mirrorgan(config, settings, examples, *pretrained, tmp_path / "gan False", HERE)


# --- stage by stage ------------------------------------------------------------------------------


def of_last_stage(name: str) -> bool:
    return name.startswith(("F.1.", "F_att.0.", "G.1."))


def test_the_last_stage_joins_later(
    tmp_path: Path, train: Train, states: list[dict[str, Any]]
) -> None:
    train(tmp_path, steps=4, last_stage_from=2, sheet_every=2)
    initial, joining, joined = (states[i]["glam"] for i in (0, 1, 2))
    for name, value in joining.items():
        if value.is_floating_point():
            assert torch.equal(value, initial[name]) == of_last_stage(name), name
    for name, value in joined.items():
        assert not torch.equal(value, joining[name]), name
    D = [state["D"] for state in states]
    for name, value in D[1].items():
        assert torch.equal(value, D[0][name]) == name.startswith("1."), name
    assert not torch.equal(
        D[2]["1.unconditional_logit.weight"], D[1]["1.unconditional_logit.weight"]
    )
    points = [json.loads(row) for row in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert ["D_1" in point for point in points] == [False, False, True, True]
    # images of 16 pixels, then of 32: each is enlarged to 96, so whole blocks have one color
    for sheet, size in zip(sorted((tmp_path / "samples").iterdir()), (16, 32), strict=True):
        image = np.asarray(Image.open(sheet))[98 : 98 + 96, :96]
        blocks = image.reshape(size, 96 // size, size, 96 // size, 3)
        assert (blocks == blocks[:, :1, :, :1]).all()


def test_a_run_resumes_before_the_last_stage(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch, assert_same: Any
) -> None:
    train(tmp_path / "whole", last_stage_from=4)
    with monkeypatch.context() as patch:
        stop(patch, 2, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "resumed", last_stage_from=4)
    train(tmp_path / "resumed", last_stage_from=4)
    assert_same(load_checkpoint(tmp_path / "resumed"), load_checkpoint(tmp_path / "whole"))


def test_a_last_stage_that_never_trains_is_refused(tmp_path: Path, train: Train) -> None:
    with pytest.raises(InputError, match="last_stage_from is 6 of 6 steps"):
        train(tmp_path, last_stage_from=6)


# --- learning rates -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decay_steps", "paces"),
    [(4, [1, 1, 1, 3 / 4, 2 / 4, 1 / 4]), (7, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])],
)
def test_learning_rates_fall_to_zero(
    decay_steps: int,
    paces: list[float],
    tmp_path: Path,
    train: Train,
    states: list[dict[str, Any]],
) -> None:
    train(tmp_path, decay_steps=decay_steps, learning_rate=1e-3, discriminator_learning_rate=1e-4)
    for optimizer, rate in (("G_adam", 1e-3), ("D_adam", 1e-4)):
        rates = [state[optimizer]["param_groups"][0]["lr"] / rate for state in states]
        assert rates == pytest.approx(paces)


# --- the moving average ---------------------------------------------------------------------------


def test_the_average_is_of_parameters_and_statistics(
    tmp_path: Path, train: Train, states: list[dict[str, Any]]
) -> None:
    glam = train(tmp_path, steps=5, average_decay=0.28)
    assert not glam.training
    live = [state["glam"] for state in states]
    for name, value in glam.state_dict().items():
        if not value.is_floating_point():
            assert torch.equal(value, live[-1][name]), name
            continue
        expected = live[0][name].double()
        for count, state in enumerate(live[1:], start=1):
            decay = min(0.28, (1 + count) / (10 + count))  # 2/11, 3/12, 0.28, 0.28
            expected = decay * expected + (1 - decay) * state[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)
        if "running" in name:
            assert not torch.equal(value, live[-1][name]), name
    assert int(glam.state_dict()["F.0.norm.num_batches_tracked"]) == 5


def test_the_average_is_what_is_returned_and_kept(
    tmp_path: Path, train: Train, assert_same: Any
) -> None:
    glam = train(tmp_path)
    assert_same(dict(load_checkpoint(tmp_path)["average"]), dict(glam.state_dict()))


# --- sheets ---------------------------------------------------------------------------------------


def test_sheets_of_samples(
    tmp_path: Path, train: Train, examples: TrainingExamples, config: MirrorGANConfig
) -> None:
    train(tmp_path, sheet_every=4)
    sheets = sorted((tmp_path / "samples").iterdir())
    assert [sheet.name for sheet in sheets] == ["0000004.png", "0000006.png"]
    with Image.open(sheets[0]) as sheet:
        pixels = np.asarray(sheet)
    # 8 captions across, one real picture and 4 noises down, 2 pixels apart, and the captions
    assert pixels.shape[1] == 8 * 96 + 7 * 2
    rows, text = pixels[: 5 * 98 - 2], pixels[5 * 98 - 2 :]
    assert (text == 255).mean() > 0.5
    assert (text < 100).any()
    assert len(text) % 12 == 0
    examples.set_epoch(0)
    for i in range(8):
        real = examples[i]["image"].permute(1, 2, 0).numpy()
        shown = rows[:96, i * 98 : i * 98 + 96]
        assert np.array_equal(shown, real.repeat(3, axis=0).repeat(3, axis=1))


def test_the_curves_and_tensorboard_have_what_one_watches(tmp_path: Path, train: Train) -> None:
    train(tmp_path, steps=4, sheet_every=2, decay_steps=4)
    (point,) = curves(tmp_path)
    assert {"gradient norm of G", "gradient norm of D", "D_1(real)", "D_1(generated)"} <= set(point)
    assert point["learning rate of G"] == pytest.approx(2e-4 / 4)
    assert 0 < point["D_0(real)"] < 1
    assert point["gradient norm of D"] > 0
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {*point} - {"step"} | {"images per second"}
    assert set(events.Tags()["images"]) == {"samples", "attention"}
    assert events.Scalars("images per second")[0].value > 0


def test_a_run_says_what_it_trains(
    tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, steps=1, quiet=False)
    printed = capsys.readouterr().err
    assert "12 pictures, " in printed
    assert "G 0." in printed
    assert "cpu, fp32, 1 process; steps 0 to 1 of 5 images" in printed
    assert "step 1 of 1, " in printed
    assert "images/s" in printed


def test_the_time_that_is_left_knows_of_the_last_stage(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals: list[float] = []
    reset = run_module.tqdm.reset
    monkeypatch.setattr(
        run_module.tqdm, "reset", lambda self, total: (totals.append(total), reset(self, total))
    )
    train(tmp_path, steps=6, last_stage_from=4)
    assert totals == [pytest.approx(4 * 0.4 + 2)]


def test_watching_changes_nothing(
    tmp_path: Path, train: Train, write_every: Callable[[int, int], None], assert_same: Any
) -> None:
    """Whether points, sheets and checkpoints are written often or never."""
    seldom = train(tmp_path / "seldom")
    write_every(1, 1)
    often = train(tmp_path / "often", sheet_every=1)
    assert_same(often.state_dict(), seldom.state_dict())


def test_the_pretrained_networks_evaluate(
    tmp_path: Path, train: Train, pretrained: Pretrained
) -> None:
    train(tmp_path, steps=1)
    modules: list[nn.Module] = [pretrained.stem, pretrained.image_encoder, pretrained.stream.cnn]
    assert not any(module.training for network in modules for module in network.modules())
