"""Pickles of the CUB layout: mutated, forged and random ones, and its tables of text."""

import pickle
import pickletools
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz import given
from tests.fuzz.cases import Case
from tests.fuzz.damage import ODD_VALUES, mutated, replace, rewrite

_NAMES = [f"001.Bird/{number}" for number in range(2)]
_CLASSES = [1, 2]
_PICKLES = ("filenames.pickle", "class_info.pickle")
_TABLES = {
    "images.txt": [f"{name}.jpg" for name in _NAMES],
    "bounding_boxes.txt": ["0.0 0.0 32.0 32.0", "3 4 20 25"],
    "image_class_labels.txt": ["1", "2"],
    "train_test_split.txt": ["1", "1"],
}
# fmt: off
_ODD_FIELDS = (
    "", "nan", "inf", "1e308", "-1e308", "1e-320", "9" * 5000, "-1", f"{2**63}", "٣", "../x", "\0",
)
_ODD_NAMES = ("../" * 9 + "etc/passwd", "/etc/passwd", "001.Bird/0\0", "001.Bird/0\n", "")
_ODD_CLASSES = (2**63, -(2**63) - 1, 2**64, True, None, 1.5, 1e300, "1", b"1", [1], 1j, print)
# Names that a pickle could request; of canary, see `write_canary`
_GLOBALS = (
    ("canary", "touch"), ("os", "mkdir"), ("posix", "system"), ("builtins", "eval"),
    ("builtins", "getattr"), ("collections", "OrderedDict"), ("pathlib", "Path.touch"),
    ("numpy", "dtype"), ("numpy", "ndarray"), ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"), ("numpy.core.multiarray", "_reconstruct"),
    ("_codecs", "encode"), ("copyreg", "_reconstructor"), ("torch._utils", "_rebuild_tensor_v2"),
)
_ARGUMENTS = (
    b"N", b"K\x01", b"J\xff\xff\xff\x7f", b"C\x08AAAAAAAA", b")", b"}", b"]", b"h\x00", b"I01\n",
    *(b"X" + struct.pack("<I", len(text)) + text
      for text in (b"MARKER", b"import canary", b"touch", b"V8", b"O8", b"i8", b"|", b"latin1")),
)
# fmt: on


def prepare(folder: Path) -> Path:
    """Write a data set of a few birds."""
    randomly = random.Random(0)
    cub = folder / "cub"
    for place in ("CUB_200_2011/images/001.Bird", "text/001.Bird", "train"):
        (cub / place).mkdir(parents=True)
    for name in _NAMES:
        given.picture(randomly).save(cub / "CUB_200_2011" / "images" / f"{name}.jpg")
        (cub / "text" / f"{name}.txt").write_text(given.caption(randomly) + "\n")
    for table, values in _TABLES.items():
        rows = (f"{number} {value}\n" for number, value in enumerate(values, start=1))
        (cub / "CUB_200_2011" / table).write_text("".join(rows))
    return cub


def make(randomly: random.Random, there: Path, folder: Path) -> Case:
    """Write the data set, with one odd file."""
    cub = given.copy(there, folder / "cub")
    write_canary(folder)
    protocol = randomly.randrange(6)
    classes = randomly.choice([_CLASSES, [np.int64(number) for number in _CLASSES]])
    for name, value in zip(_PICKLES, (_NAMES, classes), strict=True):
        (cub / "train" / name).write_bytes(pickle.dumps(value, protocol))
    odd = cub / "train" / randomly.choice(_PICKLES)
    kind = randomly.choice(["whole", "table", "replaced", *["odd"] * 17])
    if kind == "odd":
        odd.write_bytes(randomly.choice(_KINDS)(odd.read_bytes(), randomly))
    elif kind == "replaced":
        replace(odd, randomly)
    elif kind == "table":
        for path in cub.glob("train/*.pickle") if randomly.random() < 0.5 else ():
            path.unlink()
        table = cub / "CUB_200_2011" / randomly.choice([*_TABLES])
        rewrite(table, _table(table.read_text(), randomly))

    def check(status: int) -> None:
        assert status == 0 or kind != "whole", "this is a data set"

    return Case(given.train("cnn", "cub", 1), check)


def write_canary(folder: Path) -> None:
    """Write a module in the working folder that creates a file when a pickle imports it."""
    (folder / "canary.py").write_text(f"open({str(folder / 'MARKER')!r}, 'w')\ntouch = print\n")


def _table(text: str, randomly: random.Random) -> bytes:
    """Return a text table with some fields changed."""
    if randomly.random() < 0.4:
        return mutated(text.encode(), randomly)
    rows = [line.split(" ") for line in text.splitlines()]
    for _ in range(randomly.randint(1, 3)):
        row = randomly.choice(rows)
        row[randomly.randrange(len(row))] = randomly.choice(_ODD_FIELDS)
    return "".join(" ".join(row) + "\n" for row in rows).encode()


