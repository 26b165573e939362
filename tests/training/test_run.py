"""A training run: the batches of its steps, checkpoints, curves, and how it ends and resumes."""

import json
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import Dataset

from mirrorgan_fast.data.examples import TrainingExamples
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.interrupts import Terminated
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.training.batches import Batches, check_batch, load_batches
from mirrorgan_fast.training.checkpoint import load_checkpoint
from mirrorgan_fast.training.run import Run, Unsaid, dependencies
from mirrorgan_fast.training.settings import MirrorGANSettings, MirrorGANTrainingSettings

from .runs import HERE

SETTINGS = {"learning_rate": 0.5, "betas": (0.5, 0.999), "form": "paper"}


def seen(run: Run, examples: TrainingExamples, *, seed: int = 0, workers: int = 0) -> list[Any]:
    """Return all that depends on chance in each of the run's steps."""
    steps, execution = [], replace(HERE, workers=workers)
    with run:
        for step, epoch, batch in run.batches(Batches(examples, 5, seed, execution)):
            noise = torch.rand(3)
            torch.rand(step + 1)  # what a step draws must not reach the next one
            steps.append((step, epoch, batch, noise))
    return steps


def stopped_at(step: int, folder: Path) -> Run:
    """Return a run in ``folder`` that resumes after ``step`` steps."""
    with Run(folder, 100, SETTINGS, quiet=True) as run:
        run.save(step - 1, {})
    return Run(folder, 7, SETTINGS, quiet=True)


def points(folder: Path) -> list[dict[str, float]]:
    return [json.loads(row) for row in (folder / "curves.jsonl").read_text().splitlines()]


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [1, 2, 3, 6])
def test_a_resumed_run_has_the_same_batches(
    tmp_path: Path, examples: TrainingExamples, assert_same: Any, done: int
) -> None:
    whole = seen(Run(tmp_path / "whole", 7, SETTINGS, quiet=True), examples)
    assert [step for step, *_ in whole] == list(range(7))
    assert_same(seen(stopped_at(done, tmp_path / "resumed"), examples), whole[done:])


def test_workers_change_nothing(
    tmp_path: Path, examples: TrainingExamples, assert_same: Any
) -> None:
    alone = seen(Run(tmp_path / "alone", 4, SETTINGS, quiet=True), examples)
    helped = seen(Run(tmp_path / "helped", 4, SETTINGS, quiet=True), examples, workers=2)
    assert_same(helped, alone)


def test_every_step_is_another(tmp_path: Path, examples: TrainingExamples) -> None:
    steps = seen(Run(tmp_path, 6, SETTINGS, quiet=True), examples)
    steps += seen(Run(tmp_path, 6, SETTINGS, quiet=True), examples, seed=1)
    assert len({tuple(batch["index"].tolist()) for *_, batch, _ in steps}) == len(steps)
    assert len({tuple(noise.tolist()) for *_, noise in steps}) == len(steps)


def test_an_epoch_shows_each_example_once(tmp_path: Path, examples: TrainingExamples) -> None:
    steps = seen(Run(tmp_path, 7, SETTINGS, quiet=True), examples)
    assert [epoch for _, epoch, *_ in steps] == [0, 0, 1, 1, 2, 2, 3]
    for epoch in range(3):
        shown = torch.cat([batch["index"] for _, of, batch, _ in steps if of == epoch])
        assert len(shown) == len(set(shown.tolist())) == 10  # of 12, in batches of 5


def test_a_batch_has_what_training_needs(tmp_path: Path, examples: TrainingExamples) -> None:
    ((_, _, batch, _),) = seen(Run(tmp_path, 1, SETTINGS, quiet=True), examples)
    assert batch["image"].shape == (5, 3, 32, 32)
    assert batch["tokens"].shape == (5, 9)
    for name in ("length", "label", "index"):
        assert batch[name].shape == (5,)
        assert batch[name].dtype == torch.int64


def test_fewer_images_than_a_batch_are_refused(examples: TrainingExamples) -> None:
    with pytest.raises(InputError, match=r"12 .* 13"):
        Batches(examples, 13, 0, HERE)
    ((_, _, batch),) = Batches(examples, 12, 0, HERE).between(0, 1)
    assert len(batch["index"]) == 12


