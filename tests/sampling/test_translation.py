"""Translating to a folder: names, resuming, other runs, and what cannot be read."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mirrorgan_fast.cli.main import main
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.inference.translator import Translator
from mirrorgan_fast.models.config import CycleGANConfig
from mirrorgan_fast.models.cyclegan import CycleGAN
from mirrorgan_fast.sampling.translation import (
    Translated,
    TranslationSettings,
    jobs_of,
    translate_to_folder,
)


@pytest.fixture(scope="module")
def model() -> CycleGAN:
    torch.manual_seed(0)
    return CycleGAN(
        CycleGANConfig(generator_channels=4, residual_blocks=1, image_size=32, x="day", y="night")
    ).eval()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two folders, with equal names in them, and a single picture of the same name."""
    rng = np.random.default_rng(0)
    for name in ("one/a.png", "one/b.jpg", "one/in/a.png", "two/a.png", "two/A.png", "a.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (int(rng.integers(10, 30)), int(rng.integers(10, 30)), 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(path)
    return [tmp_path / "one", tmp_path / "two", tmp_path / "a.png"]


NAMES = ["a.png", "b.png", "in/a.png", "A-2.png", "a-3.png", "a-4.png"]


def run(model: CycleGAN, pictures: list[Path], folder: Path, **more: Any) -> Translated:
    translator = Translator(model, more.pop("to", None), torch.float32)
    return translate_to_folder(model, translator, pictures, folder, **more)


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files that are not hidden."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".translation" not in path.parts
    }


