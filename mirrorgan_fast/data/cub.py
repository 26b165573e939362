"""Caltech-UCSD Birds in the folder layout that AttnGAN and MirrorGAN share: reading and writing it.

The layout under a root folder: ``{train,test}/filenames.pickle`` (names of pictures without ".jpg")
and ``class_info.pickle`` (their classes), ``text/<name>.txt`` (a caption a line) and
``CUB_200_2011`` as its authors publish it (``images.txt``, ``bounding_boxes.txt``, ``images/``).
Pickles are read without running anything that is in them.
"""

import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from mirrorgan_fast.data.captioned_images import CaptionedImages, leads_out
from mirrorgan_fast.data.vocabulary import Vocabulary
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.pictures import read_picture

Value = TypeVar("Value")
Box = tuple[float, float, float, float]


class CubFolder(CaptionedImages):
    """The birds of one split, each cropped around its bounding box.

    The crop is the square of half-side 0.75 x the larger side of the box around the center of the
    box, in whole pixels as AttnGAN rounds them, as far as it is inside the picture.

    The split is that of ``{split}/filenames.pickle`` or, without this file, of the data set's own
    ``train_test_split.txt``. Classes come from ``{split}/class_info.pickle``, or else from
    ``image_class_labels.txt``; with neither, each picture is its own class.

    root: the folder that has ``CUB_200_2011`` and ``text``.
    split: "train" or "test".

    Raises InputError, naming the file and where there are lines the line, for anything missing or
    damaged. Pictures are opened by ``image``, which raises InputError for a damaged one.
    """

    def __init__(self, root: str | os.PathLike[str], split: str) -> None:
        if split not in ("train", "test"):
            raise InputError(f'split must be "train" or "test", found {split!r}')
        self._root = Path(root)
        self._published = self._root / "CUB_200_2011"
        number_of = {
            file_name.removesuffix(".jpg"): number
            for number, file_name in _read_table(self._published / "images.txt", str).items()
        }
        self._names = self._read_names(split, number_of)
        numbers = [number_of[name] for name in self._names]
        self._labels = self._read_labels(split, numbers)
        boxes_path = self._published / "bounding_boxes.txt"
        boxes = _read_table(boxes_path, _parse_box)
        self._boxes = [_look_up(boxes, number, boxes_path) for number in numbers]
        self._captions = [self._read_captions(name) for name in self._names]
        for name in self._names:
            if not self._picture_path(name).is_file():
                raise InputError(f"{self._picture_path(name)}: there is no such picture")

    def __len__(self) -> int:
        return len(self._names)

    def image(self, index: int) -> Image.Image:
        """The bird, mode "RGB"; raises InputError if the file is damaged or the box beside it."""
        path = self._picture_path(self._names[index])
        picture = read_picture(path, place=str(self._published))
        x, y, width, height = self._boxes[index]
        center_x, center_y = int(x + width / 2), int(y + height / 2)
        reach = max(1, int(0.75 * max(width, height)))
        left, top = max(0, center_x - reach), max(0, center_y - reach)
        right = min(picture.width, center_x + reach)
        bottom = min(picture.height, center_y + reach)
        if left >= right or top >= bottom:
            raise InputError(f"{path}: its bounding box is outside the picture")
        return picture.crop((left, top, right, bottom))

    def captions(self, index: int) -> list[str]:
        """The lines of the picture's text file that are not empty."""
        return list(self._captions[index])

    def name(self, index: int) -> str:
        """The name as in the data set, such as "001.Black_footed_Albatross/Black_Footed_0046"."""
        return self._names[index]

    def label(self, index: int) -> int:
        """The species, as the files number it; ``index`` where no file does."""
        return self._labels[index]

    def _picture_path(self, name: str) -> Path:
        return self._published / "images" / f"{name}.jpg"

    def _read_names(self, split: str, number_of: dict[str, str]) -> list[str]:
        path = self._root / split / "filenames.pickle"
        if path.is_file():
            names = _read_plain_pickle(path)
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise InputError(f"{path}: must be a list of names of pictures")
            for name in names:
                if name not in number_of:
                    raise InputError(f"{path}: {name!r} is not in CUB_200_2011/images.txt")
        else:
            path = self._published / "train_test_split.txt"
            in_train = _read_table(path, int)
            wanted = int(split == "train")
            names = [
                name
                for name, number in number_of.items()
                if _look_up(in_train, number, path) == wanted
            ]
        if not names:
            raise InputError(f"{path}: has no pictures of the split {split!r}")
        for name in names:
            if leads_out(name):
                raise InputError(f"{path}: {name!r} leads out of the folder")
        return names

    def _read_labels(self, split: str, numbers: list[str]) -> list[int]:
        pickled = self._root / split / "class_info.pickle"
        # It belongs to the order of the names in the pickle beside it.
        if pickled.is_file() and pickled.with_name("filenames.pickle").is_file():
            labels = _read_plain_pickle(pickled)
            if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
                raise InputError(f"{pickled}: must be a list of integers")
            if len(labels) != len(numbers):
                raise InputError(f"{pickled}: has {len(labels)} classes of {len(numbers)} pictures")
            return labels
        path = self._published / "image_class_labels.txt"
        if path.is_file():
            table = _read_table(path, int)
            return [_look_up(table, number, path) for number in numbers]
        return list(range(len(numbers)))

    def _read_captions(self, name: str) -> list[str]:
        path = self._root / "text" / f"{name}.txt"
        captions = [line.strip() for line in _read_lines(path) if line.strip()]
        if not captions:
            raise InputError(f"{path}: has no caption")
        return captions


