"""Public repositories become image folders whose captions name what the pictures show."""

import csv
import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageDraw

from mirrorgan_fast.cli.main import main
from mirrorgan_fast.data.captioned_images import Caption
from mirrorgan_fast.data.image_folder import ImageFolder
from mirrorgan_fast.data.layouts import open_images
from mirrorgan_fast.data.prepare import writer
from mirrorgan_fast.data.prepare.clothing import GARMENTS, Clothing
from mirrorgan_fast.data.prepare.colors import COLORS, measure_colors, nearest_color
from mirrorgan_fast.data.prepare.held_out import held_out_pairs
from mirrorgan_fast.data.prepare.lab import to_lab
from mirrorgan_fast.data.prepare.phrases import different, rng_of, with_article
from mirrorgan_fast.data.prepare.squares import fruit_square, garment_square
from mirrorgan_fast.data.prepare.subject import GRID, subject_probability
from mirrorgan_fast.data.prepare.watercolors import FRUITS, Watercolors
from mirrorgan_fast.data.prepare.writer import Report, prepare
from mirrorgan_fast.errors import InputError

PAPER = (250, 243, 225)
WOOD = (192, 154, 108)
RGB = {
    "red": (200, 32, 40), "blue": (50, 100, 190), "black": (25, 24, 26), "white": (240, 240, 242),
    "green": (70, 150, 80), "yellow": (235, 210, 60), "gray": (135, 136, 138),
    "dark blue": (32, 48, 92), "pink": (235, 140, 170), "purple": (110, 50, 135),
    "orange": (238, 125, 40), "turquoise": (50, 182, 182), "dark green": (36, 72, 46),
    "beige": (216, 190, 155), "dark red": (110, 26, 38), "brown": (105, 70, 48),
    "light brown": (180, 138, 92), "light blue": (160, 198, 230),
}  # fmt: skip