def _other(data: bytes, randomly: random.Random) -> bytes:
    """A pickle with values that such a file never has."""
    values = [value for value in ODD_VALUES if value != "\ud800"]
    values += [{1, 2}, (1,), range(5), np.float32(5), np.arange(4), np.array("a"), np.int64(2**62)]
    found = randomly.choice([_NAMES, _CLASSES, []]) + randomly.choices(
        [*values, *_ODD_NAMES, *_ODD_CLASSES], k=randomly.randint(1, 2)
    )
    value: Any = randomly.choice([found[-2:], found[1:], found, tuple(found), found[-1]])
    return pickle.dumps(value, randomly.randrange(6))


def forged(data: bytes, randomly: random.Random) -> bytes:
    """A pickle that tries to run code."""
    end = randomly.choice([b".", b"0" + data, b""])
    return b"\x80\x02](" + _asked(randomly, 3) + b"e" + end


def _asked(randomly: random.Random, depth: int) -> bytes:
    """Opcodes that load a global by name and call it in one of all ways, with nested arguments."""
    module, name = randomly.choice(_GLOBALS)
    found = f"c{module}\n{name}\n".encode()
    if randomly.random() < 0.2:
        found = f"X{chr(len(module))}\0\0\0{module}X{chr(len(name))}\0\0\0{name}\x93".encode()
    more = [_asked(randomly, depth - 1)] * 10 if depth else []
    arguments = b"(" + b"".join(randomly.choices([*_ARGUMENTS, *more], k=randomly.randrange(5)))
    if randomly.random() < 0.1:
        return f"{arguments.decode('latin-1')}i{module}\n{name}\n".encode("latin-1")
    state = randomly.choice([arguments + b"t", b"}" + _ARGUMENTS[-1] + arguments + b"ts"])
    call = randomly.choice(
        [b"R", b"R", b"\x81", b"}\x92", b"b", b"R" + state + b"b", b"Q", b"q\0R"]
    )
    return found + arguments + b"t" + call


def random_opcodes(data: bytes, randomly: random.Random) -> bytes:
    """Random opcodes after a valid beginning."""
    pieces = [data[: randomly.randint(0, len(data))]]
    for _ in range(randomly.randint(1, 30)):
        opcode = randomly.choice(pickletools.opcodes)
        size = opcode.arg.n if opcode.arg else 0
        if size == pickletools.UP_TO_NEWLINE:
            module, name = randomly.choice([*_GLOBALS, ("7", "7"), ("-1L", "")])
            argument = f"{module}\n{name}\n".encode()
        elif size < 0:
            length = randomly.choice([0, 1, 3, 3, 3, 2**31 - 1, 2**63 - 1])
            argument = struct.pack("<Q", length)[: {-2: 1, -3: 4, -4: 4}.get(size, 8)] + b"abc"
        else:
            argument = randomly.randbytes(size)
        pieces.append(opcode.code.encode("latin-1") + argument)
    return b"".join([*pieces, b"."])


def bomb(data: bytes, randomly: random.Random) -> bytes:
    """A few bytes that request a lot of memory or time, or are nested very deeply."""
    four = randomly.choice([2**28, 2**31 - 1, 2**32 - 1]).to_bytes(4, "little")
    eight = randomly.choice([2**33, 2**62, 2**63, 2**64 - 1]).to_bytes(8, "little")
    many = randomly.choice([10**4, 10**5, 10**6])
    # the list n has twice the list n - 1
    doubled = b"(X\x01\0\0\0al" + b"".join(b"q%c0(h%ch%cl" % (n, n, n) for n in range(60))
    # fmt: off
    return b"\x80\x04" + randomly.choice([
        b"]r" + four, b"]p999999999\n", b"]q\0h\0a", doubled, b"\x94" * many, b"0" * many,
        b"B" + four + b"a", b"X" + four + b"a", b"T" + four + b"a", b"\x8b" + four, b"\x95" + eight,
        b"\x8d" + eight + b"a", b"\x8e" + eight + b"a", b"\x96" + eight + b"a",
        b"](I" + b"9" * many + b"\ne", b"](L" + b"9" * many + b"L\ne", b"](F" + b"9" * many + b"e",
        b"]\x8b" + struct.pack("<I", many) + b"\x7f" * many + b"a", b"]" * many + b"a" * (many - 1),
        b"(" * many + b"t" * many, b"(" + b"}" * many + b"l", b"(" + b"N" * many + b"l",
        b"(" + b"X" + struct.pack("<I", many) + b"x" * many + b"l", b"N" * 5 * many,
    ]) + b"."
    # fmt: on


_KINDS: list[Callable[[bytes, random.Random], bytes]] = [
    *[mutated, mutated, _other, _other, forged, forged, random_opcodes, bomb],
]
