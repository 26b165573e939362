"""Two sets of pictures without pairs: the layouts that are read, and the examples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mirrorgan_fast.data.picture_folder import PictureFolder
from mirrorgan_fast.data.prepared_pictures import check_pictures
from mirrorgan_fast.data.unpaired import Unpaired, UnpairedExamples, first_of, open_unpaired
from mirrorgan_fast.errors import InputError


def write(path: Path, gray: int, size: tuple[int, int] = (40, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (gray, gray, gray)).save(path)


def grays(images: object) -> list[int]:
    return [images.image(i).getpixel((0, 0))[0] for i in range(len(images))]  # type: ignore[attr-defined, arg-type]


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """The authors' layout."""
    for name, gray in (("trainA", 10), ("trainB", 20), ("testA", 30), ("testB", 40)):
        for i in range(3 if name == "trainA" else 2):
            write(tmp_path / name / f"{i}.png", gray + i)
    return tmp_path


def test_the_authors_layout(four: Path) -> None:
    train, test = open_unpaired(four), open_unpaired(four, split="test")
    assert (grays(train.x), grays(train.y), train.names) == ([10, 11, 12], [20, 21], ("A", "B"))
    assert (grays(test.x), grays(test.y)) == ([30, 31], [40, 41])


def test_two_folders_are_named_after_themselves(four: Path) -> None:
    (four / "trainA").rename(four / "apples")
    (four / "trainB").rename(four / "oranges")
    unpaired = open_unpaired(four / "apples", four / "oranges")
    assert unpaired.names == ("apples", "oranges")
    assert (grays(unpaired.x), grays(unpaired.y)) == ([10, 11, 12], [20, 21])
    with pytest.raises(InputError, match="apples: has no split 'test'"):
        open_unpaired(four / "apples", four / "oranges", split="test")


def rows(folder: Path, *records: dict[str, object]) -> None:
    lines = []
    for i, record in enumerate(records):
        write(folder / f"{i}.png", i)
        lines.append(json.dumps({"file_name": f"{i}.png", "captions": ["a bird"], **record}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def test_a_field_tells_the_domains_apart(tmp_path: Path) -> None:
    rows(
        tmp_path,
        *({"sky": {"kind": kind}, "split": "train"} for kind in ("day", "night", "dusk", "day")),
        {"sky": {"kind": "night"}, "split": "test"},
        {"sky": {"kind": "day"}, "split": "test"},
        {"sky": "day", "split": "train"},
    )
    train = open_unpaired(tmp_path, domains="sky.kind=day,night")
    assert (grays(train.x), grays(train.y), train.names) == ([0, 3], [1], ("day", "night"))
    test = open_unpaired(tmp_path, domains="sky.kind=day,night", split="test")
    assert (grays(test.x), grays(test.y)) == ([5], [4])
    with pytest.raises(
        InputError, match=r"no picture has the sky\.kind 'noon'; there are: day, dusk"
    ):
        open_unpaired(tmp_path, domains="sky.kind=day,noon")
    with pytest.raises(InputError, match="there are: none at all"):
        open_unpaired(tmp_path, domains="weather=sun,rain")


@pytest.mark.parametrize("domains", ["sky", "sky=day", "sky=day,", "=a,b", "sky=a,a", "sky=a,b,c"])
def test_malformed_domains_are_refused(tmp_path: Path, domains: str) -> None:
    rows(tmp_path, {"sky": "a"}, {"sky": "b"})
    with pytest.raises(InputError, match="expected FIELD=VALUE,VALUE with two values"):
        open_unpaired(tmp_path, domains=domains)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no folder trainA; give a folder with trainA"):
        open_unpaired(tmp_path)
    (tmp_path / "trainA").mkdir()
    with pytest.raises(InputError, match="trainA: has no pictures"):
        open_unpaired(tmp_path)
    with pytest.raises(InputError, match="two folders of pictures need no field"):
        open_unpaired(tmp_path, tmp_path, "a=b,c")


def test_a_picture_folder_takes_pictures_alone(tmp_path: Path) -> None:
    for name in ("b.PNG", "a b.png", "inner/c.png", ".hidden.png", ".cache/d.png"):
        write(tmp_path / name, 5)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "linked").symlink_to(tmp_path / "inner")
    folder = PictureFolder(tmp_path)
    assert [folder.name(i) for i in range(len(folder))] == ["a b.png", "b.PNG", "inner/c.png"]
    assert folder.path(2) == tmp_path / "inner" / "c.png"
    stamp = folder.stamp(0)
    write(tmp_path / "a b.png", 6, (50, 50))
    assert folder.stamp(0) != stamp
    (tmp_path / "b.PNG").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"b\.PNG is not a picture"):
        folder.image(1)


def examples(root: Path, augment: bool, seed: int = 0) -> UnpairedExamples:
    unpaired = open_unpaired(root)
    x, y = (check_pictures(part, 16, augment, captioned=False) for part in unpaired[:2])
    return UnpairedExamples(
        Unpaired(x.images, y.images, unpaired.names), (x.prepared, y.prepared), seed
    )


def test_an_epoch_has_each_picture_of_the_larger_domain(four: Path) -> None:
    made = examples(four, augment=True)
    assert len(made) == 3
    assert made.described() == "3 pictures of A, 2 of B"
    seen, drawn = set(), set()
    for epoch in range(4):
        made.set_epoch(epoch)
        for i in range(3):
            example = made[i]
            assert example["x"].shape == example["y"].shape == (3, 16, 16)
            seen.add((i, int(example["x"][0, 0, 0])))
            drawn.add(int(example["y"][0, 0, 0]))
    assert seen == {(0, 10), (1, 11), (2, 12)}
    assert drawn == {20, 21}


def test_of_a_smaller_first_domain_pictures_come_again(four: Path) -> None:
    for i in (0, 1):
        (four / "trainA" / f"{i}.png").unlink()
    write(four / "trainA" / "0.png", 50)
    made = examples(four, augment=False)
    assert [int(made[i]["x"][0, 0, 0]) for i in range(len(made))] == [50, 12]


def test_examples_depend_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for domain in "AB":
        for i in range(4):
            path = tmp_path / f"train{domain}" / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (24, 30, 3), np.uint8)).save(path)
    one, same, other = (examples(tmp_path, augment=True, seed=seed) for seed in (0, 0, 1))
    first = first_of(one, 8)
    assert first[0].shape == (4, 3, 16, 16)
    assert all(map(torch.equal, first, first_of(same, 8)))
    assert not all(map(torch.equal, first, first_of(other, 8)))
    one.set_epoch(1)
    assert not torch.equal(one[0]["x"], first[0][0])
    assert one.digest() == other.digest()


def test_pictures_that_cannot_be_read_are_left_out(
    four: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (four / "trainA" / "1.png").write_bytes(b"damaged")
    made = examples(four, augment=False)
    assert made.described() == "2 pictures of A, 2 of B"
    assert "left out 1 of 3 pictures" in caplog.text