def noisy(picture: Image.Image, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 3, (picture.height, picture.width, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def garment(
    color: str, size: tuple[int, int] = (90, 120), ground: tuple[int, int, int] = WOOD
) -> Image.Image:
    """A rectangle with sleeves in front of a plain background."""
    picture = Image.new("RGB", size, ground)
    draw = ImageDraw.Draw(picture)
    width, height = size
    for box in ((0.3, 0.2, 0.7, 0.8), (0.2, 0.2, 0.8, 0.35)):
        left, top, right, bottom = box
        where = (left * width, top * height, right * width, bottom * height)
        draw.rectangle(where, RGB[color])
    return noisy(picture)


def page(color: str, half: bool = True) -> Image.Image:
    """A fruit on a page with a dark edge, with its pale half below."""
    picture = Image.new("RGB", (127, 192), (10, 8, 8))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((4, 4, 121, 186), PAPER)
    draw.ellipse((38, 20, 88, 68), RGB[color])
    if half:
        draw.ellipse((38, 95, 88, 140), (225, 205, 130), outline=RGB[color], width=2)
    return noisy(picture)


def write_table(path: Path, rows: list[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


LABELS = ("T-Shirt", "Pants", "Dress")


def clothing_in(root: Path, backwards: bool = False) -> Path:
    """A small clothing dataset: each of three garments in each of four colors, six times."""
    rows: list[tuple[str, ...]] = []
    (root / "images").mkdir(parents=True)
    for label in LABELS:
        for color in ("red", "blue", "black", "white"):
            for number in range(6):
                name = f"{label}-{color}-{number}"
                rows.append((name, "1", label, str(number == 0)))
    for name, _, label, _ in reversed(rows) if backwards else rows:
        color = name.removeprefix(label).split("-")[1]
        garment(color).save(root / "images" / f"{name}.jpg", quality=95)
    header = ("image", "sender_id", "label", "kids")
    write_table(root / "images.csv", [header, *(rows[::-1] if backwards else rows)])
    return root


def add_row(root: Path, *fields: str) -> None:
    with (root / "images.csv").open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(fields)


def watercolors_in(root: Path) -> Path:
    """A small copy of the watercolors: red and yellow apples, purple plums, and nuts."""
    rows = [("", "authors", "fruit", "subjects")]
    (root / "data/images").mkdir(parents=True)
    for number in range(30):
        kind, subject = ("Malus domestica: Jonathan", "Malus domestica , apples")
        color = ("red", "yellow", "green")[number % 3]
        if number >= 18:
            kind, subject = ("Prunus domestica: No", "Prunus domestica , plums")
            color = ("purple", "red")[number % 2]
        if number >= 28:
            kind, subject = ("Carya", "Carya , hickory")
        rows.append(("0", "Somebody, 1873-1955\n", kind, subject))
        page(color).save(root / "data/images" / f"image-{number}.jpg", quality=95)
    write_table(root / "data/usda_pomological_watercolors.csv", rows)
    return root


@pytest.fixture(scope="module")
def clothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clothing_in(tmp_path_factory.mktemp("clothing") / "repository")


@pytest.fixture(scope="module")
def prepared(clothing: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    output = tmp_path_factory.mktemp("prepared") / "out"
    return output, prepare(Clothing(), clothing, output, workers=1, progress=False)


def rows_of(output: Path) -> list[dict[str, Any]]:
    lines = (output / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def hashes(output: Path) -> dict[str, str]:
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }


# --- colors


def test_cielab_is_that_of_littlecms() -> None:
    """Of Pillow: its L*, a* and b* are rounded to 8 bits and have the white D50."""
    levels = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    transform = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    converted = ImageCms.applyTransform(Image.fromarray(levels), transform)
    assert converted is not None
    bands = [np.frombuffer(band.tobytes(), np.uint8) for band in converted.split()]
    lightness = bands[0].reshape(20, 20) * (100 / 255)
    a, b = (band.reshape(20, 20).astype(float) - 128 for band in bands[1:])
    found = to_lab(levels)
    assert np.abs(found[..., 0] - lightness).max() < 3  # the whites differ
    hue = np.arctan2(found[..., 2], found[..., 1]) - np.arctan2(b, a)
    colored = np.hypot(a, b) > 30
    assert np.abs(np.angle(np.exp(1j * hue)))[colored].max() < 0.35


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [  # calculated with another program (CIE 15, D65)
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 0, 0), (53.2408, 80.0925, 67.2032)),
        ((0, 255, 0), (87.7347, -86.1827, 83.1793)),
        ((0, 0, 255), (32.2970, 79.1875, -107.8602)),
        ((119, 119, 119), (50.0344, 0.0, 0.0)),
    ],
)
def test_cielab_of_known_colors(rgb: tuple[int, ...], expected: tuple[float, ...]) -> None:
    assert to_lab(rgb) == pytest.approx(expected, abs=0.02)


def test_each_sample_has_its_own_name() -> None:
    for name, samples in COLORS.items():
        for code in samples.split():
            assert nearest_color(to_lab(list(bytes.fromhex(code)))) == name


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (256, 256), (90, 120)])
@pytest.mark.parametrize("color", ["red", "blue", "black", "white", "green", "yellow"])
def test_a_garment_and_its_background_are_named(color: str, size: tuple[int, int]) -> None:
    measured = measure_colors(np.asarray(garment(color, size)))
    assert measured == (color, None, "light brown", False)


@pytest.mark.parametrize("color", RGB)
def test_each_color_is_measured(color: str) -> None:
    ground = RGB["white"] if color != "white" else RGB["red"]
    measured = measure_colors(np.asarray(garment(color, (96, 96), ground)))
    assert (measured.main, measured.second) == (color, None)
    assert measured.background == ("white" if color != "white" else "red")


def two_colored(colors: tuple[str, ...], size: int = 128) -> NDArray[np.uint8]:
    picture = Image.new("RGB", (size, size), WOOD)
    draw = ImageDraw.Draw(picture)
    high = size * 0.6 / len(colors)
    for number, color in enumerate(colors):
        top = size * 0.2 + number * high
        draw.rectangle((size * 0.25, top, size * 0.75, top + high), RGB[color])
    return np.asarray(noisy(picture))


