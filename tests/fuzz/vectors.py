"""Files of text vectors, .npy and pickles: damaged, with other arrays than vectors, and hostile."""

import gzip
import io
import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.fuzz import pickles
from tests.fuzz.cases import Case
from tests.fuzz.damage import mutated, replace
from tests.small import pickle_of_python_2, vectors_model

_D = vectors_model().config.embedding_size
_NAMES = ("vectors.npy", "vectors.pickle", "vectors.p", "vectors", "a\nb.npy", "é\x1b[31m.pickle")
# fmt: off
_SIZES = (0, -1, True, 1, 3, _D, _D + 1, 2**31, 2**32, 2**62, 2**64, *[10**4000] * 3)
_TYPES = (
    "f2", "f4", "f8", ">f4", "g", "c8", "i1", "i8", "u4", "?", "O", "S4", "U3", "V8", "M8[s]",
    [("a", "<f4")], [("a", "<f4", (3,)), ("b", "O")], [("", "<f4")] * 99, ("<f4", (2**31,)), "",
)
_LITERALS = (
    "None", "1.5", "-1", "3L", "'<f4'", "'|O'", "b'<f4'", "()", "(3L, 12L)", "(12,)", "[3, 12]",
    "{}", "'\\d'", "print()", "(" * 90, "9" * 5000, "0x_1", "3if 1else 2", "f'{3}'", "\0", "é",
)
# fmt: on
_ODD_NUMBERS = (np.nan, np.inf, -np.inf, 1e300, -3.5e38, 3e38, 6e4, 1e-320, -0.0)


class _File(NamedTuple):
    data: bytes
    names: list[str] | None = None
    """The names of its vectors; None: it may be refused."""
    size: int = 0
    """The size in bytes that the file is extended to, with zeros; 0: it is not."""


def prepare(folder: Path) -> Path:
    """Create the model that generates images."""
    vectors_model().save_pretrained(folder / "model")
    return folder / "model"


def make(randomly: random.Random, model: Path, folder: Path) -> Case:
    """Write a file of text vectors."""
    pickles.write_canary(folder)
    file, name = randomly.choice(_KINDS)(randomly), randomly.choice(_NAMES)
    if file.data[:1] not in (b"\x80", b"\x93") and not name.endswith((".pickle", ".p")):
        name = "vectors.pickle"  # a pickle of protocol 0 or 1 is known by its name alone
    (folder / name).write_bytes(file.data)
    if file.size:
        os.truncate(folder / name, file.size)
    elif file.names is None and randomly.random() < 0.05:
        replace(folder / name, randomly)
    images = randomly.choice([1, 1, 2])
    settings = [f"-n{images}", "--format", randomly.choice(["npy", "png"]), "--quiet"]

    def check(status: int) -> None:
        said = folder.with_name("stderr.log").read_text()
        if status == 2:
            assert said.count("\n") == 1, "an error is one line"
            assert file.names is None, "these are text vectors"
            assert not (folder / "out" / "manifest.jsonl").exists(), "there is a manifest"
            return
        assert (status, said) == (0, ""), "something was refused, or said"
        rows = (folder / "out" / "manifest.jsonl").read_bytes().splitlines()
        made = [json.loads(row)["caption"] for row in rows]
        if file.names is not None:
            assert made == [name for name in file.names for _ in range(images)]

    return Case(
        ["sample", "--text-vectors", name, "-o", "out", "--model", str(model), *settings], check
    )


def _vectors(randomly: random.Random) -> np.ndarray:
    """Return vectors (images, captions, D) of any floating-point type and byte order."""
    shape = randomly.randint(1, 4), randomly.randint(1, 3), _D
    numbers = np.random.default_rng(randomly.getrandbits(32)).standard_normal(shape)
    return numbers.astype(randomly.choice(["f4", "f4", "f2", "f8", ">f4", ">f8"]))


def _npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version)
    return stream.getvalue()


def _with_header(header: str, data: bytes, version: int = 1) -> bytes:
    """Return a .npy file with a header of any text."""
    text = header.encode("utf-8", "surrogatepass")
    length = struct.pack("<H" if version == 1 else "<I", len(text) % 2**16)
    return b"\x93NUMPY" + bytes([version % 256, 0]) + length + text + data


def _good(randomly: random.Random) -> _File:
    """Text vectors in any of the forms that are read."""
    vectors = _vectors(randomly)
    images, captions, _ = vectors.shape
    of_images = [f"image {i}, caption {j}" for i in range(images) for j in range(captions)]
    match randomly.randrange(5):
        case 0:
            rows = vectors.reshape(-1, _D)
            version = randomly.choice([(1, 0), (2, 0), (3, 0)])
            return _File(_npy(rows, version), [f"row {i}" for i in range(len(rows))])
        case 1:
            return _File(_npy(vectors), of_images)
        case 2:  # as written by Python 2 on some machines
            rows, (count, size) = vectors.reshape(-1, _D), (images * captions, _D)
            header = f"{{'descr': {rows.dtype.str!r}, 'fortran_order': False, "
            header += f"'shape': ({count}L, {size}L)}}\n"
            return _File(_with_header(header, rows.tobytes()), [f"row {i}" for i in range(count)])
        case 3:
            return _File(pickle_of_python_2(vectors.astype("<f4")), of_images)
    return _File(pickle.dumps(list(vectors), randomly.randrange(6)), of_images)


