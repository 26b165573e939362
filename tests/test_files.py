"""Files are written atomically, whatever happens while they are written."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import whole_file
from mirrorgan_fast.training.run import Run
from mirrorgan_fast.weights import save_tensors


@contextmanager
def full_disk(free: int) -> Iterator[None]:
    """Keep files from growing beyond ``free`` bytes, also for root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "made" / "on the way" / "curves.jsonl"
    with whole_file(target) as partial:
        partial.write_text("new")
        assert not target.exists()
        assert partial.parent == target.parent  # so that it is moved, not copied
        assert partial.suffix == ".jsonl"  # writers may choose the format by it
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_the_old_file_is_there_until_the_new_one_is(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with whole_file(str(target)) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InputError, SystemExit])
@pytest.mark.parametrize("written", [True, False])
def test_after_an_error_all_is_as_before(
    tmp_path: Path, error: type[BaseException], written: bool
) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def write() -> None:
        with whole_file(target) as partial:
            if written:
                partial.write_text("half of the n")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def write_bytes(folder: Path) -> None:
    with whole_file(folder / "file") as partial:
        partial.write_bytes(bytes(5000))


def write_checkpoint(folder: Path) -> None:
    Run(folder, 10, {}, quiet=True).save(5, {"model": {"weight": torch.zeros(5000)}})


def write_tensors(folder: Path) -> None:
    save_tensors(folder, {"weight": torch.zeros(5000)})


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_bytes, "file"),
        (write_checkpoint, "checkpoint.pt"),
        (write_tensors, "model.safetensors"),
    ],
)
def test_a_full_disk_is_reported_and_leaves_the_old_file(
    tmp_path: Path, write: Callable[[Path], None], name: str
) -> None:
    write(tmp_path)
    before = (tmp_path / name).read_bytes()
    with full_disk(1000), pytest.raises(InputError, match="cannot be written") as caught:
        write(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "a", tmp_path / "file" / "b" / "c"):
        with pytest.raises(InputError, match="cannot be written") as caught, whole_file(target):
            pytest.fail("the folder cannot exist")
        assert "\n" not in str(caught.value)


def test_a_folder_in_the_place_of_the_file_is_reported(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "inner").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be written"), whole_file(target) as partial:
        partial.write_text("new")
    assert list(tmp_path.iterdir()) == [target]
    assert (target / "inner").is_dir()


def test_a_block_that_writes_nothing_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"), whole_file(tmp_path / "file"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("synced", [True, False])
def test_content_is_on_the_disk_before_a_file_gets_its_name(
    synced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *given: (calls.append("fsync"), fsync(*given)))
    monkeypatch.setattr(os, "replace", lambda *given: (calls.append("replace"), replace(*given)))
    with whole_file(tmp_path / "file", synced=synced) as partial:
        partial.write_text("content")
    assert calls == (["fsync", "replace"] if synced else ["replace"])
    assert (tmp_path / "file").read_text() == "content"
