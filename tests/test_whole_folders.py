"""Folders are written atomically, and only the leftovers of killed processes are removed."""

import multiprocessing
import os
from pathlib import Path

import pytest

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import check_free, whole_folder


def write(root: Path, text: str = "new") -> None:
    with whole_folder(root) as partial:
        (partial / "inside").mkdir()
        (partial / "inside" / "file").write_text(text)


def killed_while_writing(root: Path) -> None:
    with whole_folder(root) as partial:
        (partial / "file").write_text("half of")
        os._exit(9)


def leave_unfinished(root: Path) -> Path:
    process = multiprocessing.get_context("fork").Process(target=killed_while_writing, args=(root,))
    process.start()
    process.join()
    partial = root.with_name(f".{root.name}.partial")
    assert (partial / "file").exists()
    return partial


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    root = tmp_path / "made" / "root"
    with whole_folder(root) as partial:
        (partial / "file").write_text("new")
        assert not root.exists()
        assert partial.parent == root.parent  # so that it is moved, not copied
    assert [path.name for path in root.iterdir()] == ["file"]
    assert list(root.parent.iterdir()) == [root]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "root") as partial:
            (partial / "file").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").touch()
    partial = leave_unfinished(tmp_path / "root")
    (partial / "link").symlink_to(outside)
    write(tmp_path / "root")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "root"]
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["inside"]
    assert (outside / "mine").exists()


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    partial = tmp_path / ".root.partial"
    partial.mkdir()
    (partial / "mine").touch()
    with pytest.raises(InputError, match=r"\.root\.partial: is in the way; remove it"):
        write(tmp_path / "root")
    assert (partial / "mine").exists()
    # a link to a folder that looks like ours
    other = leave_unfinished(tmp_path / "other")
    (partial / "mine").unlink()
    partial.rmdir()
    partial.symlink_to(other)
    with pytest.raises(InputError, match="is in the way"):
        write(tmp_path / "root")
    assert (other / "file").exists()
    partial.unlink()
    partial.write_text("a file")
    with pytest.raises(InputError, match="is in the way"):
        write(tmp_path / "root")
    assert partial.read_text() == "a file"


def test_two_do_not_write_the_same_folder(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "root") as partial:
        (partial / "file").write_text("first")
        with pytest.raises(InputError, match="another process is writing it"):
            write(tmp_path / "root")
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["file"]


def test_only_nothing_and_an_empty_folder_are_free(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    check_free(tmp_path / "empty")
    check_free(tmp_path / "nothing")
    check_free(tmp_path / ("x" * 300))  # creating it will raise the error
    for name, fault in (("file", "not an empty folder"), ("", "not an empty"), ("loop", "levels")):
        with pytest.raises(InputError, match=fault):
            check_free(tmp_path / name)
