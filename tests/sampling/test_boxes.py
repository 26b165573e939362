"""Boxes of captions: read from files and arguments, recorded, checked when a run resumes."""

import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mirrorgan_fast.cli import sample
from mirrorgan_fast.cli.main import main
from mirrorgan_fast.data.painted_birds.data_set import export_image_folder
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.inference.renderer import fuse
from mirrorgan_fast.models.config import GawwnConfig
from mirrorgan_fast.models.gawwn import Gawwn
from mirrorgan_fast.sampling.caption_files import Captions
from mirrorgan_fast.sampling.captions import Record, Refused, parse
from mirrorgan_fast.sampling.journal import read_manifest
from mirrorgan_fast.sampling.ray_data import SampleRows
from mirrorgan_fast.sampling.run import SamplingSettings, sample_to_folder
from mirrorgan_fast.sampling.sampler import Sampler
from tests.small import files, small_gawwn, small_model

BOX = [0.125, 0.25, 0.5, 0.5]
OTHER = [0.5, 0.0, 0.25, 1.0]


@pytest.fixture(scope="module")
def model() -> Gawwn:
    config = GawwnConfig(
        image_size=32,
        generator_channels=8,
        embedding_size=16,
        word_embedding_size=8,
        noise_size=6,
        image_encoder="small",
        kept_boxes=4,
    )
    made = small_gawwn(config)
    made.boxes.copy_(torch.tensor([[0.1 * n, 0.2, 0.3, 0.4] for n in range(4)]))
    return made