def _mutated(randomly: random.Random) -> _File:
    data = _good(randomly).data
    if randomly.random() < 0.2:
        data = data[: randomly.randrange(len(data))]
    return _File(mutated(data, randomly, randomly.choice([1, 8, 50])))


def _odd_numbers(randomly: random.Random) -> _File:
    """One number that may be none, or not fit into float32."""
    vectors = _vectors(randomly)
    number = randomly.choice(_ODD_NUMBERS)
    with np.errstate(over="ignore"):
        vectors[tuple(randomly.randrange(size) for size in vectors.shape)] = number
    return _File(randomly.choice([_npy(vectors), pickle.dumps(list(vectors), 2)]))


def _header(randomly: random.Random) -> _File:
    """A .npy file whose header claims another shape, order or type, or is no such literal."""
    vectors = _vectors(randomly).reshape(-1, _D)
    entries = {"descr": repr(vectors.dtype.str), "fortran_order": "False"}
    entries["shape"] = str(vectors.shape)
    size = 0
    for _ in range(randomly.randint(1, 2)):
        match randomly.randrange(6):
            case 0 | 1:
                count = randomly.choice([0, 1, 2, 2, 3, 3, 4, 65])
                entries["shape"] = str(tuple(randomly.choices(_SIZES, k=count)))
            case 2:
                entries["descr"] = repr(randomly.choice(_TYPES))
            case 3:
                entries["fortran_order"] = randomly.choice(["True", "0", "None"])
            case 4:
                entries[randomly.choice([*entries, "more"])] = randomly.choice(_LITERALS)
            case 5:  # one vector of all the zeros that follow, which take no room on the disk
                entries |= {"descr": "'<f4'", "shape": f"(1, {2**32})"}
                size = 2**34
    header = "{" + ", ".join(f"'{key}': {value}" for key, value in entries.items()) + "}\n"
    version = randomly.choice([1, 1, 1, 2, 3, 0, 4, 255])
    data = _with_header(header, vectors.tobytes(), version)
    return _File(data, size=size + len(data) - vectors.nbytes if size else 0)


def _other_array(randomly: random.Random) -> _File:
    """Arrays of other types and shapes, which may be objects of any class."""
    good = _vectors(randomly)
    match randomly.randrange(8):
        case 0:
            array: Any = good.astype(randomly.choice(["i4", "c8", "g", "?", "O", "U9", "M8[s]"]))
        case 1:
            kind = np.dtype(randomly.choice([kind for kind in _TYPES if isinstance(kind, list)]))
            array = np.zeros((3, _D), kind)
        case 2:
            array = good.reshape(randomly.choice([(-1,), (1, 1, -1, _D), (1,) * 30 + (-1, _D)]))
        case 3:
            sizes = randomly.choices([0, 1, 2, _D], k=randomly.randint(0, 3))
            array = np.zeros(sizes, "f4")
        case 4:
            array = np.asfortranarray(good[0])
        case 5:
            array = good[..., : randomly.randint(1, _D - 1)]
        case 6:
            array = np.ma.masked_less(good[0], 0)
        case 7:
            array = np.array([{"a": 1}, print, good[0], None, np.float32(1)], object)
    if randomly.random() < 0.5:
        return _File(_npy(np.asarray(array)))
    images = [array, *good] if randomly.random() < 0.5 else [*good, array]
    return _File(pickle.dumps(images, randomly.randrange(6)))


def _other_pickle(randomly: random.Random) -> _File:
    """Pickles of other values than a list of arrays, and hostile ones."""
    vectors = _vectors(randomly)
    images = list(vectors)
    given: tuple[Any, ...] = (
        vectors, tuple(images), {"a": images}, [images], [vectors], vectors.tolist(), [], None, 1,
        [*images, None], [*images, images], [images[0]] * 3, dict(enumerate(images)), b"vectors",
        [image.tobytes() for image in images], [np.float32(1)], [*images, {1, 2}], range(5),
    )  # fmt: skip
    data = pickle.dumps(randomly.choice(given), randomly.randrange(6))
    hostile = (mutated, pickles.forged, pickles.forged, pickles.random_opcodes, pickles.bomb)
    if randomly.random() < 0.6:
        data = randomly.choice(hostile)(pickle.dumps(images, randomly.randrange(6)), randomly)
    return _File(data)


def _other_file(randomly: random.Random) -> _File:
    """Archives of arrays, text, and noise behind the first bytes of a file that is read."""
    vectors, stream = _vectors(randomly), io.BytesIO()
    (np.savez if randomly.random() < 0.5 else np.savez_compressed)(stream, vectors)
    noise = randomly.randbytes(randomly.choice([0, 1, 100, 70_000]))
    rows = "\n".join(" ".join(map(str, row)) for row in vectors[0])
    choices = [b"", noise, b"\x93NUMPY" + noise, b"\x93NUMPY\1\0" + noise, b"\x80\x02" + noise]
    choices += [stream.getvalue(), gzip.compress(_npy(vectors)), rows.encode(), b"a red bird\n"]
    return _File(randomly.choice(choices))


_KINDS: list[Callable[[random.Random], _File]] = [
    *[_good, _mutated, _mutated, _mutated, _odd_numbers, _header, _header, _header],
    *[_other_array, _other_array, _other_pickle, _other_pickle, _other_file],
]