@pytest.mark.parametrize("size", [64, 256])
def test_two_colors_are_named(size: int) -> None:
    measured = measure_colors(two_colored(("red", "white"), size))
    assert {measured.main, measured.second} == {"red", "white"}


def test_a_garment_of_many_colors_has_no_main_color() -> None:
    colors = ("red", "green", "blue", "yellow", "black", "white", "pink", "turquoise")
    assert measure_colors(two_colored(colors)) == (None, None, "light brown", True)


def test_a_color_between_gray_and_blue_is_not_named() -> None:
    picture = Image.new("RGB", (96, 96), WOOD)
    ImageDraw.Draw(picture).rectangle((28, 20, 68, 76), (126, 133, 143))
    assert measure_colors(np.asarray(picture)) == (None, None, "light brown", False)


def test_a_small_print_does_not_hide_the_color() -> None:
    picture = garment("blue", (128, 128))
    ImageDraw.Draw(picture).rectangle((54, 50, 72, 66), RGB["yellow"])
    assert measure_colors(np.asarray(picture))[:2] == ("blue", None)


def test_a_motley_background_is_not_named() -> None:
    picture = garment("white", (128, 128))
    stripes = np.asarray(picture).copy()
    for left in range(0, 128, 16):
        around = np.zeros((128, 128), bool)
        around[:, left : left + 8] = True
        around[20:108, 20:108] = False
        stripes[around] = RGB["blue"]
    assert measure_colors(stripes).background is None


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros(3)])
def test_what_is_no_picture_cannot_be_measured(image: Any) -> None:
    with pytest.raises(InputError, match="wanted uint8"):
        measure_colors(image)


def test_pictures_of_one_color_and_of_one_pixel_can_be_measured() -> None:
    assert measure_colors(np.full((1, 1, 3), 255, np.uint8))[:2] == ("white", None)
    assert measure_colors(np.zeros((70, 50, 3), np.uint8)) == ("black", None, "black", False)


def test_the_subject_is_found() -> None:
    probability = subject_probability(np.asarray(garment("red", (128, 128))))
    shown = np.zeros((GRID, GRID), bool)
    shown[7:25, 11:21] = True
    assert (probability[shown] > 0.8).mean() > 0.9
    assert (probability[:, :4] < 0.2).all()


# --- squares


@pytest.mark.parametrize("turned", [False, True])
def test_a_long_garment_is_not_cut(turned: bool) -> None:
    picture = Image.new("RGB", (90, 120), WOOD)
    ImageDraw.Draw(picture).rectangle((30, 6, 60, 113), RGB["blue"])
    if turned:
        picture = picture.transpose(Image.Transpose.ROTATE_90)
    square = np.asarray(garment_square(picture))
    assert square.shape[0] == square.shape[1] > 110
    blue = (square == RGB["blue"]).all(axis=-1)
    assert blue.sum() == 31 * 108
    assert ((square == WOOD).all(axis=-1) | blue).all()  # mirrored, not filled


@pytest.mark.parametrize("top", [50, 65, 80])
def test_the_square_follows_a_garment_and_does_not_double_it(top: int) -> None:
    picture = Image.new("RGB", (90, 180), WOOD)
    ImageDraw.Draw(picture).rectangle((20, top, 70, top + 50), RGB["red"])
    square = np.asarray(garment_square(noisy(picture))).astype(int)
    red = square[..., 0] - square[..., 1] > 100
    assert square.shape[0] == square.shape[1]
    assert red.sum() == 51 * 51


@pytest.mark.parametrize("size", [(90, 120), (120, 90), (40, 4000), (90, 90)])
def test_any_picture_becomes_a_square(size: tuple[int, int]) -> None:
    square = garment_square(Image.new("RGB", size, RGB["blue"]))
    assert min(size) <= square.width == square.height <= 2 * min(size)