@pytest.fixture(scope="module")
def saved(model: Gawwn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gawwn")
    model.save_pretrained(folder)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def drawn(model: Gawwn, row: dict[str, Any]) -> np.ndarray:
    """Return the image that a row of the manifest stands for."""
    given = model.encode([row["caption"]])
    box = row.get("box")
    noises = model.noise(row["seed"], [row["index"]], boxes=[None if box is None else tuple(box)])
    return fuse(model).render(given.tokens, given.lengths, *noises)[0].numpy()


FILES = {
    "a.jsonl": "\n".join(
        json.dumps(each)
        for each in (
            {"caption": "a red bird", "box": BOX},
            {"captions": ["a blue bird", "a green bird"], "box": OTHER},
            {"caption": "a bird", "box": None},
            {"caption": "a bird", "box": [0, 0, 2, 1]},
        )
    ),
    "a.csv": f'caption,box\na red bird,"{BOX}"\na blue bird,"0.5,0, 0.25,1"\n'
    'a green bird,"[0.5,0,0.25,1]"\na bird,\na bird,0.3\n',
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_where_each_bird_is(name: str, model: Gawwn, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name])
    out = tmp_path / "out"
    with Captions.open(tmp_path / name) as captions:
        sample_to_folder(Sampler(model), captions, out, SamplingSettings(per_caption=2, flat=True))
    made = rows(out)
    assert [row.get("box") for row in made] == [BOX] * 2 + [OTHER] * 4 + [None] * 2
    assert ["box" in row for row in made] == [True] * 6 + [False] * 2
    for row in made:
        image = np.asarray(Image.open(out / row["file"]))
        assert np.array_equal(image, drawn(model, row))
    (refused,) = (json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines())
    assert refused["line"] == 5
    assert re.match(r'has a "box" that is none \(expected \[x, y, width, hei', refused["error"])
    # the manifest makes the same images again
    with Captions.open(out / "manifest.jsonl") as captions:
        settings = SamplingSettings(seed=7, flat=True)
        sample_to_folder(Sampler(model), captions, tmp_path / "again", settings)
    again = rows(tmp_path / "again")
    assert [row.get("box") for row in again] == [row.get("box") for row in made]
    for row, other in zip(made, again, strict=True):
        assert (out / row["file"]).read_bytes() == (tmp_path / "again" / other["file"]).read_bytes()


def test_a_run_with_another_box_does_not_resume(model: Gawwn, tmp_path: Path) -> None:
    def made(box: Any, **how: Any) -> int:
        with Captions.of(["a red bird", "a bird"], box) as captions:
            return sample_to_folder(Sampler(model), captions, tmp_path, **how).made

    assert made(tuple(BOX)) == 2
    before = files(tmp_path)
    assert made(tuple(BOX)) == 0
    for other in (tuple(OTHER), None):
        with pytest.raises(InputError, match="line 1: has changed since"):
            made(other)
    assert files(tmp_path) == before
    assert made(tuple(OTHER), overwrite=True) == 2
    assert [row["box"] for row in read_manifest(tmp_path, 9)] == [OTHER] * 2


def test_kept_boxes_belong_to_what_a_run_is_made_of(model: Gawwn, tmp_path: Path) -> None:
    other = Gawwn(model.config, model.vocabulary).eval()
    other.load_state_dict(model.state_dict())
    other.boxes[2, 3] = 0.5
    for number, each in enumerate((model, other)):
        with Captions.of(["a bird"]) as captions:
            if number:
                with pytest.raises(InputError, match="has images of model"):
                    sample_to_folder(Sampler(each), captions, tmp_path)
            else:
                sample_to_folder(Sampler(each), captions, tmp_path)


@pytest.mark.parametrize("box", [[0.5, 0, 0.6, 1], [0, 0, 1], "here", [0, 0, True, 1]])
def test_a_journal_with_what_is_no_box_is_refused(box: Any, model: Gawwn, tmp_path: Path) -> None:
    with Captions.of(["a red bird"], tuple(BOX)) as captions:
        sample_to_folder(Sampler(model), captions, tmp_path)
        shard = tmp_path / ".progress" / "00000.jsonl"
        row = shard.read_bytes()[9:].replace(json.dumps(BOX).encode(), json.dumps(box).encode())
        shard.write_bytes(b"%08x " % zlib.crc32(row, zlib.crc32(b"0")) + row)
        with pytest.raises(InputError, match='line 1: has the "box" '):
            sample_to_folder(Sampler(model), captions, tmp_path)


def test_systems_without_boxes_ignore_those_in_files(tmp_path: Path) -> None:
    """As all other fields, so that a data set of theirs can be given."""
    record = Record({"caption": "a bird", "box": "anything"}, "")
    found = parse(1, record, seed=0, per_caption=1)
    assert not isinstance(found, Refused)
    assert found.first.box is None
    assert isinstance(parse(1, record, seed=0, per_caption=1, boxes=True), Refused)
    export_image_folder(tmp_path / "birds", 2, 0, 64, workers=1, progress=False)
    with Captions.open(tmp_path / "birds" / "metadata.jsonl") as captions:
        done = sample_to_folder(Sampler(small_model()), captions, tmp_path / "out")
    assert (done.images, done.refused) == (20, 0)


def test_rows_of_ray_data_have_boxes(saved: Path, model: Gawwn) -> None:
    columns = {
        "caption": np.array(["a red bird", "a bird"]),
        "index": np.array([4, 5]),
        "box": np.array([BOX, [0, 0, 2, 1]]),
    }
    made = SampleRows(str(saved), device="cpu")(columns)
    row = {"caption": "a red bird", "seed": 0, "index": 4, "box": BOX}
    assert np.array_equal(made["image"][0], drawn(model, row))
    assert made["error"][0] == ""
    assert made["error"][1].startswith('has a "box" that is none')


# --- the command line


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mirrorgan-fast: ")
    assert said.count("\n") == 1
    return said


def test_the_command_draws_in_a_box(saved: Path, model: Gawwn, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["sample", "a red bird", "a bird", "-n", "2", "--model", str(saved), "-o", str(out)]
    assert main([*given, "--box", "0.125,0.25,0.5,0.5"]) == 0
    assert [row["box"] for row in rows(out)] == [BOX] * 4
    for row in rows(out):
        assert np.array_equal(np.asarray(Image.open(out / row["file"])), drawn(model, row))
    assert main([*given, "--overwrite"]) == 0
    assert not any("box" in row for row in rows(out))


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ("0.1,0.2,0.3", "argument --box: found '0.1,0.2,0.3', expected [x, y, width, height]"),
        ("a,b,c,d", "found 'a,b,c,d', expected"),
        ("0,0,nan,1", "expected"),
        ("0.5,0,0.6,1", "x + width and y + height at most 1"),
        ("0.5,0,0,1", "width and height at least 0.01"),
        ("10,20,30,40", "in shares of the picture"),
    ],
)
def test_bad_boxes_are_refused(
    box: str, fault: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("sample", "a bird", "--model", saved, "-o", tmp_path / "out", "--box", box)
    assert fault in refusal(capsys, *command)
    assert not (tmp_path / "out").exists()


def test_boxes_without_meaning_are_refused(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_model().save_pretrained(tmp_path / "other")
    (tmp_path / "a.txt").write_text("a bird\n")
    box, walk = ("--box", "0,0,1,1"), ("--walk", 3, "-o", tmp_path / "walk.webp")
    other = ("sample", "a bird", "--model", tmp_path / "other", *box)
    for where in (("-o", tmp_path / "out"), walk):
        assert "a mirrorgan model takes no box: it does not place" in refusal(
            capsys, *other, *where
        )
    ours = ("--model", saved, *box)
    said = refusal(
        capsys, "sample", "--captions", tmp_path / "a.txt", *ours, "-o", tmp_path / "out"
    )
    assert '--box is for captions that are arguments; a "box" in the lines of a file' in said
    said = refusal(capsys, "sample", "a bird", *ours, *box, "-o", tmp_path / "out")
    assert "--box can be given twice only with --walk" in said
    said = refusal(capsys, "sample", "a bird", *ours, *box, *box, *walk)
    assert "a walk goes between one or two boxes, found 3" in said
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "walk.webp").exists()


def test_a_walk_moves_a_bird_across_the_picture(
    saved: Path, model: Gawwn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[np.ndarray] = []
    write = sample.write_walk

    def keep_and_write(path: Path, images: np.ndarray) -> None:
        made.append(images)
        write(path, images)

    monkeypatch.setattr(sample, "write_walk", keep_and_write)
    path = tmp_path / "walk.webp"
    boxes = ["--box", "0,0.25,0.5,0.5", "--box", "0.5,0.25,0.5,0.5"]
    command = ["sample", "a red bird", "--walk", "5", "--model", str(saved), "-o", str(path)]
    assert main([*command, *boxes]) == 0
    with Image.open(path) as animation:
        assert animation.n_frames == 8  # back and forth
    at = {"caption": "a red bird", "seed": 0, "index": 0}
    for frame, x in zip(made[0], (0.0, 0.125, 0.25, 0.375, 0.5), strict=True):
        expected = drawn(model, {**at, "box": [x, 0.25, 0.5, 0.5]})
        assert np.abs(frame.astype(int) - expected).mean() < 1.5  # of plain layers