@pytest.mark.parametrize("batch_size", [1, 2, 48])
def test_one_image_is_refused_without_advice_that_would_be_refused(batch_size: int) -> None:
    with pytest.raises(InputError, match=r"^1 training image: .*; use 2 or more$"):
        check_batch(1, batch_size)


def test_a_finished_run_has_no_more_steps(tmp_path: Path, examples: TrainingExamples) -> None:
    assert seen(stopped_at(7, tmp_path), examples) == []
    assert seen(stopped_at(50, tmp_path), examples) == []


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_whole_state(tmp_path: Path, assert_same: Any) -> None:
    state = {"model": {"weight": torch.randn(3, 4)}, "adam": {"step": 3, "groups": [{"lr": 0.1}]}}
    with Run(tmp_path / "a" / "b", 10, SETTINGS, quiet=True) as run:
        assert run.checkpoint is None
        assert run.first_step == 0
        run.save(6, state)
    with Run(tmp_path / "a" / "b", 10, SETTINGS, quiet=True) as again:
        assert again.first_step == 7
        for name, value in state.items():
            assert_same(again.checkpoint[name], value)
        assert_same(load_checkpoint(tmp_path / "a" / "b"), again.checkpoint)


def test_a_checkpoint_survives_a_failed_successor(tmp_path: Path) -> None:
    with Run(tmp_path, 10, SETTINGS, quiet=True) as run:
        run.save(3, {})
        with pytest.raises((AttributeError, pickle.PicklingError)):
            run.save(4, {"model": lambda: None})
    assert load_checkpoint(tmp_path)["step"] == 4
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("changed", "name", "values"),
    [
        ({"learning_rate": 0.25}, "learning_rate", ("0.5", "0.25")),
        ({"betas": (0.9, 0.999)}, "betas", ("(0.5, 0.999)", "(0.9, 0.999)")),
        ({"form": "authors"}, "form", ("'paper'", "'authors'")),
        ({"seed": 3}, "seed", ("its default", "3")),  # it was not there
    ],
)
def test_other_settings_are_refused_by_name(
    tmp_path: Path, changed: dict[str, Any], name: str, values: tuple[str, str]
) -> None:
    with Run(tmp_path, 10, SETTINGS, quiet=True) as run:
        run.save(3, {})
    with pytest.raises(InputError, match=name) as error:
        Run(tmp_path, 10, {**SETTINGS, **changed}, quiet=True).__enter__()
    for text in (str(tmp_path), *values):
        assert text in str(error.value)


def test_a_setting_without_end_is_told_briefly(tmp_path: Path) -> None:
    with Run(tmp_path, 10, {**SETTINGS, "x" * 10_000: "y" * 10_000}, quiet=True) as run:
        run.save(3, {})
    with pytest.raises(InputError, match="was made with") as error:
        Run(tmp_path, 10, SETTINGS, quiet=True).__enter__()
    assert len(str(error.value)) < 1000


def test_fewer_settings_are_refused(tmp_path: Path) -> None:
    with Run(tmp_path, 10, SETTINGS, quiet=True) as run:
        run.save(3, {})
    with pytest.raises(InputError, match="form"):
        Run(
            tmp_path, 10, {k: v for k, v in SETTINGS.items() if k != "form"}, quiet=True
        ).__enter__()


def test_the_number_of_steps_may_change(tmp_path: Path) -> None:
    with Run(tmp_path, 10, SETTINGS, quiet=True) as run:
        run.save(3, {})
    for steps in (5, 20):
        with Run(tmp_path, steps, SETTINGS, quiet=True) as run:
            assert run.first_step == 4


def test_without_a_checkpoint_one_is_told_to_train(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train that part first") as error:
        load_checkpoint(tmp_path / "stem")
    assert str(tmp_path / "stem") in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"not a checkpoint", b"\x80\x02garbage", b"\x80\x04\x95" * 9, bytes(range(256))],
    ids=str,
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        Run(tmp_path, 10, SETTINGS, quiet=True).__enter__()


def test_another_programs_checkpoint_is_refused(tmp_path: Path) -> None:
    for content in ({"model": {}}, [1, 2], torch.ones(3)):  # of types that are let through
        torch.save(content, tmp_path / "checkpoint.pt")
        with pytest.raises(InputError, match=r"checkpoint\.pt"):
            Run(tmp_path, 10, SETTINGS, quiet=True).__enter__()