@pytest.mark.parametrize("half", [False, True])
def test_the_upper_fruit_is_cropped(half: bool) -> None:
    square = fruit_square(page("red", half))
    assert square is not None
    pixels = np.asarray(square).astype(int)
    red = pixels[..., 0] - pixels[..., 1] > 100
    rows, columns = np.flatnonzero(red[:-8].any(axis=1)), np.flatnonzero(red[:-8].any(axis=0))
    assert 60 <= square.width == square.height <= 75
    for lines in (rows, columns):
        assert abs(lines.mean() - square.width / 2) < 4
    assert pixels.min(axis=-1).max() > 100  # paper is there
    assert (pixels.sum(axis=-1) > 100).all()  # and not the dark edge


def test_two_fruits_that_touch_are_parted() -> None:
    picture = Image.new("RGB", (127, 192), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((38, 30, 88, 80), RGB["red"])
    draw.ellipse((38, 79, 88, 129), RGB["orange"])
    square = fruit_square(picture)
    assert square is not None
    assert measure_colors(np.asarray(square)).main == "red"
    assert square.width < 80


@pytest.mark.parametrize("what", ["nothing", "branch", "reaching the edge", "scattered"])
def test_a_page_without_a_whole_fruit_has_no_square(what: str) -> None:
    picture = Image.new("RGB", (127, 192), PAPER)
    draw = ImageDraw.Draw(picture)
    if what == "branch":
        draw.rectangle((60, 30, 70, 150), RGB["brown"])
    elif what == "reaching the edge":
        draw.ellipse((-20, 40, 60, 120), RGB["red"])
    elif what == "scattered":
        draw.line([(30, 30), (90, 30), (90, 90), (30, 90), (30, 40)], RGB["brown"], 4)
    assert fruit_square(picture) is None


# --- the folder


def test_the_folder_can_be_trained_on(prepared: tuple[Path, Report]) -> None:
    output, report = prepared
    train, test = open_images(output, "train"), open_images(output, "test")
    assert (len(train), len(test)) == (report.pictures["train"], report.pictures["test"])
    assert len(train) + len(test) == 72
    assert train.image(0).size == train.size(0)
    assert len(set(train.captions(0))) == 10


def test_captions_name_what_the_picture_shows(prepared: tuple[Path, Report]) -> None:
    output, _ = prepared
    nouns = {label: words for label, (_, *words) in GARMENTS.items()}
    said: Counter[str] = Counter()
    for row in rows_of(output):
        label, color, number = row["file_name"][7:-4].rsplit("-", 2)
        assert row["attributes"] == {
            "garment": GARMENTS[label][0],
            "color": color,
            "second_color": None,
            "several_colors": False,
            "background": "light brown",
            "child": number == "0",
        }
        assert row["table"] == {"label": label, "kids": str(number == "0")}
        assert row["source"] == "clothing"
        for caption, named_in_it in zip(row["captions"], row["named"], strict=True):
            with_background = {"background": "light brown"} if "background" in caption else {}
            facts = {"garment": GARMENTS[label][0], "color": color}
            assert named_in_it == facts | with_background
            said[re.sub("|".join(nouns[label]), "", caption).replace(color, "")] += 1
            assert any(noun in caption for noun in nouns[label])
            assert re.search(rf"\b{color}\b", caption)
            named = re.sub("light brown background|background is light brown", "", caption)
            others = set(RGB) - {color, "beige"}
            assert not [other for other in others if re.search(rf"\b{other}\b", named)]
            assert ("child" in caption) == (number == "0")
            assert not re.search(r"\ban [^aeiou]|\ba [aeiou]|  |\bis pants|\bare a\b", caption)
    assert len(said) > 30


def test_the_test_split_has_pairs_that_training_never_sees(prepared: tuple[Path, Report]) -> None:
    output, report = prepared
    pairs: dict[str, set[tuple[str, str]]] = {"train": set(), "test": set()}
    for row in rows_of(output):
        attributes = row["attributes"]
        pairs[row["split"]].add((attributes["garment"], attributes["color"]))
    assert pairs["test"] == set(report.held_out)
    assert pairs["test"]
    assert not pairs["train"] & pairs["test"]
    for position in (0, 1):
        seen = {pair[position] for pair in pairs["train"]}
        assert {pair[position] for pair in pairs["test"]} <= seen
    assert 0.05 <= report.pictures["test"] / 72 <= 0.1


def test_the_files_depend_on_nothing_but_the_repository(
    prepared: tuple[Path, Report], tmp_path: Path
) -> None:
    backwards = clothing_in(tmp_path / "backwards", backwards=True)
    prepare(Clothing(), backwards, tmp_path / "again", workers=2, progress=False)
    assert hashes(tmp_path / "again") == hashes(prepared[0])


def test_colors_can_be_measured_again(prepared: tuple[Path, Report]) -> None:
    images = ImageFolder(prepared[0])
    for index in range(0, len(images), 9):
        measured = measure_colors(np.asarray(images.image(index)))
        attributes = images.record(index)["attributes"]
        assert measured.main == attributes["color"]
        assert measured.background == attributes["background"]


def test_pictures_are_scaled_down(clothing: Path, tmp_path: Path) -> None:
    prepare(Clothing(), clothing, tmp_path / "out", size=64, workers=1, progress=False)
    images = ImageFolder(tmp_path / "out")
    assert {images.size(index) for index in range(len(images))} == {(64, 64)}


def test_paintings_of_fruit(tmp_path: Path) -> None:
    report = prepare(
        Watercolors(), watercolors_in(tmp_path / "in"), tmp_path / "out", workers=1, progress=False
    )
    assert report.unused == {"rows with another or a rare subject": 2}
    assert report.faults == []
    rows = {row["file_name"]: row for row in rows_of(tmp_path / "out")}
    assert len(rows) == 28
    apple = rows["images/image-1.jpg"]["attributes"]
    assert apple == {"fruit": "apple", "variety": "Jonathan", "skin": "yellow", "second_skin": None}
    plum = rows["images/image-20.jpg"]["attributes"]
    assert plum == {"fruit": "plum", "variety": None, "skin": "purple", "second_skin": None}
    for row in rows.values():
        attributes = row["attributes"]
        assert len(set(row["captions"])) == 10
        assert (row["source"], {*map(str, row["named"])}) == (
            "watercolors",
            {str({"fruit": attributes["fruit"], "skin": attributes["skin"]})},
        )
        for caption in row["captions"]:
            assert attributes["fruit"] in caption
            assert attributes["skin"] in caption
            assert "No plum" not in caption
            assert not re.search(r"\ban [^aeiou]|\ba [aeiou]|  ", caption)
    assert any("Jonathan" in caption for caption in rows["images/image-1.jpg"]["captions"])


# --- captions and splits


@pytest.mark.parametrize("garment_name", [name for name, *_ in GARMENTS.values()])
@pytest.mark.parametrize("child", [False, True])
@pytest.mark.parametrize(("color", "several"), [(None, False), (None, True), ("orange", False)])
def test_any_garment_has_ten_captions(
    garment_name: str, child: bool, color: str | None, several: bool
) -> None:
    attributes = {"garment": garment_name, "color": color, "second_color": None}
    asserted = Clothing().captions(
        {**attributes, "several_colors": several, "background": None, "child": child},
        np.random.default_rng(0),
    )
    facts = {"garment": garment_name} | ({} if color is None else {"color": color})
    assert all(caption.named == facts for caption in asserted)
    captions = [caption.text for caption in asserted]
    words_for_several = {"patterned", "multicolored", "colorful"}
    assert any(words_for_several & {*caption.split()} for caption in captions) == several
    assert len(set(captions)) == 10
    plural = garment_name in ("pants", "shoes", "shorts")
    for caption in captions:
        assert not re.search(r"\ban [^aeiou]|\ba [aeiou]|  |None|^ | $", caption)
        words = caption.split()
        assert len(words) <= 18
        if plural and "pair" not in words:
            assert not {"is", "this", "a"} & set(
                re.sub(r"\ba p\w+ of|there are", "", caption).split()
            )
        if not plural:
            assert not {"are", "these"} & set(words)


@pytest.mark.parametrize("fruit", FRUITS.values())
def test_any_fruit_has_ten_captions(fruit: str) -> None:
    for skin, second in ((None, None), ("orange", None), ("red", "yellow")):
        asserted = Watercolors().captions(
            {"fruit": fruit, "variety": None, "skin": skin, "second_skin": second},
            np.random.default_rng(0),
        )
        facts = {"fruit": fruit} | ({"skin": skin} if skin and not second else {})
        assert all(caption.named == facts for caption in asserted)
        captions = [caption.text for caption in asserted]
        assert len(set(captions)) == 10
        for caption in captions:
            assert not re.search(r"\ban [^aeiou]|\ba [aeiou]|  |None|\ba grapes", caption)


def test_captions_depend_on_name_and_content() -> None:
    def captions(name: str, content: bytes) -> list[Caption]:
        def sentence(rng: np.random.Generator) -> Caption:
            return Caption(str(rng.integers(10**6)), {})

        return different(sentence, rng_of(name, content))

    assert captions("a", b"x") == captions("a", b"x")
    assert captions("a", b"x") != captions("b", b"x")
    assert captions("a", b"x") != captions("a", b"y")
    assert (with_article("orange hat"), with_article("hat")) == ("an orange hat", "a hat")


def test_pairs_are_held_out_in_any_order() -> None:
    rng = np.random.default_rng(0)
    pictures = [
        frozenset({("abcdef"[rng.integers(6)], "uvwxyz"[int(rng.integers(6) * rng.random())])})
        for _ in range(600)
    ]
    pictures += [frozenset({("alone", "u")})] * 20 + [frozenset({("a", "rare")})] * 20
    pictures += [frozenset()] * 10 + [frozenset({("a", "u"), ("a", "v")})] * 20
    held = held_out_pairs(pictures)
    assert held == held_out_pairs(pictures[::-1])
    test = [pairs for pairs in pictures if pairs & held]
    train = [pairs for pairs in pictures if not pairs & held]
    assert 0.05 * len(pictures) < len(test) <= 0.1 * len(pictures)
    assert not {pair for pairs in train for pair in pairs} & held
    for position in (0, 1):
        words = Counter(pair[position] for pairs in pictures for pair in pairs)
        kept = Counter(pair[position] for pairs in train for pair in pairs)
        assert all(kept[word] > 0 for word in words)
    assert not [pair for pair in held if "alone" in pair or "rare" in pair]


def test_nothing_is_held_out_of_too_little() -> None:
    assert held_out_pairs([]) == frozenset()
    assert held_out_pairs([frozenset({("a", "u")})] * 50) == frozenset()
    assert held_out_pairs([frozenset({(str(i), "u"), (str(i), "v")}) for i in range(9)]) == set()


# --- bad input


def test_what_is_damaged_is_left_out_and_named(tmp_path: Path) -> None:
    root = clothing_in(tmp_path / "in")
    secret = tmp_path / "secret.jpg"
    garment("red").save(secret)
    (root / "images/link.jpg").symlink_to(secret)
    (root / "images/damaged.jpg").write_bytes(b"\xff\xd8 no more")
    (root / "images/program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (root / "images/folder.jpg").mkdir()
    os.mkfifo(root / "images/pipe.jpg")
    Image.new("RGB", (9, 90)).save(root / "images/small.jpg")
    Image.new("1", (65_000, 1_000)).save(root / "images/bomb.jpg", "PNG")
    for name in ("link", "damaged", "program", "folder", "pipe", "small", "bomb", "missing"):
        add_row(root, name, "1", "Hat", "False")
    add_row(root, "../secret", "1", "Hat", "False")
    add_row(root, str(secret.with_suffix("")), "1", "Hat", "False")
    add_row(root, "a\0b", "1", "Hat", "False")
    add_row(root, "T-Shirt-red-1", "1", "Hat", "False")
    add_row(root, "spaceship", "1", "Spaceship", "False")
    add_row(root, "short")
    add_row(root, "unsure", "1", "Not sure", "False")
    report = prepare(Clothing(), root, tmp_path / "out", workers=1, progress=False)
    assert sum(report.pictures.values()) == 72
    assert report.unused == {
        'rows with the label "Not sure"': 1,
        "pictures without a row": 0,
    }
    assert len(report.faults) == 14
    for fault in (
        "images.csv, row 81: '../secret' is not the name",
        "images.csv, row 84: picture T-Shirt-red-1 has a row already",
        "'Spaceship' and kids 'False', wanted a garment",
        "link: there is no regular file link.jpg",
        "missing: there is no regular file",
        "small: has 9 x 90 pixels, too few",
        "bomb.jpg has 65,000 x 1,000 pixels, more than the limit",
    ):
        assert any(fault in found for found in report.faults), fault
    assert not [row for row in rows_of(tmp_path / "out") if row["attributes"]["garment"] == "hat"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"image,label\nx,Hat\n", "wanted the clothing dataset"),
        (b"", "wanted the clothing dataset"),
        (b"image,label,kids\n\xff\xfe,Hat,False\n", "not UTF-8 text"),
        (b"image,label,kids\n" + b"x" * 200_000 + b",Hat,False\n", "field larger than field limit"),
        (b"image,label,kids\n" + b"x" * 2**25, "has more than 33,554,432 bytes"),
        (b"image,label,kids\n", "no picture can be used"),
        (b"image,label,kids\nx,Hat,False\n", "no picture can be used .x: there is no regular"),
    ],
)
def test_a_bad_table_is_refused(content: bytes, fault: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/images.csv").write_bytes(content)
    with pytest.raises(InputError, match=fault) as caught:
        prepare(Clothing(), tmp_path / "in", tmp_path / "out", workers=1, progress=False)
    assert str(caught.value).isprintable()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"size": 63}, "size must be 64 to 1,024, not 63"),
        ({"size": 64.0}, "size must be 64"),
        ({"workers": 0}, "workers must be 1 to 1,024, not 0"),
    ],
)
def test_arguments_out_of_range(changes: dict[str, Any], fault: str, clothing: Path) -> None:
    with pytest.raises(InputError, match=fault):
        prepare(Clothing(), clothing, clothing.parent / "out", progress=False, **changes)
    assert not (clothing.parent / "out").exists()


