"""Damaged model folders."""

import json
import os
import random
import struct
from pathlib import Path

from tests.fuzz import given
from tests.fuzz.cases import Case
from tests.fuzz.damage import ODD_VALUES, damage, odd_json, rewrite

_CONFIG, _WORDS, _WEIGHTS = _FILES = ("config.json", "vocabulary.txt", "model.safetensors")
_COMMANDS = (
    "sample bird -o out --quiet",
    "sample bird --walk 2 -o out.gif --quiet",
    "describe ../../data/0.png --quiet",
    "evaluate --data ../../data --count 100 --quiet",
    "info --words",
    "export --format onnx -o out.onnx --quiet",  # slow if nothing is refused
)
_ODD_WORDS = (
    "",
    " ",
    "\0",
    "\x1b[31m",
    "\r",
    "<end>",
    "é",
    "\u2028",
    "\ufeff",
    "x" * 10**6,
    "bird",
)
_NOT_NUMBERS = (float("nan"), float("inf"), -float("inf"))
_ODD_NUMBERS = (3e38, -3e38, 0.0, 1e-30, -1.0)  # products are NaN, infinite or zero


def prepare(folder: Path) -> Path:
    """Create a model, and the data that it is evaluated on."""
    given.data_set(folder / "data", 1, 100)
    return given.model(folder / "model")


def make(randomly: random.Random, there: Path, folder: Path) -> Case:
    """Write a damaged model."""
    model = given.copy(there, folder / "model", linked=_FILES)
    kind = randomly.randrange(11)
    match kind:
        case 0 | 1 | 2 | 3:
            damage(model / randomly.choice(_FILES), randomly)
        case 4 | 5:
            config = json.loads((model / _CONFIG).read_text())
            values = [value for value in ODD_VALUES if not isinstance(value, str)]
            config[randomly.choice([*config])] = randomly.choice([*values, 4, 8, 64, 2**20])
            rewrite(model / _CONFIG, json.dumps(config).encode())
        case 6:
            _change_words(model / _WORDS, randomly)
        case 7 | 8:
            _forge(model / _WEIGHTS, randomly)
        case 9:
            _fill(model / _WEIGHTS, randomly, _NOT_NUMBERS)
        case 10:
            _fill(model / _WEIGHTS, randomly, _ODD_NUMBERS)
    (command,) = randomly.choices(_COMMANDS, (6, 6, 6, 1, 2, int(kind == 9)))

    def check(status: int) -> None:
        assert status == 2 or kind != 9 or "info" in command, "the weights are NaN or infinite"

    return Case([*command.split(), "--model", "model"], check)


def _change_words(path: Path, randomly: random.Random) -> None:
    words = path.read_text().splitlines()
    for _ in range(randomly.randint(1, 3)):
        place = randomly.randrange(len(words) + 1)
        words[place : place + randomly.randrange(2)] = [randomly.choice(_ODD_WORDS)]
    words += map(str, range(randomly.choice([0, 0, 0, 10**6])))
    end = randomly.choice(["\n", "\n", "\r\n", "\r"])
    rewrite(path, end.join([*words, ""]).encode())


def _forge(path: Path, randomly: random.Random) -> None:
    """Change the names, types, shapes and offsets of tensors, or the length of the header."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for _ in range(randomly.randint(1, 3)):
        entry, other = (randomly.choice([*header.values()]) for _ in range(2))
        sizes = [], [0], [2**62, 2], [2**64], [-1], [1] * 1000, entry["shape"][::-1]
        places = [0, 0], [4, 0], [0, 2**63], [-4, 0], [0], other["data_offsets"]
        match randomly.randrange(5):
            case 0:
                entry["dtype"] = randomly.choice(["F64", "F16", "BF16", "I64", "BOOL", "F8_E4M3"])
            case 1:
                entry["shape"] = randomly.choice(sizes)
            case 2:
                entry["data_offsets"] = randomly.choice(places)
            case 3:
                del header[randomly.choice([*header])]
            case 4:
                header["\0" * 1000] = entry
    text = odd_json(header, randomly) if randomly.random() < 0.3 else json.dumps(header).encode()
    if randomly.random() < 0.8:
        rewrite(path, struct.pack("<Q", len(text)) + text + data[8 + length :])
        return
    length = randomly.choice([0, 1, 10**8, 10**8 + 1, 2**31, 2**63, 2**64 - 1])
    rewrite(path, struct.pack("<Q", length) + randomly.choice([b"", b" " * 1000, b"[" * 10**6]))
    os.truncate(path, randomly.choice([9, 8 + min(length, 10**8 + 8)]))


def _fill(path: Path, randomly: random.Random, values: tuple[float, ...]) -> None:
    """Set one or all entries of some tensors to a value."""
    data = bytearray(path.read_bytes())
    behind = 8 + int.from_bytes(data[:8], "little")
    tensors = [entry for entry in json.loads(data[8:behind]).values() if entry["dtype"] == "F32"]
    for tensor in randomly.sample(tensors, randomly.randint(1, 4)):
        start, end = tensor["data_offsets"]
        if randomly.random() < 0.5:
            start = randomly.randrange(start, end, 4)
            end = start + 4
        value = struct.pack("<f", randomly.choice(values))
        data[behind + start : behind + end] = value * ((end - start) // 4)
    rewrite(path, bytes(data))