@pytest.mark.filterwarnings("ignore")  # torch's own, on what it finds in a damaged file
def test_a_damaged_checkpoint_is_refused_or_read(tmp_path: Path) -> None:
    """Whatever byte is wrong, and wherever the file ends, there is no other error."""
    with Run(tmp_path, 10, SETTINGS, quiet=True) as run:
        run.save(3, {"model": {"weight": torch.randn(3, 4)}, "steps": {0: {"step": 1.0}}})
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    rng = random.Random(0)
    for length in [rng.randrange(len(content)) for _ in range(40)]:
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="damaged"):
            load_checkpoint(tmp_path)
    refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            load_checkpoint(tmp_path)
        except InputError:
            refused += 1
    assert refused > 50


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="file"), Run(folder, 1, SETTINGS, quiet=True):
            pass


def test_a_forked_worker_does_not_hold_the_folder(tmp_path: Path) -> None:
    """One of a DataLoader lives for seconds after its trainer was killed."""
    fork = multiprocessing.get_context("fork")
    started = fork.Event()

    def work() -> None:
        started.set()
        time.sleep(60)

    with Run(tmp_path, 7, SETTINGS, quiet=True):
        worker = fork.Process(target=work)
        worker.start()
    try:
        assert started.wait(30)
        with Run(tmp_path, 7, SETTINGS, quiet=True):
            assert worker.is_alive()
    finally:
        worker.kill()
        worker.join()


def test_what_a_kill_left_of_a_checkpoint_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt").write_bytes(b"half of it")
    with Run(tmp_path, 7, SETTINGS, quiet=True) as run:
        run.save(0, {"weights": torch.ones(3)})
    assert not (tmp_path / ".checkpoint.pt").exists()
    assert load_checkpoint(tmp_path)["step"] == 1


@pytest.mark.parametrize("state", [{}, {"model": {"weight": torch.ones(3)}}])
def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path: Path, state: dict[str, Any]) -> None:
    with Run(tmp_path, 7, SETTINGS, quiet=True) as run:
        run.save(0, state)
    with (
        Run(tmp_path, 7, SETTINGS, quiet=True) as run,
        pytest.raises(InputError, match=r"checkpoint\.pt: its model"),
    ):
        run.restore({"model": torch.nn.Linear(2, 2)})