def read_captions_pickle(
    path: str | os.PathLike[str],
) -> tuple[list[list[int]], list[list[int]], Vocabulary]:
    """Reads the ``captions.pickle`` that AttnGAN and MirrorGAN make of their data.

    Returns the captions of the train and of the test split as word numbers, caption j of picture i
    at i * (captions a picture) + j in the order of ``filenames.pickle``, and the vocabulary.

    Raises InputError if the file is not such a pickle or would run code when loaded.
    """
    path = Path(path)
    match _read_plain_pickle(path):
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
            raise InputError(f"{path}: a caption must be a list of integers, found {caption!r:.80}")
        if not all(0 <= number < len(vocabulary) for number in caption):
            raise InputError(f"{path}: a caption has a number without a word: {caption!r:.80}")
    return train, test, vocabulary


def write_cub(
    train: CaptionedImages,
    test: CaptionedImages,
    root: str | os.PathLike[str],
    progress: bool = True,
) -> None:
    """Writes two captioned image sets in the layout of this module.

    Pictures become JPEG of quality 95, with bounding boxes such that readers crop nothing. White
    space in captions becomes single spaces. The folder appears whole or not at all.

    root: the folder to make; it must not exist or be empty.
    progress: shows a progress bar on stderr.

    Raises InputError if ``root`` has something in it, if a name occurs twice, leads out of the
    folder or has white space (which the layout cannot tell from the end of the name), and if a
    picture has no caption.
    """
    root = Path(os.path.abspath(root))
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root}: is there already and not an empty folder; choose another place")
    partial = root.with_name(f".{root.name}.{os.getpid()}.partial")
    try:
        _write_whole(train, test, partial, progress)
        os.replace(partial, root)
    except OSError as error:
        raise InputError(f"{root}: cannot write the data set ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_whole(train: CaptionedImages, test: CaptionedImages, root: Path, progress: bool) -> None:
    published = root / "CUB_200_2011"
    published.mkdir(parents=True)
    seen: set[str] = set()
    with (
        open(published / "images.txt", "w", encoding="utf-8") as file_names,
        open(published / "bounding_boxes.txt", "w", encoding="utf-8") as boxes,
        tqdm(total=len(train) + len(test), unit="image", disable=not progress) as bar,
    ):
        for split, images in (("train", train), ("test", test)):
            names = [images.name(index) for index in range(len(images))]
            for index, name in enumerate(names):
                if name in seen or leads_out(name) or name.split() != [name]:
                    raise InputError(
                        f"{split} picture {name!r}: its name must be unique, inside the folder "
                        "and without white space"
                    )
                seen.add(name)
                captions = [" ".join(caption.split()) for caption in images.captions(index)]
                text = "".join(f"{caption}\n" for caption in captions if caption)
                if not text:
                    raise InputError(f"{split} picture {name!r}: has no caption")
                _parent_made(root / "text" / f"{name}.txt").write_text(text, encoding="utf-8")
                picture = images.image(index)
                # Color at full resolution: an eye ring or a bill is a pixel or two wide.
                picture.save(
                    _parent_made(published / "images" / f"{name}.jpg"), quality=95, subsampling=0
                )
                file_names.write(f"{len(seen)} {name}.jpg\n")
                boxes.write(f"{len(seen)} 0.0 0.0 {picture.width:.1f} {picture.height:.1f}\n")
                bar.update()
            labels = [images.label(index) for index in range(len(images))]
            for file_name, content in (("filenames.pickle", names), ("class_info.pickle", labels)):
                # Protocol 2 is the newest that the readers of this layout, Python 2, understand.
                _parent_made(root / split / file_name).write_bytes(
                    pickle.dumps(content, protocol=2)
                )


def _parent_made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error


def _read_table(path: Path, parse: Callable[[str], Value]) -> dict[str, Value]:
    """A table of lines "number value", as {number: parsed value}."""
    table: dict[str, Value] = {}
    for line, text in enumerate(_read_lines(path), start=1):
        if not text.strip():
            continue
        number, _, value = text.strip().partition(" ")
        try:
            table[number] = parse(value)
        except ValueError as error:
            raise InputError(f"{path}, line {line}: cannot make sense of {text!r:.80}") from error
    return table


def _look_up(table: dict[str, Value], number: str, path: Path) -> Value:
    if number not in table:
        raise InputError(f"{path}: has no line for picture {number} of images.txt")
    return table[number]


def _parse_box(text: str) -> Box:
    x, y, width, height = map(float, text.split())
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise ValueError(text)
    return x, y, width, height


def _numpy_scalar(dtype: np.dtype[Any], data: bytes | str) -> Any:
    # Python 2 pickled the bytes of a number as a string, which the unpickler decodes as Latin-1.
    raw = data.encode("latin-1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype, count=1)[0].item()


def _latin_bytes(text: str, encoding: str) -> bytes:
    return text.encode("latin-1")


# All that a pickle of numbers and strings may ask for, and what it gets.
_LOADABLE: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
    ("_codecs", "encode"): _latin_bytes,  # so Python 3 writes bytes in protocol 2
}


class _PlainUnpickler(pickle.Unpickler):
    """Loads containers, numbers and strings, and refuses everything that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _LOADABLE:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which could run code")
        return _LOADABLE[module, name]


def _read_plain_pickle(path: Path) -> Any:
    # A damaged pickle raises nearly anything: EOFError, KeyError, UnicodeDecodeError and more.
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file, encoding="latin-1").load()
    except Exception as error:
        raise InputError(f"{path}: cannot be loaded as plain data ({error})") from error