# --- the command


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["data", "prepare", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_prints_what_it_did(
    clothing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    status, out, err = command(capsys, "clothing", clothing, output, "--workers=1", "--quiet")
    assert (status, err) == (0, "")
    assert re.search(r"out: \d\d pictures to train and \d to test\nonly in test: ", out)
    before = hashes(output)
    status, _, err = command(capsys, "clothing", clothing, output, "--quiet")
    assert status == 2
    assert "not an empty folder" in err
    assert hashes(output) == before


def test_the_command_names_twenty_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = clothing_in(tmp_path / "in")
    for number in range(23):
        add_row(root, f"missing\x1b{number}", "1", "Hat", "False")
    _, out, err = command(capsys, "clothing", root, tmp_path / "out", "--workers=1", "--quiet")
    assert err.count("left out: ") == 21
    assert "left out: 3 more" in err
    assert "missing or damaged: 23" in out
    assert "\x1b" not in err + out


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("clothing", "github.com/alexeygrigorev/clothing-dataset"),
        ("watercolors", "github.com/jwilber/USDA_Pomological_Watercolors"),
    ],
)
def test_another_folder_is_refused_in_one_line(
    name: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        status, out, err = command(capsys, name, path, tmp_path / "out")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert source in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "REPOSITORY"),
        (["cars", "a", "b"], "invalid choice: 'cars'"),
        (["clothing", "a"], "output"),
        (["clothing", "a", "b", "--size", "0"], "from 1 to"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(
    arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = command(capsys, *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("mirrorgan-fast: ")
    assert fault in err


def test_a_stopped_command_leaves_nothing(
    clothing: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(work: Any, jobs: Any, count: int) -> Any:
        yield work(jobs[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "in_processes", stopped)
    status, _, err = command(capsys, "clothing", clothing, tmp_path / "out", "--quiet")
    assert (status, err) == (130, "mirrorgan-fast: stopped\n")
    assert list(tmp_path.iterdir()) == []