def test_equal_names_do_not_collide(model: CycleGAN, pictures: list[Path], tmp_path: Path) -> None:
    jobs = jobs_of(pictures, "png")
    assert [job.file for job in jobs] == NAMES
    done = run(model, pictures, tmp_path / "out")
    assert (done.pictures, done.made, done.failed, done.reduced) == (6, 6, 0, 0)
    assert set(files(tmp_path / "out")) == {*NAMES, "manifest.jsonl"}
    rows = [json.loads(row) for row in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    translator = Translator(model, dtype=torch.float32)
    for job, row in zip(jobs, rows, strict=True):
        picture = Image.open(job.source)
        assert (row["source"], row["file"]) == (str(job.source), job.file)
        assert (row["width"], row["height"]) == picture.size
        made = np.asarray(Image.open(tmp_path / "out" / job.file)).astype(int)
        assert np.abs(made - np.asarray(translator(picture))).max() <= 1


@pytest.mark.parametrize("kept", range(6))
def test_a_run_resumes_to_the_same_files(
    model: CycleGAN, pictures: list[Path], tmp_path: Path, kept: int, monkeypatch: Any
) -> None:
    run(model, pictures, tmp_path / "whole")
    written: list[str] = []

    def write(folder: Any, job: Any, content: bytes) -> None:
        if len(written) == kept:
            raise KeyboardInterrupt
        written.append(job.file)
        original(folder, job, content)

    from mirrorgan_fast.sampling import translation

    original = translation._Folder.write
    monkeypatch.setattr(translation._Folder, "write", write)
    with pytest.raises(KeyboardInterrupt):
        run(model, pictures, tmp_path / "out")
    monkeypatch.setattr(translation._Folder, "write", original)
    # the last line of a killed process may be cut off, or a file be empty after a power failure
    record = tmp_path / "out/.translation/done-0.jsonl"
    if kept:
        record.write_bytes(record.read_bytes()[:-5])
        (tmp_path / "out" / written[0]).write_bytes(b"")
    done = run(model, pictures, tmp_path / "out")
    assert done.pictures == 6
    assert done.made == 6 - max(0, kept - (2 if kept > 1 else 1))
    assert files(tmp_path / "out").keys() == files(tmp_path / "whole").keys()
    for name, content in files(tmp_path / "whole").items():
        if name != "manifest.jsonl":
            assert files(tmp_path / "out")[name] == content
    assert run(model, pictures, tmp_path / "out").made == 0


def test_a_changed_picture_is_translated_again(
    model: CycleGAN, pictures: list[Path], tmp_path: Path
) -> None:
    run(model, pictures, tmp_path / "out")
    Image.new("RGB", (11, 12), "red").save(tmp_path / "two/a.png")
    assert run(model, pictures, tmp_path / "out").made == 1
    assert Image.open(tmp_path / "out/a-3.png").size == (11, 12)


def test_other_runs_and_other_files_are_kept(
    model: CycleGAN, pictures: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(model, pictures, out)
    before = files(out)
    for change in ({"to": "day"}, {"settings": TranslationSettings(max_size=9)}):
        with pytest.raises(InputError, match="has the pictures of another run; use another -o"):
            run(model, pictures, out, **change)
    with pytest.raises(InputError, match="has the pictures of another run"):
        run(model, pictures[:2], out)
    assert files(out) == before
    done = run(model, pictures, out, to="day", overwrite=True)
    assert (done.pictures, done.made) == (6, 6)
    assert files(out)["a.png"] != before["a.png"]

    own = tmp_path / "own"
    own.mkdir()
    (own / "b.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"own/b\.png: is there already"):
        run(model, pictures, own)
    assert files(own) == {"b.png": b"mine"}
    assert sorted(path.name for path in own.iterdir()) == ["b.png"]


def test_a_linked_or_damaged_record_is_not_trusted(
    model: CycleGAN, pictures: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(model, pictures, out)
    record = out / ".translation/done-0.jsonl"
    record.write_bytes(b'{"file": 3}\n[]\n\xff\n' + record.read_bytes()[40:])
    assert run(model, pictures, out).made == 1
    rows = (b"[" * 10**5, b"5", b'{"source": 3, "file": "a.png", "stamp": ""}')  # with checksums
    record.write_bytes(b"".join(b"%08x %b\n" % (zlib.crc32(row), row) for row in rows))
    assert run(model, pictures, out).made == 6
    (out / ".translation/run.json").write_bytes(b"[[[")
    with pytest.raises(InputError, match="another run"):
        run(model, pictures, out)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / ".translation").symlink_to(out / ".translation")
    with pytest.raises(InputError, match="is a symbolic link, which is not followed"):
        run(model, pictures, linked)
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "in").symlink_to(out)
    with pytest.raises(InputError, match="inner/in: is a symbolic link, which is not followed"):
        run(model, pictures, inner, overwrite=True)


def test_a_picture_that_cannot_be_read_is_named(
    model: CycleGAN, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "one/b.jpg").write_bytes(b"damaged")
    missing = tmp_path / "none.png"
    done = run(model, [*pictures, missing], tmp_path / "out")
    assert (done.pictures, done.failed) == (5, 2)
    rows = [json.loads(row) for row in (tmp_path / "out/errors.jsonl").read_text().splitlines()]
    assert [Path(row["source"]).name for row in rows] == ["b.jpg", "none.png"]
    assert "is not a picture that can be read" in rows[0]["error"]
    again = run(model, [*pictures, missing], tmp_path / "out")
    assert (again.made, again.failed) == (0, 2)


def test_memory_that_ends_halves_batches_then_pictures(
    model: CycleGAN, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for i, size in enumerate([(200, 100), (200, 100), (40, 40)]):
        Image.new("RGB", size, (i, 99, 9)).save(tmp_path / f"{i}.png")
    tried: list[tuple[int, ...]] = []
    original = Translator.translate

    def translate(self: Translator, images: Any) -> Any:
        tried.append((len(images), *images[0].shape[:2]))
        if len(images) * images[0].shape[0] * images[0].shape[1] > 100 * 50:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return original(self, images)

    monkeypatch.setattr(Translator, "translate", translate)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    assert run(model, paths, tmp_path / "out").made == 3
    assert tried == [
        *((2, 100, 200), (1, 100, 200), (1, 50, 100), (1, 100, 200), (1, 50, 100), (1, 40, 40))
    ]
    assert Image.open(tmp_path / "out/1.png").size == (100, 50)
    assert caplog.text.count("out of memory for a picture of 200 x 100: at most 100 now") == 2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_size": 0}, "max_size is 0, expected a whole number from 1"),
        ({"format": "bmp"}, "there is no format bmp; there are png, jpeg, webp"),
        ({"quality": 101}, "quality is 101"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        TranslationSettings(**settings)


def test_the_command_line(
    model: CycleGAN, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "model")
    command = ["translate", *map(str, pictures), "--model", str(tmp_path / "model")]
    out = ["-o", str(tmp_path / "out"), "--to", "day", "--max-size", "12", "--format", "webp"]
    assert main([*command, *out]) == 0
    said = capsys.readouterr()
    assert said.out == f"6 pictures in {tmp_path / 'out'}\n"
    assert "6 larger pictures were scaled down to 12 pixels; --max-size keeps more" in said.err
    assert max(Image.open(tmp_path / "out/a.webp").size) == 12
    (tmp_path / "one/b.jpg").write_bytes(b"damaged")
    assert main([*command, *out]) == 3
    assert "1 pictures were not translated" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "x"), "--to", "noon"]) == 2
    assert main(["translate", "--model", "m", "-o", "x", str(tmp_path / "empty")]) == 2
    assert main([*command, "-o", str(tmp_path / "x"), "--quality", "0"]) == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_twenty_kills(model: CycleGAN, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    (tmp_path / "in").mkdir()
    for i in range(200):
        size = (int(rng.integers(60, 200)), 160, 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(tmp_path / "in" / f"{i}.png")
    model.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "mirrorgan_fast", "translate", str(tmp_path / "in")]
    command += ["--model", str(tmp_path / "model"), "--quiet", "-o"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, tmp_path / "whole"], check=True, env=environment)
    randomly, kills = random.Random(0), 0
    while kills < 20:
        with subprocess.Popen([*command, tmp_path / "out"], env=environment) as process:
            there = len(list((tmp_path / "out").glob("*.png")))
            while process.poll() is None:
                if len(list((tmp_path / "out").glob("*.png"))) > there:
                    time.sleep(randomly.random() * 0.2)
                    break
                time.sleep(0.01)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            kills += 1
    assert kills >= 10
    subprocess.run([*command, tmp_path / "out"], check=True, env=environment)
    whole, resumed = files(tmp_path / "whole"), files(tmp_path / "out")
    assert len(whole) == 201
    assert resumed == whole