def test_what_is_no_point_of_a_curve_is_left_out(tmp_path: Path) -> None:
    rows = [b'{"step": 1, "loss": 2.0}', b"{", b"7", b"{}", b'{"step": "1"}', b'{"step": true}']
    rows += [b'{"step": 1, "loss": "\xff"}', b'{"step": NaN}', b"[" * 10_000, b"\x00" * 70_000]
    rows += [b'{"step": 2, "loss": 1.0}']
    with Run(tmp_path, 7, SETTINGS, quiet=True) as run:
        run.save(1, {})
    (tmp_path / "curves.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    with Run(tmp_path, 7, SETTINGS, quiet=True):
        assert points(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


def test_curves_without_end_are_read_to_where_curves_end(tmp_path: Path) -> None:
    with Run(tmp_path, 7, SETTINGS, quiet=True) as run:
        run.save(0, {})
    with (tmp_path / "curves.jsonl").open("wb") as file:
        file.write(b'{"step": 1, "loss": 2.0}\n')
        file.truncate(2**40)  # takes nothing on the disk
    with Run(tmp_path, 7, SETTINGS, quiet=True):
        assert points(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_a_curve_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    with Run(tmp_path, 7, SETTINGS, quiet=True) as run:
        (tmp_path / "curves.jsonl").mkdir()
        with pytest.raises(InputError, match=r"curves\.jsonl: cannot be written"):
            run.record(0, {"loss": 1.0})


def test_what_is_elsewhere_is_not_written(tmp_path: Path) -> None:
    """Links that somebody has put into a run's folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("keep")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("curves.jsonl", ".checkpoint.pt"):
        (run / name).symlink_to(elsewhere)
    with Run(run, 7, SETTINGS, quiet=True) as begun:
        begun.log(6, {"loss": 1.0})
        begun.save(6, {})
    assert elsewhere.read_text() == "keep"
    assert points(run) == [{"step": 7, "loss": 1.0}]
    (run / "lock").unlink()
    (run / "lock").symlink_to(elsewhere)
    with pytest.raises(InputError, match="lock: is a symbolic link"), Run(run, 7, SETTINGS):
        pass
    assert elsewhere.read_text() == "keep"


def test_a_pipe_among_the_files_is_refused(tmp_path: Path) -> None:
    for name in ("lock", "curves.jsonl"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match=name), Run(tmp_path, 7, SETTINGS, quiet=True):
            pass
        (tmp_path / name).unlink()


def test_settings_that_are_not_given_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    def run(**said: Any) -> Run:
        return Run(tmp_path, 7, {**SETTINGS, "weights": Unsaid(None), **said}, quiet=True)

    with run() as begun:
        assert begun.settings["weights"] is None
    with run(weights="abc") as begun:
        begun.save(0, {})
    with run() as begun:
        assert begun.settings["weights"] == "abc"
    with pytest.raises(InputError, match="was made with weights 'abc', now it is 'other'"):
        run(weights="other").__enter__()


@pytest.mark.parametrize("value", [{}, [], 5, "fp8", True, None, torch.ones(2)])
def test_a_checkpoint_cannot_bring_a_setting_of_another_kind(tmp_path: Path, value: Any) -> None:
    with Run(tmp_path, 7, {"precision": value}, quiet=True) as begun:
        begun.save(0, {})
    for choices in (("bf16", "fp32"), (False,)):
        with pytest.raises(InputError, match=r"its precision is .*, which no run has"):
            Run(tmp_path, 7, {"precision": Unsaid("fp32", choices)}, quiet=True).__enter__()
    run = Run(tmp_path, 7, {"precision": Unsaid("fp32")}, quiet=True)
    if value is None or isinstance(value, str):
        with run:
            assert run.settings["precision"] == value
    else:
        with pytest.raises(InputError, match="which no run has"):
            run.__enter__()


def test_how_often_it_saves_and_logs_may_change(tmp_path: Path, examples: TrainingExamples) -> None:
    def run(folder: str, steps: int, **often: int) -> None:
        with Run(tmp_path / folder, steps, SETTINGS, quiet=True, **often) as begun:
            for step, _, _ in begun.batches(Batches(examples, 5, 0, HERE)):
                begun.log(step, {"loss": float(step)})
                if begun.saving(step):
                    begun.save(step, {})

    run("a", 4, save_every=3, log_every=2)
    run("a", 9, save_every=1, log_every=3)
    assert [point["step"] for point in points(tmp_path / "a")] == [2, 4, 6, 9]
    assert points(tmp_path / "a")[2] == {"step": 6, "loss": 4.5}


# --- shared memory --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "error"),
    [
        (
            "torch.utils.data.DataLoader.__iter__",
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space"),
        ),
        (
            "torch.utils.data.DataLoader.__iter__",
            RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
                "dataloader's workers are out of shared memory. Please try to raise your limit."
            ),
        ),
        ("multiprocessing.Queue", OSError(28, "No space left on device")),
        ("multiprocessing.Queue", PermissionError(13, "Permission denied")),
    ],
)
def test_no_shared_memory_is_said_with_what_to_do(
    where: str, error: Exception, examples: TrainingExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(where, fail)
    with pytest.raises(InputError, match=r"make /dev/shm larger .* --workers 0"):
        list(load_batches(examples, 2))


def test_a_full_shared_memory_in_truth(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        "from torch.utils.data import Dataset\n"
        "from mirrorgan_fast.errors import InputError\n"
        "from mirrorgan_fast.training.batches import load_batches\n"
        "class Zeros(Dataset):\n"
        "    def __len__(self): return 8\n"
        "    def __getitem__(self, index): return torch.zeros(100_000)\n"
        "print(len(list(load_batches(Zeros(), 0))))\n"
        "try: list(load_batches(Zeros(), 2))\n"
        "except InputError as error: print(error)\n",
        encoding="utf-8",
    )
    for options in ("size=4k", "size=400k", "ro"):
        mount = f"mount -t tmpfs -o {options} tmpfs /dev/shm && exec {sys.executable} {script}"
        told = subprocess.run(
            ["unshare", "-m", "sh", "-c", mount], capture_output=True, text=True, check=False
        )
        if "mount" in told.stderr or "unshare" in told.stderr:
            pytest.skip("may not make a mount of its own")
        assert told.stderr == ""
        count, refused = told.stdout.splitlines()
        assert count == "8"
        assert "cannot send pictures through shared memory" in refused


def test_an_error_of_a_worker_is_not_one_of_memory(examples: TrainingExamples) -> None:
    class Failing(Dataset[int]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            if index == 2:
                raise InputError("line 3:\nno picture")
            return index

    with pytest.raises(InputError, match=r"^line 3:\\nno picture$"):
        list(load_batches(Failing(), 1))  # type: ignore[arg-type]


def test_two_cannot_train_in_one_folder(tmp_path: Path) -> None:
    with Run(tmp_path, 1, SETTINGS, quiet=True):
        again = Run(tmp_path, 1, SETTINGS, quiet=True)
        with pytest.raises(InputError, match="another process trains there"), again:
            pass
    with again:
        pass


def test_a_run_resumes_from_the_checkpoint_that_is_there_when_it_has_the_lock(
    tmp_path: Path,
) -> None:
    with Run(tmp_path, 10, SETTINGS, quiet=True) as first:
        first.save(3, {})
        second = Run(tmp_path, 10, SETTINGS, quiet=True)
        first.save(6, {})
    with second:
        assert second.first_step == 7


def test_another_version_of_the_training_is_refused_in_one_line(tmp_path: Path) -> None:
    with Run(tmp_path, 10, SETTINGS, quiet=True) as run:
        run.save(3, {})
    with pytest.raises(InputError, match=r"version 1 of the training, this is version 9") as told:
        Run(tmp_path, 10, {**SETTINGS, "version": 9}, quiet=True).__enter__()
    assert "\n" not in str(told.value)


def test_a_field_that_is_added_later_changes_no_settings(
    config: MirrorGANConfig,
    settings: MirrorGANTrainingSettings,
    examples: TrainingExamples,
    device: torch.device,
) -> None:
    @dataclass(frozen=True)
    class LaterConfig(MirrorGANConfig):
        added: int = 3

    @dataclass(frozen=True)
    class LaterSettings(MirrorGANSettings):
        added_too: float = 0.5

    def needs(of_config: MirrorGANConfig, options: MirrorGANSettings) -> dict[str, Any]:
        return dependencies(of_config, settings, options, examples.digest(), device)

    now = needs(config, settings.gan)
    later = LaterConfig(**asdict(config)), LaterSettings(**asdict(settings.gan))
    assert needs(*later) == now
    assert needs(replace(later[0], added=4), later[1]) != now
    assert needs(later[0], replace(later[1], added_too=0.0)) != now


# --- curves ---------------------------------------------------------------------------------------


def test_a_point_is_the_mean_of_the_steps_since_the_last(tmp_path: Path) -> None:
    with Run(tmp_path, 8, SETTINGS, log_every=3, quiet=True) as run:
        for step in range(8):
            run.log(step, {"loss": torch.tensor(float(step)), "rate": 1 / 3})
    assert points(tmp_path) == [
        {"step": 3, "loss": 1.0, "rate": 0.33333},
        {"step": 6, "loss": 4.0, "rate": 0.33333},
        {"step": 8, "loss": 6.5, "rate": 0.33333},
    ]


def test_a_figure_of_some_steps_has_the_mean_of_these(tmp_path: Path) -> None:
    for stop in (6, 8):  # also if the run is resumed between two points
        with Run(tmp_path, 8, SETTINGS, log_every=4, quiet=True) as run:
            for step in range(run.first_step, stop):
                run.log(step, {"D": 1.0} | ({"G": float(step)} if step >= 5 else {}))
            run.save(stop - 1, {})
    assert points(tmp_path) == [{"step": 4, "D": 1.0}, {"step": 8, "D": 1.0, "G": 6.0}]


def test_tensorboard_has_the_same_points(tmp_path: Path) -> None:
    with Run(tmp_path, 4, SETTINGS, log_every=2, quiet=True) as run:
        for step in range(4):
            run.log(step, {"loss": step * 1.5})
    events = EventAccumulator(str(tmp_path)).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(point["step"], point["loss"]) for point in points(tmp_path)]


def test_what_a_killed_run_wrote_after_its_checkpoint_is_forgotten(tmp_path: Path) -> None:
    with Run(tmp_path, 10, SETTINGS, log_every=1, quiet=True) as run:
        for step in range(6):
            run.log(step, {"loss": 1.0})
            if step == 3:
                run.save(step, {})
    with (tmp_path / "curves.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # it was killed while it wrote
    with Run(tmp_path, 7, SETTINGS, log_every=1, quiet=True) as run:
        for step in range(run.first_step, 7):
            run.log(step, {"loss": 2.0})
    assert [(point["step"], point["loss"]) for point in points(tmp_path)] == [
        *((step, 1.0) for step in (1, 2, 3, 4)),
        *((step, 2.0) for step in (5, 6, 7)),
    ]


def test_a_run_that_was_stopped_between_two_points_has_the_same_curves(tmp_path: Path) -> None:
    for folder, stops in (("whole", [8]), ("parts", [1, 5, 8])):
        for stop in stops:
            with Run(tmp_path / folder, 8, SETTINGS, log_every=3, quiet=True) as run:
                for step in range(run.first_step, stop):
                    run.log(step, {"loss": 1.1**step})
                run.save(stop - 1, {})
    assert points(tmp_path / "parts") == points(tmp_path / "whole")


def test_a_run_without_checkpoint_starts_new_curves(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with Run(tmp_path, 3, SETTINGS, log_every=1, quiet=True) as run:
            run.log(0, {"loss": value})
    assert points(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_progress_is_shown_unless_quiet(
    tmp_path: Path, examples: TrainingExamples, capsys: pytest.CaptureFixture[str]
) -> None:
    seen(Run(tmp_path / "stem", 3, SETTINGS, quiet=True), examples)
    assert capsys.readouterr() == ("", "")
    seen(Run(tmp_path / "stem", 3, SETTINGS), examples)
    shown = capsys.readouterr().err
    assert "stem" in shown
    assert "step 3 of 3" in shown


def test_a_long_run_says_at_the_start_how_long_it_will_take(
    tmp_path: Path, examples: TrainingExamples, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run(tmp_path, 10_000, SETTINGS) as run:
        # the second half of the steps takes three times as long
        work = lambda steps: steps + 2 * max(0, steps - 5_000)  # noqa: E731
        steps = run.batches(Batches(examples, 5, 0, HERE), work)
        for step, _, _ in steps:
            time.sleep(0.05)
            if step == 13:
                break
    (said,) = re.findall(r"about (?:(\d+) h )?(\d+) min left", capsys.readouterr().err)
    minutes = 60 * int(said[0] or 0) + int(said[1])
    assert 0.9 * 0.05 * 20_000 / 60 < minutes < 5 * 0.05 * 20_000 / 60


def test_a_checkpoint_of_very_many_steps_takes_no_longer(
    tmp_path: Path, examples: TrainingExamples
) -> None:
    with Run(tmp_path, 5, SETTINGS, quiet=True) as run:
        run.save(10**11, {})
    start = time.perf_counter()
    assert seen(Run(tmp_path, 5, SETTINGS, quiet=True), examples) == []
    assert time.perf_counter() - start < 10


def test_the_time_left_is_judged_by_the_steps_that_are_taken_now(
    tmp_path: Path, examples: TrainingExamples, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run(tmp_path, 1_000, SETTINGS, quiet=True) as run:
        run.save(799, {})
    with Run(tmp_path, 1_000, SETTINGS) as run:
        for step, _, _ in run.batches(Batches(examples, 5, 0, HERE)):
            time.sleep(0.15)
            if step == 803:
                break
    shown = capsys.readouterr().err
    assert "<-" not in shown
    minutes, seconds = re.findall(r"<(\d\d):(\d\d), step 803 of 1,000", shown)[-1]
    assert 60 * int(minutes) + int(seconds) >= 197 * 0.15 - 1


@pytest.mark.parametrize(("threads", "said"), [(2, True), (1, False), (None, False)])
def test_shared_cores_are_noticed(
    tmp_path: Path,
    examples: TrainingExamples,
    capsys: pytest.CaptureFixture[str],
    threads: int | None,
    said: bool,
) -> None:
    """A process that sleeps gets as little of the cores as one that waits for them."""
    with Run(tmp_path, 20, SETTINGS) as run:
        for _ in run.batches(Batches(examples, 5, 0, HERE), threads=threads):
            time.sleep(0.02)
    shown = capsys.readouterr().err
    assert shown.count("OMP_NUM_THREADS=1 is probably faster") == said


def test_cores_that_are_not_shared_are_no_concern(
    tmp_path: Path, examples: TrainingExamples, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run(tmp_path, 20, SETTINGS) as run:
        for number, _ in enumerate(run.batches(Batches(examples, 5, 0, HERE), threads=2)):
            if number == 2:
                run._say_if_cores_are_shared(2, computed=1.6, passed=1.0)
                break
    assert "OMP_NUM_THREADS" not in capsys.readouterr().err


# --- the end of a run -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "every", "due"),
    [(0, 1, True), (1, 3, False), (2, 3, True), (9, 4, True), (8, 4, False), (10, 4, False)],
)
def test_due_every_so_many_steps_and_at_the_end(
    tmp_path: Path, step: int, every: int, due: bool
) -> None:
    run = Run(tmp_path, 10, SETTINGS, save_every=every, quiet=True)
    assert run.due(step, every) is due
    assert run.saving(step) is due


def trained(
    run: Run,
    examples: TrainingExamples,
    interrupt_in: int,
    number: signal.Signals = signal.SIGINT,
    *,
    late: bool,
) -> None:
    """Run as the training loops do, with a signal in one step before or after its checkpoint."""
    with run:
        for step, _, _ in run.batches(Batches(examples, 5, 0, HERE)):
            if step == interrupt_in and not late:
                signal.raise_signal(number)
            run.log(step, {"loss": 1.0})
            if run.saving(step):
                run.save(step, {})
            if step == interrupt_in and late:
                signal.raise_signal(number)


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_ctrl_c_and_sigterm_end_the_run_after_a_checkpoint(
    tmp_path: Path,
    examples: TrainingExamples,
    step: int,
    number: signal.Signals,
    raised: type[BaseException],
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as ended:
        trained(Run(tmp_path, 9, SETTINGS, quiet=True), examples, step, number, late=False)
    assert ended.type is raised
    assert signal.getsignal(number) is before
    assert load_checkpoint(tmp_path)["step"] == step + 1


def test_sigterm_to_all_processes_loses_no_step(tmp_path: Path) -> None:
    """As Slurm sends it: to the processes that read images, too, which must not end in a step."""
    script = tmp_path / "script.py"
    script.write_text(_TRAINS_WITH_WORKERS, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, script, tmp_path / "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == b"step 5\n":
            os.killpg(process.pid, signal.SIGTERM)
            break
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    assert load_checkpoint(tmp_path / "run")["step"] >= 6


_TRAINS_WITH_WORKERS = """
import sys, time
from pathlib import Path
import torch
from torch.utils.data import Dataset
from mirrorgan_fast.interrupts import Terminated
from mirrorgan_fast.training.batches import Batches
from mirrorgan_fast.training.execution import Execution
from mirrorgan_fast.training.run import Run

class Numbers(Dataset):
    def __len__(self): return 400
    def __getitem__(self, index): return {"index": torch.tensor(index), "length": 1}
    def set_epoch(self, epoch): pass

try:
    with Run(Path(sys.argv[1]), 100, {}, quiet=True) as run:
        execution = Execution(torch.device("cpu"), workers=2)
        for step, _, _ in run.batches(Batches(Numbers(), 4, 0, execution)):
            print("step", step, flush=True)
            time.sleep(0.05)
            if run.saving(step):
                run.save(step, {})
except Terminated:
    sys.exit(143)
"""


def test_ctrl_c_just_after_a_checkpoint_was_due_loses_nothing(
    tmp_path: Path, examples: TrainingExamples
) -> None:
    """As while a sheet of samples is written, which takes long: the next step ends the run."""
    with pytest.raises(KeyboardInterrupt):
        trained(Run(tmp_path, 9, SETTINGS, quiet=True), examples, 3, late=True)
    assert load_checkpoint(tmp_path)["step"] == 5


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    with Run(tmp_path, 9, SETTINGS, quiet=True) as run:
        signal.raise_signal(signal.SIGINT)
        assert run.saving(0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_error_gives_ctrl_c_back(tmp_path: Path) -> None:
    def fail() -> None:
        with Run(tmp_path, 9, SETTINGS, quiet=True):
            assert signal.getsignal(signal.SIGINT) is not before
            raise ZeroDivisionError

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError):
        fail()
    assert signal.getsignal(signal.SIGINT) is before
