"""The command as users run it: exit status, files and one-line errors."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch._utils import ExceptionWrapper

from mirrorgan_fast.cli import describe, paint, sample
from mirrorgan_fast.cli.main import main
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.recipes import find_recipe, for_pictures
from mirrorgan_fast.training.checkpoint import load_checkpoint
from mirrorgan_fast.training.settings import MirrorGANTrainingSettings
from mirrorgan_fast.vocabulary import Vocabulary
from tests.small import SMALL

WORDS = ["<end>", "a", "red", "blue", "bird", "鸟"]
COMMAND = Path(sys.executable).with_name("mirrorgan-fast")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    MirrorGAN(SMALL, Vocabulary(WORDS)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted") / "birds"
    sizes = ["--train", "24", "--test", "8", "--size", "64", "--workers", "1", "--quiet"]
    assert main(["paint", str(folder), *sizes]) == 0
    return folder


def run(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False
    )


def files(folder: Path) -> list[str]:
    """The visible files of a folder."""
    there = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(str(path) for path in there if not path.parts[0].startswith("."))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail; return its one-line error."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mirrorgan-fast: ")
    assert printed.err.count("\n") == 1
    return printed.err


# --- sample, describe and info in separate processes ----------------------------------------------


def test_sample_writes_images_and_a_sheet_and_describe_reads_them(
    model: Path, tmp_path: Path
) -> None:
    what = ("sample", "a red bird", "a bird", "-n", 2, "-o", "out")
    made = run(*what, "--model", model, folder=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout == "4 images and sheet/sheet.png in out\n"
    assert files(tmp_path / "out") == [
        *(f"000{i}.png" for i in range(4)),
        "manifest.jsonl",
        "sheet/sheet.png",
    ]
    images = [Image.open(tmp_path / "out" / f"000{i}.png") for i in range(4)]
    assert {(image.size, image.mode) for image in images} == {((32, 32), "RGB")}
    captions = ["a red bird", "a red bird", "a bird", "a bird"]
    for image, expected in zip(
        images, fuse(MirrorGAN.from_pretrained(model)).sample(captions, seed=0), strict=True
    ):
        assert np.array_equal(np.asarray(image), np.asarray(expected))

    pictures = ("describe", "out/0000.png", "out/0002.png", "--json")
    result = run(*pictures, "--model", model, folder=tmp_path)
    assert result.returncode == 0
    assert [json.loads(row)["image"] for row in result.stdout.splitlines()] == [
        "out/0000.png",
        "out/0002.png",
    ]


def test_a_bad_caption_in_a_separate_process(model: Path, tmp_path: Path) -> None:
    refused = run("sample", "zzz", "-o", "out", "--model", model, folder=tmp_path)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.startswith("mirrorgan-fast: no word of the caption 'zzz' is known")
    assert refused.stderr.count("\n") == 1
    assert files(tmp_path) == []


def test_info_shows_versions_and_implementations(model: Path, tmp_path: Path) -> None:
    result = run("info", "--json", folder=tmp_path)
    assert result.returncode == 0
    facts = json.loads(result.stdout)
    assert facts["torch"] == torch.__version__
    assert facts["ops"]
    words = run("info", "--words", "--model", model, folder=tmp_path)
    assert words.stdout.split() == WORDS[1:]
    version = run("--version", folder=tmp_path)
    assert version.stdout == f"mirrorgan-fast {facts['mirrorgan-fast']}\n"
    unknown = run("info", "--model", "nosuch", folder=tmp_path)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("mirrorgan-fast: nosuch: no model there")
    listed = run("info", "--words", "--json", "--model", model, folder=tmp_path)
    assert json.loads(listed.stdout) == WORDS[1:]


# --- sample ---------------------------------------------------------------------------------------


def test_captions_come_from_a_file_and_the_seed_decides(model: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("\ufeffa red bird\n  a blue bird  \n", encoding="utf-8")
    for name, seed in (("first", 7), ("same", 7), ("other", 8)):
        arguments = ["sample", "--captions", captions, "--seed", seed, "--model", model]
        assert main([*map(str, arguments), "-o", str(tmp_path / name)]) == 0
        assert files(tmp_path / name) == [
            "00000/00000000.png",
            "00000/00000001.png",
            "manifest.jsonl",
        ]
    first, same, other = (
        (tmp_path / name / "00000" / "00000001.png").read_bytes()
        for name in ("first", "same", "other")
    )
    assert first == same
    assert first != other


def test_lines_that_make_no_image_are_counted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_bytes(b"a red bird\n\nzzz\n\xff\na blue bird\n")
    out = tmp_path / "out"
    arguments = ["sample", "--captions", captions, "-n", 2, "--model", model, "-o", out]
    assert main([*map(str, arguments), "--format", "npy", "--stats"]) == 3
    printed = capsys.readouterr()
    assert printed.out == f"4 images in {out}\n"
    assert f"3 captions made no image: {out / 'errors.jsonl'}" in printed.err
    assert "the limit: " in printed.err
    assert np.load(out / "00000.npy").shape == (4, 32, 32, 3)


def test_unknown_words_are_named_and_skipped(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-o", str(tmp_path), "--model", str(model)]
    assert main(["sample", "a purple 鸟 with wings", *arguments]) == 0
    assert "purple, with, wings" in capsys.readouterr().err
    assert files(tmp_path) == ["0000.png", "manifest.jsonl", "sheet/sheet.png"]


@pytest.mark.parametrize(
    "caption", ["", "   ", "!?", "🙂", "طائر", "zzz " * 500, "\x00", "a\u0301\u0301"]
)
def test_a_caption_without_a_known_word_is_refused(
    caption: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # after a good caption: nothing is written for either
    line = refusal(capsys, "sample", "a red bird", caption, "-o", tmp_path, "--model", model)
    assert "no word of the caption" in line
    assert files(tmp_path) == []


def test_very_long_captions_work(model: Path, tmp_path: Path) -> None:
    caption = "a red bird and a blue bird " * 2000
    assert main(["sample", caption, "-o", str(tmp_path), "--model", str(model)]) == 0
    assert files(tmp_path) == ["0000.png", "manifest.jsonl", "sheet/sheet.png"]


def test_existing_images_are_not_overwritten(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0001.png").write_bytes(b"mine")
    line = refusal(capsys, "sample", "a bird", "-n", 3, "-o", tmp_path, "--model", model)
    assert "0001.png: is there already" in line
    assert files(tmp_path) == ["0001.png"]
    arguments = ["sample", "a bird", "-n", "3", "-o", str(tmp_path), "--model", str(model)]
    assert main([*arguments, "--overwrite"]) == 0
    assert Image.open(tmp_path / "0001.png").size == (32, 32)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "give captions as arguments, or a file"),
        (["a bird", "--captions", "x.txt"], "give captions as arguments, or a file"),
        (["--captions", "nowhere.txt"], "nowhere.txt: cannot be read"),
        (
            ["a bird", "--seed", "-1"],
            "sample: argument --seed: found '-1', expected a whole number",
        ),
        (["a bird", "--seed", "9" * 5000], "--seed: found '999"),
        (["a bird", "--seed", str(2**128)], "expected a whole number from 0 to 2^128 - 1"),
        (["a bird", "--batch-size", str(2**63)], "--batch-size: found"),
        (["a bird", "-n", "1" + "0" * 20], "-n/--per-caption: found"),
        (["a bird", "--shard-size", "0"], "--shard-size: found '0'"),
        (["a bird", "--device", "meta"], "--device meta: computes nothing"),
        (["a bird", "--device", "cuda:" + "9" * 20], "--device cuda:999"),
        (["a bird", "--device", ""], "--device : "),
        (["a bird", "--walk", "3", "--no-sheet"], "cannot be combined with --no-sheet"),
        (["a bird", "--model", "x" * 300], "no model there"),
        (["a bird", "--model", "a\0b"], "no model there"),
        (["a bird", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["a bird", "--format", "bmp"], "argument --format: invalid choice: 'bmp'"),
        (["a bird", "--psi", "1.5"], "psi is 1.5, expected 0 to 1"),
        (["a bird", "--psi", "nan"], "psi is nan, expected 0 to 1"),
        (["a bird", "--quality", "0"], "quality is 0, expected 1 to 100"),
        (["a bird", "--device", "abacus"], "--device abacus"),
        (["a bird", "--model", "nowhere"], "nowhere: no model there"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: list[str],
    fault: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_model = arguments if "--model" in arguments else [*arguments, "--model", str(model)]
    assert fault in refusal(capsys, "sample", "-o", tmp_path, *with_model)
    assert files(tmp_path) == []


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json", "vocabulary.txt"])
@pytest.mark.parametrize("how", ["missing", "cut", "empty"])
def test_damaged_weights_are_refused(
    damaged: str, how: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in model.iterdir():
        data = path.read_bytes()
        if path.name != damaged:
            (copy / path.name).write_bytes(data)
        elif how != "missing":
            (copy / path.name).write_bytes(data[: len(data) // 2] if how == "cut" else b"")
    line = refusal(capsys, "sample", "a bird", "-o", tmp_path / "out", "--model", copy)
    assert str(copy) in line
    assert not (tmp_path / "out").exists()


def test_captions_come_through_a_pipe(model: Path, tmp_path: Path) -> None:
    for name, text in (("text", "a red bird\n"), ("json", '{"caption": "a red bird"}\n')):
        command = ["sample", "--captions", "-", "-o", name, "--model", str(model)]
        made = subprocess.run(
            [COMMAND, *command], cwd=tmp_path, input=text, capture_output=True, text=True
        )
        assert (made.returncode, made.stdout) == (0, f"1 images in {name}\n")
    assert files(tmp_path / "text") == files(tmp_path / "json")
    manifests = [(tmp_path / name / "manifest.jsonl").read_text() for name in ("text", "json")]
    assert manifests[0] == manifests[1]


def test_json_lines_come_through_any_pipe(model: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    arguments = ["--captions", pipe, "-o", "out", "--model", model]
    process = subprocess.Popen([COMMAND, "sample", *arguments], cwd=tmp_path)
    pipe.write_bytes(b'\xef\xbb\xbf\n{"caption": "a red bird"}\n')
    assert process.wait() == 3  # because of the empty line
    (line,) = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert json.loads(line)["caption"] == "a red bird"


def test_without_an_image_there_is_no_sheet(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sample", "\udcff bird", "-o", str(tmp_path), "--model", str(model)]
    assert main(arguments) == 3
    assert files(tmp_path) == ["errors.jsonl", "manifest.jsonl"]


def test_the_same_command_again_has_nothing_to_do(model: Path, tmp_path: Path) -> None:
    arguments = ["sample", "a bird", "-n", "3", "-o", str(tmp_path / "out"), "--model", str(model)]
    assert main(arguments) == 0
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("0*.png"))]
    assert main(arguments) == 0
    assert [p.stat().st_mtime_ns for p in sorted((tmp_path / "out").glob("0*.png"))] == before


# --- export ---------------------------------------------------------------------------------------


def test_export_refuses_other_suffixes_and_existing_files(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there.onnx"
    there.write_bytes(b"mine")
    what = ["export", "--model", model, "--quiet", "--format"]
    assert "already exists" in refusal(capsys, *what, "onnx", "-o", there)
    assert there.read_bytes() == b"mine"
    assert "ends in .pt2" in refusal(capsys, *what, "aoti", "-o", tmp_path / "model.onnx")
    assert files(tmp_path) == ["there.onnx"]


# --- describe -------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_a_file_that_is_not_a_picture_is_refused(
    content: bytes | None, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (20, 30)).save(good)
    if content is not None:
        bad.write_bytes(content)
    assert "bad.png" in refusal(capsys, "describe", bad, "--model", model)
    # a bad picture does not stop the others
    assert main(["describe", *map(str, (good, bad, good)), "--model", str(model)]) == 3
    printed = capsys.readouterr()
    assert [line.partition(": ")[0] for line in printed.out.splitlines()] == [str(good)] * 2
    error, count = printed.err.splitlines()
    assert error.startswith("mirrorgan-fast: describe: ") or "bad.png: cannot be read" in error
    assert "bad.png" in error
    assert count == "1 of 3 pictures could not be described"


def test_max_pixels_sets_the_limit(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (50, 20)).save(path)
    describing = ["describe", str(path), "--model", str(model), "--max-pixels"]
    assert main([*describing, "1000"]) == 0
    assert "has 50 x 20 pixels, more than the limit of 999" in refusal(capsys, *describing, "999")


def test_a_sheet_is_beside_the_images_or_nowhere(model: Path, tmp_path: Path) -> None:
    arguments = ["sample", "a bird", "-n", "3", "-o", str(tmp_path), "--model", str(model)]
    assert main([*arguments, "--no-sheet"]) == 0
    assert files(tmp_path) == ["0000.png", "0001.png", "0002.png", "manifest.jsonl"]
    assert main(arguments) == 0
    assert {Image.open(path).size for path in tmp_path.glob("*.png")} == {(32, 32)}
    assert Image.open(tmp_path / "sheet" / "sheet.png").size == (3 * 32 + 2 * 2, 32)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_any_kind_of_picture_is_described(
    mode: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"picture.{'tiff' if mode == 'CMYK' else 'png'}"
    Image.new(mode, (7, 300)).save(path)
    assert main(["describe", str(path), "--model", str(model)]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: ")


# --- paint, train and evaluate --------------------------------------------------------------------


def test_paint_does_not_change_existing_files(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(birds)
    assert str(birds) in refusal(capsys, "paint", birds, "--train", 2, "--test", 2, "--quiet")
    assert files(birds) == before
    assert "--layout folder" in refusal(
        capsys, "paint", tmp_path / "new", "--layout", "cub", "--masks"
    )
    assert not (tmp_path / "new").exists()


def test_all_stages_from_training_to_a_report(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {
        "image_size": 32,
        "stages": 2,
        "generator_channels": 4,
        "discriminator_channels": 4,
        "embedding_size": 16,
        "word_embedding_size": 8,
        "stream_hidden_size": 8,
        "gan.last_stage_from": 1,
        **{f"{stage}.steps": 2 for stage in ("cnn", "stem", "stream", "gan")},
        **{f"{stage}.batch_size": 6 for stage in ("cnn", "stem", "stream", "gan")},
    }
    changes = [word for name, value in sizes.items() for word in ("--set", f"{name}={value}")]
    data = ["--data", str(birds)]
    folder = tmp_path / "run"
    how = ["--run", str(folder), "--quiet"]
    assert main(["train", "all", *data, *how, *changes, "--workers", "0"]) == 0
    assert {"cnn", "stem", "stream", "gan"} < {path.name for path in folder.iterdir()}
    for stage in ("cnn", "stem", "stream", "gan"):
        last = (folder / stage / "curves.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["step"] == 2
    assert Image.open(folder / "gan" / "samples" / "0000002.png").width > 32

    assert main(["sample", "a bird", "-o", str(tmp_path / "out"), "--model", str(folder)]) == 0
    assert "attributes.safetensors" in refusal(
        capsys, "evaluate", *data, "--model", folder, "--judge", folder
    )
    assert "holds a run with generator_channels 4" in refusal(
        capsys, "train", "gan", *data, *how, *changes, "--set", "generator_channels=5"
    )
    # another generator can use what was trained for this one
    other = tmp_path / "other"
    for stage in ("cnn", "stem", "stream"):
        shutil.copytree(folder / stage, other / stage)
    config = ["--config", str(folder / "settings.toml"), "--set", "sentence_attention=none"]
    assert main(["train", "all", "--run", str(other), "--quiet", *config, "--workers", "0"]) == 0
    assert json.loads((other / "config.json").read_text())["sentence_attention"] == "none"


@pytest.mark.parametrize(
    "option",
    [
        "--recipe=cub",
        "--init-from=birds-painted",
        "--config=settings.toml",
        "--set=image_size=64",
        "--change=gan.batch_size=4",
        "--settings",
        "--stem-weights=random",
        "--stream-weights=random",
        "--compile",
        "--no-real-row",
        "--no-validation",
    ],
)
def test_options_without_meaning_for_attributes_are_refused(
    option: str, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "attributes", "--data", birds, "--run", tmp_path / "run", option]
    name = option.partition("=")[0]
    expected = f"train attributes: {name} has no meaning here; leave it out"
    assert expected in refusal(capsys, *arguments)
    assert not (tmp_path / "run").exists()


def test_a_run_remembers_its_settings(
    birds: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "run"
    how = ["train", "cnn", "--run", str(folder), "--quiet", "--workers", "0"]
    small = ["--set", "cnn.batch_size=6", "--set", "image_size=32", "--set", "stages=2"]
    assert "needs --data FOLDER" in refusal(capsys, *how)
    assert main([*how, "--data", str(birds), "--set", "cnn.steps=2", *small]) == 0
    assert "use --change" not in caplog.text
    first = load_checkpoint(folder / "cnn")
    assert main(how) == 0  # nothing is left to do
    assert main([*how, "--set", "cnn.steps=3"]) == 0
    assert load_checkpoint(folder / "cnn")["step"] == 3
    line = refusal(capsys, *how, "--set", "cnn.learning_rate=0.5")
    assert "was begun with cnn.learning_rate 0.003, now it is 0.5" in line
    assert "--change cnn.learning_rate=0.5" in line
    assert "learning_rate = 0.003" in (folder / "settings.toml").read_text()
    assert main([*how, "--set", "cnn.steps=5", "--change", "cnn.learning_rate=0.001"]) == 0
    assert "learning_rate was 'its default', from step 3 on it is 0.001" in caplog.text
    (change,) = (folder / "cnn" / "changes.jsonl").read_text().splitlines()
    assert json.loads(change) == {
        "step": 3, "name": "learning_rate", "from": "its default", "to": 0.001,
    }  # fmt: skip
    assert main(how) == 0  # it is the run's learning rate now
    caplog.clear()
    assert main([*how, "--set", "cnn.steps=4"]) == 0
    assert "has 5 steps already, more than the 4 that are asked for" in caplog.text
    # another run from the same settings, until they changed
    other = ["train", "cnn", "--run", str(tmp_path / "other"), "--quiet", "--workers", "0"]
    again = ["--config", str(folder / "settings.toml"), "--set", "cnn.learning_rate=0.003"]
    assert main([*other, *again, "--set", "cnn.steps=2"]) == 0
    second = load_checkpoint(tmp_path / "other" / "cnn")
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name


def test_a_model_is_trained_further_on_other_birds(
    model: Path, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, began = tmp_path / "run", tmp_path / "began"
    shutil.copytree(model, began)
    how = ["--run", str(folder), "--quiet", "--workers", "0", "--no-validation"]
    changes = [
        f"--set={stage}.{name}={value}"
        for stage in ("stem", "stream", "gan")
        for name, value in (("steps", 2), ("batch_size", 6))
    ]
    start = ["--init-from", str(began), "--data", str(birds)]
    assert "stages=3" in refusal(capsys, "train", "all", *start, *how, "--set", "image_size=64")
    changes += ["--set=gan.generator_from=1"]
    assert main(["train", "stem", *start, *how, *changes]) == 0
    assert f"was begun from the model {began}" in refusal(
        capsys, "train", "stream", *how, "--init-from", "birds-painted"
    )
    shutil.rmtree(began)  # the run has its own copy
    assert main(["train", "all", *how]) == 0
    words = MirrorGAN.from_pretrained(folder).vocabulary.words
    assert words[: len(WORDS)] == tuple(WORDS)
    assert "perched" in words
    assert main(["sample", "a perched 鸟", "-o", str(tmp_path / "o"), "--model", str(folder)]) == 0


@pytest.mark.parametrize("recipe", ["attngan-cub", "birds-painted"])
def test_the_settings_are_listed(capsys: pytest.CaptureFixture[str], recipe: str) -> None:
    assert main(["train", "--settings", "--recipe", recipe, "--set", "gan.steps=7"]) == 0
    printed = capsys.readouterr().out
    assert "gan.steps = 7  (a whole number from 1 to 1,000,000,000)\n    Steps of the" in printed
    assert "gan.betas = 0.5,0.999  (two numbers from 0 to below 1)\n" in printed
    assert "  (true or false)\n" in printed
    assert ("stream.steps" in printed) == (recipe == "birds-painted")
    names = [line.split()[0] for line in printed.splitlines() if not line.startswith(" ")]
    assert len(names) == len(set(names))
    lines = printed.splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        assert line.startswith(" ") or below.startswith("    "), f"{line} is not explained"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("gan.steps", "expected NAME=VALUE"),
        ("gan.speed=3", "there is no such setting"),
        ("gan.steps=many", "--set gan.steps=many: expected a whole number"),
        ("gan.betas=0.5", "--set gan.betas=0.5: expected two numbers"),
        ("gan=5", "set one of them, gan.NAME"),
        ("gan.steps.x=3", "--set gan.steps.x: gan.steps is a single setting"),
        ("stem.speed=3", "there are: stem.steps, stem.batch_size"),
        ("gan.betas=0.5,1", "two numbers from 0 to below 1"),
        ("gan.batch_size=1", "batch_size is 1, expected a whole number from 2 to 65,536"),
        ("gan.average_decay=1.5", "expected a number from 0 to 1"),
        ("gan.learning_rate=nan", "expected a number from 0"),
        ("gan.learning_rate=inf", "expected a number from 0"),
        ("caption_length=99999999999999999999", "a whole number from 1 to 1,024"),
        ("seed=" + "9" * 5000, "expected a whole number"),
        ("seed=99999999999999", "expected a whole number from 0 to 1,099,511,627,775"),
        ("gan.steps=0", "steps is 0, expected a whole number from 1"),
        ("image_size=100", "power of two"),
        ("gan.form=ours", "paper, authors"),
    ],
)
def test_bad_settings_are_refused(
    change: str, fault: str, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "cnn", "--data", birds, "--run", tmp_path / "run", "--set", change]
    assert fault in refusal(capsys, *arguments)
    assert files(tmp_path) == []


def test_the_error_for_an_unknown_recipe_lists_the_recipes(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, "train", "cnn", "--data", birds, "--run", tmp_path, "--recipe", "bats")
    assert "birds-painted" in line


def test_the_default_recipe_is_that_for_the_pictures(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of painted birds it is birds-painted, and of others photos, with steps by their number."""

    def listed(*arguments: object) -> set[str]:
        assert main(["train", "--settings", *map(str, arguments)]) == 0
        return {line.partition("  (")[0] for line in capsys.readouterr().out.splitlines()}

    assert {"image_encoder = small", "gan.steps = 15000"} <= listed("--data", birds)
    assert "image_encoder = small" in listed()
    photos = tmp_path / "photos"
    shutil.copytree(birds, photos)
    rows = [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        del row["attributes"]
    (photos / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = {"image_encoder = efficientnet_lite0", "gan.steps = 3000", "gan.decay_steps = 600"}
    assert few <= listed("--data", photos)
    assert few <= listed("--data", birds, "--recipe", "photos")
    assert "gan.steps = 7" in listed("--data", photos, "--set", "gan.steps=7")
    many = for_pictures(find_recipe("photos"), 8_000).settings
    assert isinstance(many, MirrorGANTrainingSettings)
    assert (many.gan.steps, many.gan.batch_size) == (10_000, 32)  # each is seen 40 times


def test_attributes_are_for_their_training_alone(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ["--data", birds, "--run", tmp_path / "run", "--attributes", "crown"]
    assert "--attributes is for train attributes" in refusal(capsys, "train", "stem", *how)
    assert files(tmp_path) == []


def test_only_commands_that_resume_say_so_when_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(options: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    for command in (sample, describe, paint):
        monkeypatch.setattr(command, "_run", stopped)
    assert main(["describe", "bird.png"]) == 130
    assert capsys.readouterr().err == "mirrorgan-fast: stopped\n"
    assert main(["sample", "a bird", "-o", "out"]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    for begins_anew in (
        ["sample", "a bird", "-o", "out.webp", "--walk", "3"],
        ["paint", "birds", "--layout", "cub"],
    ):
        assert main(begins_anew) == 130
        assert capsys.readouterr().err == "mirrorgan-fast: stopped\n"
    assert main(["paint", "birds"]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


def test_a_refusal_by_a_process_that_reads_images_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(options: argparse.Namespace) -> None:
        try:
            raise InputError("a.png: damaged")
        except InputError:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    monkeypatch.setattr(describe, "_run", refused)
    assert main(["describe", "bird.png"]) == 2
    assert capsys.readouterr().err == "mirrorgan-fast: a.png: damaged\n"


def test_without_compiled_kernels_sample_says_why(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sample, "why_not_compiled", lambda: "no compiler")
    command = ["sample", "a red bird", "--model", str(model), "-n", "1", "-o", str(tmp_path)]
    assert main(command) == 0
    assert "without compiled kernels, so slower: no compiler\n" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--quiet"]) == 0
    assert "compiled" not in capsys.readouterr().err


def test_a_closed_standard_output_is_not_an_error() -> None:
    end, other = os.pipe()
    os.close(end)
    command = [sys.executable, "-m", "mirrorgan_fast", "info", "--words"]
    run = subprocess.run(command, stdout=other, stderr=subprocess.PIPE, text=True)
    os.close(other)
    assert (run.returncode, run.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("how", [["info"], ["info", "--words"], ["info", "--json"]])
def test_a_full_disk_at_standard_output_is_reported_in_one_line(how: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run([COMMAND, *how], stdout=full, stderr=subprocess.PIPE, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(b"mirrorgan-fast: standard output: cannot be written (")
    assert result.stderr.count(b"\n") == 1


def test_characters_that_cannot_be_shown_are_escaped(model: Path, tmp_path: Path) -> None:
    """Text outside ASCII must not raise an error after the work is done, on an ASCII terminal."""
    path = tmp_path / "v\u00f6gel\n\x1b[31m.png"
    Image.new("RGB", (8, 8)).save(path)
    undecodable = os.fsencode(tmp_path) + b"/\xff.png"
    os.link(path, undecodable)
    result = subprocess.run(
        [COMMAND, "describe", path, undecodable, "--model", model],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    first, second = result.stdout.splitlines()
    assert b"v\\xf6gel\\n\\x1b[31m.png: " in first
    assert b"\\udcff.png: " in second


def test_out_of_memory_is_reported_in_one_line(model: Path, tmp_path: Path) -> None:
    """Memory may run out anywhere; here it does while weights are read."""
    script = (
        "import resource, sys; from mirrorgan_fast.cli.main import main;"
        "from mirrorgan_fast.cli import describe;"
        "describe.model_of = lambda options: bytearray(2**44);"
        "sys.exit(main(['describe', 'x.png']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 2
    assert result.stderr.startswith("mirrorgan-fast: out of memory; ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORLD_SIZE", "x"), ("RANK", "x"), ("RANK", "-1"), ("RANK", "1"), ("WORLD_SIZE", "9" * 30)],
)
def test_an_odd_environment_is_refused(
    name: str,
    value: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, value)
    line = refusal(capsys, "sample", "a bird", "-o", tmp_path / "o", "--model", model)
    assert f"{name} is '{value[:20]}" in line
    monkeypatch.setenv(name, "")  # the same as unset
    assert main(["sample", "a bird", "-o", str(tmp_path / "o"), "--model", str(model)]) == 0


@pytest.mark.parametrize("part", ["glam", "stream", "image_encoder", "stem"])
def test_nan_weights_are_refused_by_every_command(
    part: str,
    model: Path,
    birds: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damaged = tmp_path / "model"
    shutil.copytree(model, damaged)
    tensors = load_file(damaged / "model.safetensors")
    name = next(n for n in tensors if n.startswith(f"{part}.") and n.endswith("weight"))
    tensors[name].flatten()[0] = float("nan")
    save_file(tensors, damaged / "model.safetensors")
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    for command in (
        ["sample", "a bird", "-o", tmp_path / "out"],
        ["sample", "a bird", "--walk", 3, "-o", tmp_path / "walk.gif"],
        ["export", "--format", "onnx", "-o", tmp_path / "model.onnx"],
        ["describe", picture],
        ["evaluate", "--data", birds],
    ):
        assert f"{name} has NaN" in refusal(capsys, *command, "--model", damaged)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "picture.png"}


def test_large_networks_need_weights_to_begin_with(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = ["train", "stem", "--data", birds, "--run", tmp_path / "run", "--recipe", "cub"]
    line = refusal(capsys, *training, "--set", "stem.batch_size=2")
    assert "inception_v3 has no weights to begin with" in line
    assert "--stem-weights FILE" in line
    assert "--stem-weights random" in line
    assert not (tmp_path / "run").exists()
