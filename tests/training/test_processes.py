"""Training by several processes: as by one with synced statistics, and what they do together."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mirrorgan_fast.data.painted_birds.data_set import export_image_folder
from mirrorgan_fast.training.checkpoint import load_checkpoint
from mirrorgan_fast.training.precision import Precision

from .runs import curves
from .together import How, together

STAGES = (
    "cnn",
    "stem",
    "stream",
    "frozen",
    "gan",
    "paper",
    "projected",
    "stackgan-v2",
    "stackgan",
    "gan-int-cls",
    "cyclegan/gan",
    "gawwn",
)
TRAINED = {1: STAGES, 2: STAGES, 4: ("stem", "frozen", "gan")}


def tensors(state: Any, place: str = "") -> dict[str, Tensor]:
    """Return all tensors of nested containers by their place."""
    if isinstance(state, Tensor):
        return {place: state}
    if not isinstance(state, dict | list | tuple):
        return {}
    entries = state.items() if isinstance(state, dict) else enumerate(state)
    found: dict[str, Tensor] = {}
    for name, value in entries:
        found |= tensors(value, f"{place}/{name}")
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folders of all stages, trained by 1, 2 and 4 processes."""
    folders = {count: tmp_path_factory.mktemp(f"by_{count}") for count in (1, 2, 4)}
    for count, folder in folders.items():
        assert together(count, folder, *TRAINED[count]) == [0] * count
    return folders


@pytest.mark.parametrize(
    ("count", "stage"), [(count, stage) for count in (2, 4) for stage in TRAINED[count]]
)
def test_several_processes_train_as_one_does(
    trained: dict[int, Path], stage: str, count: int
) -> None:
    alone, shared = (tensors(load_checkpoint(trained[n] / stage)) for n in (1, count))
    assert alone.keys() == shared.keys()
    for name, tensor in alone.items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float64 or tensor.dim() == 0, name
        torch.testing.assert_close(
            shared[name], tensor, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: name + text
        )
    points = [curves(trained[n] / stage) for n in (1, count)]
    assert len(points[0]) == 3
    for one, other in zip(*points, strict=True):
        assert other == pytest.approx(one, abs=2e-5)  # they are rounded to five places


@pytest.mark.parametrize("stage", ["stem", "gan"])
def test_a_run_goes_on_with_another_number_of_processes(
    trained: dict[int, Path], tmp_path: Path, stage: str
) -> None:
    for count, steps in ((2, 2), (1, 3)):
        assert together(count, tmp_path, stage, how=How(steps=steps)) == [0] * count
    assert load_checkpoint(tmp_path / stage)["step"] == 3
    whole, resumed = (tensors(load_checkpoint(folder / stage)) for folder in (trained[1], tmp_path))
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-9, atol=1e-9)


def test_with_statistics_of_their_own_they_train_otherwise(
    trained: dict[int, Path], tmp_path: Path, assert_same: Any
) -> None:
    assert together(2, tmp_path, "gan", how=How(synced=False)) == [0, 0]
    synced, local = (load_checkpoint(folder / "gan") for folder in (trained[2], tmp_path))
    assert all(tensor.isfinite().all() for tensor in tensors(local).values())
    different = [
        name
        for name, tensor in tensors(synced["glam"]).items()
        if not torch.allclose(tensor, tensors(local["glam"])[name], rtol=1e-6)
    ]
    assert len(different) > len(synced["glam"]) / 2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_several_processes_train_in_narrow_precisions(tmp_path: Path, precision: Precision) -> None:
    how = How(steps=1, precision=precision)
    assert together(2, tmp_path, *STAGES, how=how) == [0, 0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_resumes_to_the_same_bits(
    trained: dict[int, Path], tmp_path: Path, rank: int, assert_same: Any
) -> None:
    codes = together(2, tmp_path, "gan", how=How(number=signal.SIGKILL, rank=rank, at=2))
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 1
    printed = (tmp_path / f"error_{1 - rank}").read_text()
    assert printed.startswith("OtherProcessError: another process of the run has ended")
    assert load_checkpoint(tmp_path / "gan")["step"] == 2
    assert together(2, tmp_path, "gan") == [0, 0]
    resumed, whole = (load_checkpoint(folder / "gan") for folder in (tmp_path, trained[2]))
    assert_same(resumed, whole)
    assert curves(tmp_path / "gan") == curves(trained[2] / "gan")


def test_sigterm_to_one_process_stops_all_after_a_checkpoint(
    trained: dict[int, Path], tmp_path: Path, assert_same: Any
) -> None:
    codes = together(2, tmp_path, "gan", how=How(number=signal.SIGTERM, rank=1, at=0))
    assert codes == [1, 1]
    assert (tmp_path / "error_0").read_text().startswith("KeyboardInterrupt")
    assert (tmp_path / "error_1").read_text().startswith("Terminated")
    assert load_checkpoint(tmp_path / "gan")["step"] == 1
    assert together(2, tmp_path, "gan") == [0, 0]
    assert_same(load_checkpoint(tmp_path / "gan"), load_checkpoint(trained[2] / "gan"))


def test_the_command_line_trains_in_several_processes(tmp_path: Path) -> None:
    export_image_folder(tmp_path / "birds", train=12, test=0, size=64, progress=False)
    # "--" keeps torchrun from taking --run for an abbreviation of its own --run-path
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    run += ["-m", "mirrorgan_fast", "--", "train", "cnn", "--data", str(tmp_path / "birds")]
    run += ["--set", "image_size=32", "--set", "stages=2", "--workers", "0", "--quiet"]
    run += ["--run", str(tmp_path / "run"), "--set", "cnn.steps=2"]
    for size, status in (("9", 1), ("8", 0)):
        done = subprocess.run(
            [*run, "--set", f"cnn.batch_size={size}"], capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("mirrorgan-fast:")]
        if status:
            assert "cnn.batch_size is 9, expected a multiple of 2 from 4 up" in errors[0]
            assert not (tmp_path / "run").exists()
    assert load_checkpoint(tmp_path / "run" / "cnn")["step"] == 2


def test_what_one_process_refuses_ends_all(tmp_path: Path) -> None:
    (tmp_path / "gan").write_text("no folder")
    assert together(2, tmp_path, "gan") == [1, 1]
    assert (tmp_path / "error_0").read_text().startswith(f"InputError: {tmp_path / 'gan'}")
    assert (tmp_path / "error_1").read_text().startswith("OtherProcessError: process 1: stops")
