"""Sampling to a folder: images can be traced, and a stopped run resumes with the same output."""

import errno
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.config import MirrorGANConfig
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.sampling import sinks
from mirrorgan_fast.sampling.caption_files import Captions
from mirrorgan_fast.sampling.journal import Journal
from mirrorgan_fast.sampling.run import SamplingSettings, Summary, sample_to_folder
from mirrorgan_fast.sampling.sampler import Result, Sampler
from mirrorgan_fast.sampling.sinks import FORMATS, Row
from tests.small import files

SMALL = SamplingSettings(seed=3, per_caption=2, shard_size=10)
Break = Callable[[int], None]


def rows(folder: Path, name: str = "manifest.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def written(text: bytes, tmp_path: Path, name: str = "captions.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(text)
    return path


def sample(
    sampler: Sampler,
    captions: Path | Sequence[str],
    folder: Path,
    settings: SamplingSettings = SMALL,
    **how: Any,
) -> Summary:
    opened = Captions.open(captions) if isinstance(captions, Path) else Captions.of(captions)
    with opened:
        return sample_to_folder(sampler, opened, folder, settings, **how)


def image(folder: Path, row: dict[str, Any]) -> np.ndarray:
    """Return the image of a row of the manifest."""
    path = folder / row["file"]
    if path.suffix == ".npy":
        return np.load(path)[row["row"]]
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            name = next(n for n in tar.getnames() if n.startswith(row["key"]) and n[9:] != "txt")
            data = tar.extractfile(name)
            assert data is not None
            return np.asarray(Image.open(io.BytesIO(data.read())))
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("batch_size", [3, 64])
def test_every_image_can_be_traced_and_made_again(
    format: str, batch_size: int, model: MirrorGAN, texts: list[str], tmp_path: Path
) -> None:
    settings = SamplingSettings(seed=3, per_caption=2, shard_size=10, format=format)
    done = sample(Sampler(model, batch_size=batch_size), texts, tmp_path / "out", settings)
    assert (done.images, done.made, done.refused) == (74, 74, 0)
    manifest = rows(tmp_path / "out")
    assert [row["index"] for row in manifest] == list(range(74))
    assert [row["caption"] for row in manifest] == [text for text in texts for _ in range(2)]
    assert [row["line"] for row in manifest] == [1 + i // 2 for i in range(74)]
    assert not any(path.startswith(".") for path in files(tmp_path / "out"))
    fused = fuse(model)
    for row in manifest[::9]:
        expected = np.asarray(fused.sample([row["caption"]], row["seed"], [row["index"]])[0])
        found = image(tmp_path / "out", row)
        if "jpeg" in format or "webp" in format:
            assert np.abs(found.astype(int) - expected).mean() < 8
        else:
            assert np.array_equal(found, expected)


def test_rows_of_a_manifest_as_captions_give_the_same_images(
    sampler: Sampler, texts: list[str], tmp_path: Path
) -> None:
    sample(sampler, texts, tmp_path / "out")
    lines = (tmp_path / "out" / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    chosen = written(b"".join(lines[7:40:3]), tmp_path, "chosen.jsonl")
    settings = SamplingSettings(seed=99, flat=True)
    sample(sampler, chosen, tmp_path / "again", settings)
    for old, new in zip(rows(tmp_path / "out")[7:40:3], rows(tmp_path / "again"), strict=True):
        assert np.array_equal(image(tmp_path / "out", old), image(tmp_path / "again", new))


def test_a_tar_has_what_web_dataset_readers_expect(
    sampler: Sampler, texts: list[str], tmp_path: Path
) -> None:
    settings = SamplingSettings(per_caption=2, shard_size=10, format="tar-webp")
    sample(sampler, ["a purple bird", *texts], tmp_path, settings)
    with tarfile.open(tmp_path / "00000.tar") as tar:
        names = tar.getnames()
        assert names[:4] == [
            *(f"00000000.{end}" for end in ("webp", "txt", "json")),
            "00000001.webp",
        ]
        assert len(names) == 30
        parts = [tar.extractfile(name) for name in names[1:3]]
        text, told = (part.read() for part in parts if part is not None)
    assert text == b"a purple bird"
    assert json.loads(told) == {
        "caption": "a purple bird",
        "seed": 0,
        "index": 0,
        "unknown": ["purple"],
    }


BAD = b"a bird\n\n\xff\nzebra zebra\n" + b"x" * 2**20 + b"\na red bird\n"


def test_bad_lines_are_reported_with_their_numbers_and_stop_nothing(
    sampler: Sampler, tmp_path: Path
) -> None:
    captions = written(BAD, tmp_path)
    for _ in range(2):  # the second time, nothing is left to do
        done = sample(sampler, captions, tmp_path / "out")
        assert (done.images, done.refused) == (4, 4)
        errors = rows(tmp_path / "out", "errors.jsonl")
        assert [row["line"] for row in errors] == [2, 3, 4, 5]
        for row, words in zip(
            errors, ("empty", "UTF-8", "knows (zebra, zebra)", "longer"), strict=True
        ):
            assert words in row["error"]
        assert [row["index"] for row in rows(tmp_path / "out")] == [0, 1, 10, 11]
    assert done.made == 0


def test_a_bad_json_line_stops_nothing(sampler: Sampler, tmp_path: Path) -> None:
    text = '{"caption": "a bird"}\n{"caption": \n{"caption": "a 鸟 bird", "seed": 5}\n'
    done = sample(sampler, written(text.encode(), tmp_path, "c.jsonl"), tmp_path / "out")
    assert (done.images, done.refused) == (4, 1)
    last = rows(tmp_path / "out")[-1]
    assert (last["seed"], last["unknown"]) == (5, ["鸟"])


LISTED = ["a red bird", "zebra", "", 'a "blue", small\nbird', "a \x01 bird"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.json", json.dumps([{"text": text} for text in LISTED], indent=1)),
        ("captions.jsonl", json.dumps({"captions": LISTED})),
        (
            "captions.csv",
            "file;caption\r\n0;a red bird\r\n1;zebra\r\n2;\r\n"
            '3;"a ""blue"", small\nbird"\r\n4;a \1 bird',
        ),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_runs_from_other_formats_resume(
    name: str, text: str, packed: bool, sampler: Sampler, tmp_path: Path
) -> None:
    captions = written(
        gzip.compress(text.encode()) if packed else text.encode(),
        tmp_path,
        f"{name}.gz" if packed else name,
    )
    settings = replace(SMALL, shard_size=4)
    done = sample(sampler, captions, tmp_path / "out", settings)
    assert (done.made, done.refused) == (6, 2)
    found = rows(tmp_path / "out")
    assert [row["caption"] for row in found[::2]] == [LISTED[i] for i in (0, 3, 4)]
    assert [(row["line"], row["index"]) for row in found] == [
        (line, 2 * (line - 1) + k) for line in (1, 4, 5) for k in range(2)
    ]
    errors = rows(tmp_path / "out", "errors.jsonl")
    assert [row["line"] for row in errors] == [2, 3]
    before = files(tmp_path / "out")
    image(tmp_path / "out", found[2])
    (tmp_path / "out" / found[2]["file"]).unlink()
    assert sample(sampler, captions, tmp_path / "out", settings).made == 2
    assert files(tmp_path / "out") == before


def test_a_damaged_end_is_one_refused_record(sampler: Sampler, tmp_path: Path) -> None:
    captions = written(gzip.compress(b"a bird\na red bird\n" * 5)[:-1], tmp_path, "c.txt.gz")
    for made in (20, 0):
        done = sample(sampler, captions, tmp_path / "out")
        assert (done.made, done.images, done.refused) == (made, 20, 1)
    (error,) = rows(tmp_path / "out", "errors.jsonl")
    assert error == {"error": "is gzip that is cut off", "line": 11, "text": ""}


@pytest.mark.parametrize("text", [b"", b"\n\n", b"zebra\n"])
def test_captions_without_any_image(text: bytes, sampler: Sampler, tmp_path: Path) -> None:
    for format in FORMATS:
        settings = SamplingSettings(format=format)
        done = sample(sampler, written(text, tmp_path), tmp_path / format, settings)
        assert (done.images, done.refused) == (0, text.count(b"\n"))
        assert "manifest.jsonl" in files(tmp_path / format)
        done.table()


# --- stopped and resumed --------------------------------------------------------------------------


def disk_full(count: int) -> None:
    """Raise the error of a full disk if ``count`` is 0."""
    if count == 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(count: int) -> None:
    if count == 0:
        raise KeyboardInterrupt


@pytest.mark.parametrize("format", ["png", "tar", "npy"])
@pytest.mark.parametrize("after", [0, 1, 7, 14])
def test_a_full_disk_is_reported_and_the_run_resumes(
    format: str,
    after: int,
    sampler: Sampler,
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = SamplingSettings(seed=3, per_caption=2, shard_size=10, format=format)
    sample(sampler, texts, tmp_path / "undisturbed", settings)
    left = after

    def write_all(file: io.FileIO, data: bytes) -> None:
        nonlocal left
        if left <= 0:
            file.write(data[: len(data) // 2])
        left -= 1
        disk_full(left + 1)
        assert file.write(data) == len(data)

    module = "mirrorgan_fast.sampling"
    with monkeypatch.context() as patched:
        patched.setattr(f"{module}.sinks.write_all", write_all)
        patched.setattr(f"{module}.writer.write_all", write_all)
        with pytest.raises(InputError, match=r"No space left on device.*same command again"):
            sample(sampler, texts, tmp_path / "out", settings)
    done = sample(sampler, texts, tmp_path / "out", settings)
    assert done.images == 74
    assert done.made < 74 or after < 10  # chunks are kept whole or not at all
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


def test_a_full_disk_while_files_are_encoded(
    sampler: Sampler, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, left = sinks.encode, iter(range(30, -99, -1))

    def fails(*arguments: Any) -> bytes:
        disk_full(next(left))
        return encode(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(sinks, "encode", fails)
        with pytest.raises(InputError, match="No space left on device"):
            sample(sampler, texts, tmp_path / "out", workers=1)
    assert 0 < sample(sampler, texts, tmp_path / "out").made < 74
    sample(sampler, texts, tmp_path / "undisturbed")
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


def test_an_interrupted_run_has_a_manifest_and_resumes(
    model: MirrorGAN, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(model, batch_size=2)
    render, left = sampler.renderer.render, iter(range(20, -99, -1))

    def stopped(*inputs: Any) -> Any:
        interrupted(next(left))
        return render(*inputs)

    with monkeypatch.context() as patched:
        patched.setattr(sampler.renderer, "render", stopped)
        with pytest.raises(KeyboardInterrupt):
            sample(sampler, texts, tmp_path / "out")
    there = rows(tmp_path / "out")
    for row in there:
        image(tmp_path / "out", row)
    assert sample(sampler, texts, tmp_path / "out").made == 74 - len(there)
    sample(sampler, texts, tmp_path / "undisturbed")
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


@pytest.mark.parametrize("format", ["png", "tar", "npy"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.77, 0.999, 1.0])
def test_a_run_resumes_from_any_cut_of_journal_and_files(
    format: str, share: float, sampler: Sampler, texts: list[str], tmp_path: Path
) -> None:
    """A power cut may leave any part of the last shard's journal and any part of its images."""
    settings = SamplingSettings(per_caption=2, shard_size=10, format=format)
    out = tmp_path / "out"
    sample(sampler, texts, out, settings)
    undisturbed = files(out)
    cut(out / ".progress" / "00007.jsonl", 1 - share)
    if format == "png":
        (out / "00007" / "00000071.png").unlink()
    else:
        (out / f"00007.{format}").rename(out / f".00007.{format}")
        cut(out / f".00007.{format}", share)
    (out / "manifest.jsonl").unlink()
    sample(sampler, texts, out, settings)
    assert files(out) == undisturbed


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


@pytest.mark.parametrize("format", ["png", "tar", "npy"])
def test_a_run_resumes_with_more_captions_at_the_end(
    format: str, sampler: Sampler, texts: list[str], tmp_path: Path
) -> None:
    settings = SamplingSettings(per_caption=2, shard_size=10, format=format)
    sample(sampler, texts[:13], tmp_path / "out", settings)
    assert sample(sampler, texts, tmp_path / "out", settings).made == 74 - 26
    sample(sampler, texts, tmp_path / "undisturbed", settings)
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


def test_a_removed_image_is_made_again(sampler: Sampler, texts: list[str], tmp_path: Path) -> None:
    sample(sampler, texts, tmp_path)
    before = files(tmp_path)
    (tmp_path / "00003" / "00000034.png").unlink()
    assert sample(sampler, texts, tmp_path).made == 6
    assert files(tmp_path) == before


# --- other runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 4}, "seed 3, not 4"),
        ({"per_caption": 1}, "per_caption 2, not 1"),
        ({"format": "jpeg"}, "format png, not jpeg"),
        ({"psi": 0.5}, "psi 1.0, not 0.5"),
        ({"shard_size": 11}, "shard_size 10, not 11"),
    ],
)
def test_the_output_of_another_run_is_kept_unless_overwritten(
    change: dict[str, Any], told: str, sampler: Sampler, texts: list[str], tmp_path: Path
) -> None:
    sample(sampler, texts, tmp_path / "out")
    before = files(tmp_path / "out")
    values = {"seed": 3, "per_caption": 2, "shard_size": 10, **change}
    other = SamplingSettings(**values)
    with pytest.raises(InputError, match=f"{told}.*use another -o, or --overwrite"):
        sample(sampler, texts, tmp_path / "out", other)
    assert files(tmp_path / "out") == before
    sample(sampler, texts[:20], tmp_path / "out", other, overwrite=True)
    sample(sampler, texts[:20], tmp_path / "fresh", other)
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_another_data_type_is_another_run(model: MirrorGAN, tmp_path: Path) -> None:
    sample(Sampler(model, dtype=torch.float32), ["a bird"], tmp_path)
    with pytest.raises(InputError, match="has images of dtype float32, not bfloat16"):
        sample(Sampler(model, dtype=torch.bfloat16), ["a bird"], tmp_path)


def test_another_device_is_another_run(sampler: Sampler, tmp_path: Path) -> None:
    sample(sampler, ["a bird"], tmp_path)
    run = tmp_path / ".progress" / "run.json"
    run.write_text(run.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    with pytest.raises(InputError, match="has images of device cuda, not cpu"):
        sample(sampler, ["a bird"], tmp_path)


def test_quality_has_no_effect_on_png(sampler: Sampler, texts: list[str], tmp_path: Path) -> None:
    sample(sampler, texts, tmp_path, replace(SMALL, quality=50))
    assert sample(sampler, texts, tmp_path, replace(SMALL, quality=60)).made == 0
    lossy = replace(SMALL, format="jpeg")
    sample(sampler, texts, tmp_path / "lossy", lossy)
    with pytest.raises(InputError, match="quality 95, not 60"):
        sample(sampler, texts, tmp_path / "lossy", replace(lossy, quality=60))


def test_captions_can_be_read_again(sampler: Sampler, texts: list[str], tmp_path: Path) -> None:
    file = written("\n".join(texts[:5]).encode(), tmp_path)
    for i, captions in enumerate((Captions.open(file), Captions.of(texts[:5]))):
        with captions:
            for folder in (tmp_path / f"{i} once", tmp_path / f"{i} again"):
                assert sample_to_folder(sampler, captions, folder, SMALL).made == 10


def test_captions_of_a_pipe_cannot_be_read_again(sampler: Sampler, tmp_path: Path) -> None:
    end, other = os.pipe()
    os.write(other, b"a red bird\n")
    os.close(other)
    with Captions.open(f"/dev/fd/{end}") as captions:
        os.close(end)
        assert sample_to_folder(sampler, captions, tmp_path / "1", SMALL).made == 2
        with pytest.raises(InputError, match="was read already, and cannot be read again"):
            sample_to_folder(sampler, captions, tmp_path / "2", SMALL)
        assert not (tmp_path / "2").exists()


def test_a_pipe_without_captions_makes_nothing(sampler: Sampler, tmp_path: Path) -> None:
    end, other = os.pipe()
    os.write(other, b"%PDF-1.7\n")
    os.close(other)
    with Captions.open(f"/dev/fd/{end}") as captions, pytest.raises(InputError, match="is PDF"):
        sample_to_folder(sampler, captions, tmp_path / "out", SMALL)
    os.close(end)
    assert not (tmp_path / "out").exists()


def test_another_model_is_another_run(model: MirrorGAN, tmp_path: Path) -> None:
    sample(Sampler(model), ["a bird"], tmp_path)
    next(model.glam.parameters()).data += 1
    with pytest.raises(InputError, match="has images of model"):
        sample(Sampler(model), ["a bird"], tmp_path)


@pytest.mark.parametrize("line", [0, 12, 36])
@pytest.mark.parametrize("change", ["other", "gone", "bad", "longer"])
def test_other_captions_are_another_run(
    line: int, change: str, sampler: Sampler, texts: list[str], tmp_path: Path
) -> None:
    captions = written("\n".join(texts).encode(), tmp_path)
    out = tmp_path / "out"
    sample(sampler, captions, out)
    before = files(out)
    changed = [*texts]
    changed[line : line + 1] = {
        "other": ["a blue bill"],
        "gone": [],
        "bad": ["zebra"],
        "longer": [f"{texts[line]} bird"],
    }[change]
    captions = written("\n".join(changed).encode(), tmp_path)
    with pytest.raises(InputError, match=r"captions.txt, line \d+: has changed since"):
        sample(sampler, captions, out)
    assert files(out) == before
    sample(sampler, captions, out, overwrite=True)
    sample(sampler, captions, tmp_path / "fresh")
    assert files(out) == files(tmp_path / "fresh")


def test_files_that_no_run_made_are_kept(sampler: Sampler, tmp_path: Path) -> None:
    for name in ("00000/mine.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(InputError, match="00000: is there already"):
        sample(sampler, ["a bird"], tmp_path)
    sample(sampler, ["a bird"], tmp_path, overwrite=True)
    sample(sampler, ["a bird"], tmp_path, SamplingSettings(seed=9, format="npy"), overwrite=True)
    assert files(tmp_path).keys() == {"00000.npy", "00000/mine.png", "manifest.jsonl", "notes.txt"}


def test_files_that_no_run_made_are_replaced_but_not_removed(
    sampler: Sampler, tmp_path: Path
) -> None:
    for name in ("sheet.png", "errors.jsonl", "manifest.jsonl"):
        written(b"mine", tmp_path, name)
    sample(sampler, ["a bird"], tmp_path, overwrite=True)
    there = files(tmp_path)
    assert there["sheet.png"] == there["errors.jsonl"] == b"mine" != there["manifest.jsonl"]


def test_a_ctrl_c_before_it_begins_writes_nothing(
    sampler: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "begin", lambda *arguments: interrupted(0))
    with pytest.raises(KeyboardInterrupt):
        sample(sampler, ["a bird"], tmp_path)
    assert not files(tmp_path)


def test_a_damaged_journal_and_empty_files_are_made_again(
    sampler: Sampler, texts: list[str], tmp_path: Path
) -> None:
    sample(sampler, texts, tmp_path)
    before = files(tmp_path)
    journal = tmp_path / ".progress" / "00002.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:4], b"\0" * 90 + b"\n", *lines[5:]]))
    os.truncate(tmp_path / "00005" / "00000053.png", 0)
    assert sample(sampler, texts, tmp_path).made == 6 + 7
    assert files(tmp_path) == before


@pytest.mark.parametrize("process", [0, 3])
def test_two_processes_do_not_write_at_once(process: int, sampler: Sampler, tmp_path: Path) -> None:
    """Not even if the other is a later one of several processes, whose first has ended."""
    sample(sampler, ["a bird"], tmp_path)
    journal = Journal(tmp_path)
    journal.lock(process)
    with pytest.raises(InputError, match="another process writes there"):
        sample(sampler, ["a bird"], tmp_path)
    journal.unlock()
    sample(sampler, ["a bird"], tmp_path)


def test_a_folder_that_cannot_be_written(sampler: Sampler, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        sample(sampler, ["a bird"], written(b"", tmp_path, "file"))


# --- sinks of users, and several processes --------------------------------------------------------


class Kept:
    """A sink that keeps images in memory."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.calls: list[str] = []

    def whole(self, shard: int, rows: Sequence[Row]) -> int:
        return 0

    def encode(self, shard: int, result: Result) -> np.ndarray:
        return result.image[::-1]

    def begin(self, shard: int, count: int) -> None:
        self.calls.append(f"begin {shard}")

    def write(self, result: Result, encoded: np.ndarray) -> Row:
        self.images.append(encoded)
        return {"place": len(self.images)}

    def end(self) -> None:
        self.calls.append("end")

    def close(self) -> None:
        self.calls.append("close")


def test_any_object_with_the_methods_is_a_sink(
    sampler: Sampler, texts: list[str], tmp_path: Path
) -> None:
    sink = Kept()
    sample(sampler, texts[:12], tmp_path, sink=sink)
    assert sink.calls == ["begin 0", "end", "begin 1", "end", "begin 2", "end", "close"]
    expected = [result.image[::-1] for result in sampler(texts[:12], 3, 2)]
    assert np.array_equal(sink.images, expected)
    assert [row["place"] for row in rows(tmp_path)] == list(range(1, 25))


def test_processes_divide_the_captions_and_give_the_output_of_one(
    model: MirrorGAN, texts: list[str], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "model")
    captions = written(BAD + "\n".join(texts).encode(), tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = ["-m", "mirrorgan_fast", "sample", "--captions", str(captions), "--model", "model"]
    options = ["-n", "2", "--seed", "3", "--shard-size", "10", "--format", "tar", "--quiet"]
    run = subprocess.run(
        [*torchrun, *command, *options, "-o", "out"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "78 images in out\n"
    assert "4 captions made no image" in run.stderr
    settings = SamplingSettings(seed=3, per_caption=2, shard_size=10, format="tar")
    loaded = Sampler(MirrorGAN.from_pretrained(tmp_path / "model"))
    sample(loaded, captions, tmp_path / "alone", settings)
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    # A single process resumes what two have begun.
    shutil.rmtree(tmp_path / "out" / ".progress" / "00001.jsonl", ignore_errors=True)
    assert sample(loaded, captions, tmp_path / "out", settings).made == 0


def test_an_existing_process_group_stays_open(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from torch import distributed\n"
        "from mirrorgan_fast.processes import Processes\n"
        "distributed.init_process_group('gloo')\n"
        "processes = Processes.join()\n"
        "assert processes.total(1, processes.rank) == [2, 1]\n"
        "processes.close()\n"
        "distributed.barrier()\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, str(script)], check=True, capture_output=True)


def test_a_config_field_that_is_added_later_does_not_make_another_run(
    model: MirrorGAN, texts: list[str], tmp_path: Path
) -> None:
    @dataclass(frozen=True)
    class LaterConfig(MirrorGANConfig):
        added: int = 3

    sample(Sampler(model), texts, tmp_path)
    model.config = LaterConfig(**asdict(model.config))
    assert sample(Sampler(model), texts, tmp_path).made == 0
    model.config = replace(model.config, added=4)
    with pytest.raises(InputError, match="model"):
        sample(Sampler(model), texts, tmp_path)
