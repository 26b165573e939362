"""Reading and writing Caltech-UCSD Birds in the folder layout that AttnGAN and MirrorGAN share.

The root folder contains ``{train,test}/filenames.pickle`` (names of pictures without ".jpg") and
``class_info.pickle`` (their classes), ``text/<name>.txt`` (one caption per line) and
``CUB_200_2011`` as its authors publish it (``images.txt``, ``bounding_boxes.txt``, ``images/``).
Pickles are read without running any code in them.
"""

import io
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from PIL import Image
from tqdm import tqdm

from mirrorgan_fast.boxes import Box, clipped, part_of
from mirrorgan_fast.data.captioned_images import CaptionedImages
from mirrorgan_fast.data.checks import (
    file_stamp,
    is_integer_of_64_bits,
    is_text,
    leads_out,
    no_such_file,
    same_looking,
    shown,
)
from mirrorgan_fast.data.plain_pickle import read_plain_pickle
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import StrPath, read_file, reason, whole_folder
from mirrorgan_fast.pictures import MAX_PIXELS, crop, read_picture, size_of_picture
from mirrorgan_fast.vocabulary import Vocabulary

Value = TypeVar("Value")

PUBLISHED = "CUB_200_2011"
_LARGEST_TABLE = 2**25  # bytes; 0.6 MB for CUB's 11,788 pictures, 30 MB for a million painted ones
_LONGEST_LINE = 2**13  # characters; a path has up to half as many
_LARGEST_TEXT = 2**20  # bytes for the captions of one picture; 0.7 kB for CUB's
_MAX_CAPTION_MEMORY = 3 * 2**28  # bytes of memory for all captions; 16 MB for CUB's
_STRING_OVERHEAD = 64  # bytes that a string takes in addition to its characters
_MAX_COORDINATE = 2**31  # pixels; limit of the position and size of a box


class CubFolder(CaptionedImages):
    """The birds of one split, each cropped around its bounding box.

    The crop is a square around the center of the box, and half of its side is 0.75 x the larger
    side of the box. It is rounded to whole pixels as in AttnGAN and clipped to the picture.

    The split comes from ``{split}/filenames.pickle`` or, without this file, from the data set's own
    ``train_test_split.txt``. Classes come from ``{split}/class_info.pickle`` or otherwise from
    ``image_class_labels.txt``. If there is neither file, each picture is its own class.

    Args:
        root: the folder that contains ``CUB_200_2011`` and ``text``.
        split: "train" or "test".
        max_pixels: maximum number of pixels. A larger picture is refused before it is decoded.

    Raises:
        InputError: something is missing or damaged. The message names the file and, in a text file,
            the line. Pictures are opened only by ``image``, which raises InputError for a damaged
            one.
    """

    def __init__(self, root: StrPath, split: str, max_pixels: int = MAX_PIXELS) -> None:
        if split not in ("train", "test"):
            raise InputError(f'split must be "train" or "test", found {split!r}')
        self._root = Path(root)
        self._published = self._root / PUBLISHED
        self._max_pixels = max_pixels
        number_of = self._read_numbers()
        self._names = self._read_names(split, number_of)
        numbers = [number_of[name] for name in self._names]
        self._labels = self._read_labels(split, numbers)
        boxes_path = self._published / "bounding_boxes.txt"
        boxes = _read_table(boxes_path, _parse_box)
        self._boxes = [_look_up(boxes, number, boxes_path) for number in numbers]
        self._captions = self._read_captions()
        pictures = self._published / "images"
        for name in self._names:
            if not os.path.isfile(self._picture_path(name)):
                raise InputError(f"{pictures}: {no_such_file(pictures, f'{name}.jpg')}")

    def __len__(self) -> int:
        return len(self._names)

    def image(self, index: int) -> Image.Image:
        """Return the picture of the bird, mode "RGB".

        Raises:
            InputError: the file is damaged, or the bounding box is outside the picture.
        """
        path = self._picture_path(self._names[index])
        picture = read_picture(path, str(self._published), self._max_pixels)
        return crop(picture, self._crop(index, picture.size))

    def box(self, index: int) -> Box:
        """Return the bounding box in shares of the crop that ``image`` returns.

        It is near the middle of the crop and has two thirds of its longer side, so among crops it
        varies little but in its shape.

        Raises:
            InputError: the beginning of the file is damaged, or the box is outside the picture.
        """
        left, top, right, bottom = self._crop(index, self._whole_size(index))
        part = (left, top, right - left, bottom - top)
        return clipped(part_of(self._boxes[index], part))

    def size(self, index: int) -> tuple[int, int]:
        """Return the width and height of the crop that ``image`` returns.

        Raises:
            InputError: see ``box``.
        """
        left, top, right, bottom = self._crop(index, self._whole_size(index))
        return right - left, bottom - top

    def captions(self, index: int) -> list[str]:
        """Return the lines of the picture's text file that are not empty."""
        return list(self._captions[index])

    def name(self, index: int) -> str:
        """Return the name in the data set: "001.Black_footed_Albatross/Black_Footed_0046"."""
        return self._names[index]

    def label(self, index: int) -> int:
        """Return the number of the species in the files; ``index`` if they do not contain it."""
        return self._labels[index]

    def stamp(self, index: int) -> str:
        """Return the size and modification time of the picture's file, its box and the limit."""
        stamp = file_stamp(self._picture_path(self._names[index]))
        return f"{stamp}, box {self._boxes[index]}, limit {self._max_pixels}"

    def _crop(self, index: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the left, top, right and bottom of the crop of a picture of (width, height)."""
        x, y, width, height = self._boxes[index]
        center_x, center_y = int(x + width / 2), int(y + height / 2)
        reach = max(1, int(0.75 * max(width, height)))
        left, top = max(0, center_x - reach), max(0, center_y - reach)
        right, bottom = min(size[0], center_x + reach), min(size[1], center_y + reach)
        if left >= right or top >= bottom:
            path = self._picture_path(self._names[index])
            raise InputError(f"{path}: its bounding box is outside the picture")
        return left, top, right, bottom

    def _whole_size(self, index: int) -> tuple[int, int]:
        path = self._picture_path(self._names[index])
        return size_of_picture(path, str(self._published), self._max_pixels)

    def _picture_path(self, name: str) -> Path:
        return self._published / "images" / f"{name}.jpg"

    def _read_numbers(self) -> dict[str, str]:
        """Return a dictionary from the names of pictures to their numbers."""
        path = self._published / "images.txt"
        table = _read_table(path, _parse_name)
        number_of = {name: number for number, name in table.items()}
        for number, name in table.items():
            if number_of[name] != number:
                raise InputError(
                    f"{path}: pictures {number} and {number_of[name]} are both {shown(name)}"
                )
        return number_of

    def _read_names(self, split: str, number_of: dict[str, str]) -> list[str]:
        path = self._root / split / "filenames.pickle"
        if os.path.lexists(path):
            names = read_plain_pickle(path)
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise InputError(f"{path}: must be a list of names of pictures")
            for name in names:
                if name not in number_of:
                    raise InputError(f"{path}: {_not_in(name, number_of)}")
            if len(set(names)) < len(names):
                raise InputError(f"{path}: has the same picture twice")
        else:
            path = self._published / "train_test_split.txt"
            in_train = _read_table(path, _parse_flag)
            train = split == "train"
            names = [
                name
                for name, number in number_of.items()
                if _look_up(in_train, number, path) == train
            ]
        if not names:
            raise InputError(f"{path}: has no pictures of the split {split!r}")
        for name in names:
            if leads_out(name):
                raise InputError(f"{path}: {shown(name)} leads out of the folder")
        return names

    def _read_labels(self, split: str, numbers: list[str]) -> list[int]:
        pickled = self._root / split / "class_info.pickle"
        # The classes are in the order of the names in filenames.pickle.
        if os.path.lexists(pickled) and os.path.lexists(pickled.with_name("filenames.pickle")):
            labels = read_plain_pickle(pickled)
            if not isinstance(labels, list) or not all(map(is_integer_of_64_bits, labels)):
                raise InputError(f"{pickled}: must be a list of integers of 64 bits")
            if len(labels) != len(numbers):
                raise InputError(
                    f"{pickled}: has {len(labels)} classes for {len(numbers)} pictures"
                )
            return labels
        path = self._published / "image_class_labels.txt"
        if os.path.lexists(path):
            table = _read_table(path, _parse_label)
            return [_look_up(table, number, path) for number in numbers]
        return list(range(len(numbers)))

    def _read_captions(self) -> list[list[str]]:
        captions, room = [], _MAX_CAPTION_MEMORY
        for name in self._names:
            path = self._root / "text" / f"{name}.txt"
            lines = [line.strip() for line in _read_lines(path, _LARGEST_TEXT) if line.strip()]
            if not lines:
                raise InputError(f"{path}: has no caption")
            room -= sum(len(line) + _STRING_OVERHEAD for line in lines)
            if room < 0:  # the files may all be links to the same file
                raise InputError(f"{path}: with this file, the captions exceed the memory limit")
            captions.append(lines)
        return captions


def read_captions_pickle(path: StrPath) -> tuple[list[list[int]], list[list[int]], Vocabulary]:
    """Read the ``captions.pickle`` that AttnGAN and MirrorGAN make from their data.

    Returns:
        the captions of the train split and of the test split as word numbers, and the vocabulary.
        Pictures are in the order of ``filenames.pickle``, and caption j of picture i is at
        i * (captions per picture) + j.

    Raises:
        InputError: the file is not such a pickle, or would run code when it is loaded.
    """
    match read_plain_pickle(path):
        case [list(train), list(test), dict(words), dict()] if set(words) == {*range(len(words))}:
            pass
        case _:
            raise InputError(f"{path}: must be [train captions, test captions, words, numbers]")
    try:
        vocabulary = Vocabulary([words[number] for number in range(len(words))])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    for caption in (*train, *test):
        if not isinstance(caption, list) or not {*map(type, caption)} <= {int}:
            raise InputError(
                f"{path}: a caption must be a list of integers, found {shown(caption)}"
            )
        if not all(0 <= number < len(vocabulary) for number in caption):
            raise InputError(f"{path}: a caption has a number without a word: {shown(caption)}")
    return train, test, vocabulary


def write_cub(
    train: CaptionedImages, test: CaptionedImages, root: StrPath, progress: bool = True
) -> None:
    """Write two captioned image sets in the layout of this module.

    Pictures become JPEG files of quality 95, with bounding boxes for which readers crop nothing.
    White space in captions becomes single spaces. The folder appears only once it is complete. If a
    process is killed, the next call for the same folder removes the incomplete output.

    Args:
        train: the train split.
        test: the test split.
        root: the folder to create. It must not exist, or be empty.
        progress: whether to show a progress bar on stderr.

    Raises:
        InputError: ``root`` is not empty; a name occurs twice, leads out of the folder or has white
            space (which the layout cannot distinguish from the end of the name); or a picture has
            no caption.
    """
    root = Path(os.path.abspath(root))
    try:
        with whole_folder(root) as partial:
            _write_to(train, test, partial, progress)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{root}: cannot write the data set ({reason(error)})") from error


def _write_to(train: CaptionedImages, test: CaptionedImages, root: Path, progress: bool) -> None:
    published = root / PUBLISHED
    published.mkdir()
    seen: set[str] = set()
    with (
        open(published / "images.txt", "w", encoding="utf-8") as file_names,
        open(published / "bounding_boxes.txt", "w", encoding="utf-8") as boxes,
        tqdm(total=len(train) + len(test), unit="image", disable=not progress) as bar,
    ):
        for split, images in (("train", train), ("test", test)):
            names = [images.name(index) for index in range(len(images))]
            for index, name in enumerate(names):
                if name in seen or not _may_be_written(name):
                    raise InputError(
                        f"{split} picture {name!r}: its name must be unique, inside the folder "
                        "and without white space"
                    )
                seen.add(name)
                captions = [" ".join(caption.split()) for caption in images.captions(index)]
                text = "".join(f"{caption}\n" for caption in captions if caption)
                if not text or not is_text(text):
                    fault = "a caption has a lone surrogate" if text else "has no caption"
                    raise InputError(f"{split} picture {name!r}: {fault}")
                _parent_made(root / "text" / f"{name}.txt").write_text(text, encoding="utf-8")
                picture = images.image(index)
                # No chroma subsampling: an eye ring or a bill is only one or two pixels wide.
                picture.save(
                    _parent_made(published / "images" / f"{name}.jpg"), quality=95, subsampling=0
                )
                file_names.write(f"{len(seen)} {name}.jpg\n")
                boxes.write(f"{len(seen)} 0.0 0.0 {picture.width:.1f} {picture.height:.1f}\n")
                bar.update()
            labels = [int(images.label(index)) for index in range(len(images))]
            for file_name, content in (("filenames.pickle", names), ("class_info.pickle", labels)):
                # Protocol 2 is the newest that Python 2 reads, and readers of this layout use it.
                _parent_made(root / split / file_name).write_bytes(
                    pickle.dumps(content, protocol=2)
                )


def _may_be_written(name: str) -> bool:
    in_folder = os.path.normpath(name) == name and not leads_out(name)
    return in_folder and name.split() == [name] and is_text(name) and "\0" not in name


def _parent_made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _not_in(name: str, number_of: dict[str, str]) -> str:
    twin = same_looking(name, number_of)
    if twin is None:
        return f"{shown(name)} is not in {PUBLISHED}/images.txt"
    return (
        f"{name!a} is not in {PUBLISHED}/images.txt but {twin!a} is, which looks the same: its "
        "letters are composed in another way in Unicode"
    )


def _read_lines(path: Path, limit: int) -> Iterator[str]:
    try:
        # Lines are read one by one, which takes less memory. Any line ending is accepted.
        return iter(io.StringIO(read_file(path, limit).decode("utf-8-sig"), newline=None))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error


def _read_table(path: Path, parse: Callable[[str], Value]) -> dict[str, Value]:
    """Read a table with lines of the form "number value" as {number: parsed value}."""
    table: dict[str, Value] = {}
    for line, text in enumerate(_read_lines(path, _LARGEST_TABLE), start=1):
        number, _, value = text.strip().partition(" ")
        if not number:
            continue
        if number in table:
            raise InputError(f"{path}, line {line}: picture {shown(number)} has a line already")
        try:
            if len(text) > _LONGEST_LINE:
                raise ValueError("too long")
            table[number] = parse(value.strip())
        except ValueError as error:
            raise InputError(f"{path}, line {line}: cannot make sense of {shown(text)}") from error
    return table


def _look_up(table: dict[str, Value], number: str, path: Path) -> Value:
    if number not in table:
        raise InputError(f"{path}: has no line for picture {number:.80} of images.txt")
    return table[number]


def _parse_name(text: str) -> str:
    name = text.removesuffix(".jpg")
    if not name:
        raise ValueError(text)
    return name


def _parse_flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(text)
    return text == "1"


def _parse_label(text: str) -> int:
    label = int(text)
    if not is_integer_of_64_bits(label):
        raise ValueError(text)
    return label


def _parse_box(text: str) -> Box:
    x, y, width, height = map(float, text.split())
    # NaN is not within bounds either.
    in_bounds = all(abs(value) <= _MAX_COORDINATE for value in (x, y, width, height))
    if not in_bounds or width <= 0 or height <= 0:
        raise ValueError(text)
    return x, y, width, height
