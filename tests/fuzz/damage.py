"""Damage that any file may have."""

import json
import os
import random
from pathlib import Path
from typing import Any

_DEEP, _DIGITS = "@deep@", "@digits@"
_ODD_BYTES = (b"\0", b"\n", b"\r", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"\\", b"{", b"\x1b[2J")
_ELSEWHERE = ("/dev/zero", "/dev/null", "/dev/stdin", "/proc/self/mem", "..", "/etc/hostname")
# fmt: off
ODD_VALUES: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 7, 2**16, 2**31, 2**62, 2**63, 2**64, -(2**63), 10**400,
    0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), -float("inf"),
    True, False, None, [], {}, [[]], {"a": 1}, [1, "a"], _DEEP, _DIGITS,
    "", "0", "nan", "a", "../x", "/", ".", "..", "\0", "🐦", "\n\x1b[31m", "\ud800", "x" * 10**5,
)
# fmt: on


def damage(path: Path, randomly: random.Random) -> None:
    """Change some bytes of a file, or an entry if it is JSON, or replace the file."""
    kind = randomly.random()
    if kind < 0.25:
        replace(path, randomly)
        return
    data = path.read_bytes()
    if path.suffix == ".json" and kind < 0.7:
        data = odd_json(json.loads(data), randomly)
    elif path.suffix == ".jsonl" and kind < 0.5:
        rows = data.splitlines(keepends=True)
        odd = odd_json({"step": 1, "line": 1}, randomly) + b"\n"
        rows.insert(randomly.randint(0, len(rows)), odd)
        data = b"".join(rows)
    else:
        data = mutated(data, randomly)
    rewrite(path, data)


def mutated(data: bytes, randomly: random.Random, max_changes: int = 8) -> bytes:
    """Return bytes with up to ``max_changes`` changes: bits, cuts, insertions, repetitions."""
    changed = bytearray(data)
    for _ in range(randomly.randint(1, max_changes)):
        start = randomly.randint(0, len(changed))
        if (
            randomly.random() < 0.5
        ):  # near the start or the end, where most formats have their structure
            start = randomly.choice([start % 64, max(0, len(changed) - start % 4000)])
        start = min(start, len(changed))
        end = start + int(randomly.expovariate(1 / 8)) + 1
        match randomly.randrange(7):
            case 0 | 1 if start < len(changed):
                changed[start] ^= 1 << randomly.randrange(8)
            case 2 if start < len(changed):
                changed[start] = randomly.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 3:
                del changed[start:end]
            case 4:
                changed[start:start] = changed[start:end] * randomly.choice([1, 2, 100])
            case 5:
                odd = randomly.choice([*_ODD_BYTES, randomly.randbytes(end - start)])
                changed[start : randomly.choice([start, end])] = odd
            case 6 if randomly.random() < 0.3:
                del changed[start:]
    return bytes(changed)


def odd_json(value: Any, randomly: random.Random) -> bytes:
    """Return JSON of a value in which one or two entries are changed or removed."""
    value = json.loads(json.dumps(value))
    for _ in range(randomly.randint(1, 2)):
        value = _changed(value, randomly)
    text = json.dumps(value, ensure_ascii=randomly.random() < 0.5)
    text = text.replace(f'"{_DEEP}"', "[" * 100_000 + "]" * 100_000)
    return text.replace(f'"{_DIGITS}"', "9" * 5000).encode("utf-8", "surrogatepass")


def _changed(value: Any, randomly: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value or randomly.random() < 0.05:
        return randomly.choice(ODD_VALUES)
    keys = [*value] if isinstance(value, dict) else [*range(len(value))]
    key, other = randomly.choice(keys), randomly.choice(keys)
    match randomly.randrange(10):
        case 0:
            del value[key]
        case 1 if isinstance(value, dict):
            value[str(randomly.choice(ODD_VALUES))[:100]] = value[key]
        case 1:
            value.insert(key, value[other])
        case 2:
            value[key] = value[other]
        case _:
            value[key] = _changed(value[key], randomly)
    return value


def rewrite(path: Path, data: bytes) -> None:
    """Replace a file's content without changing its hard links."""
    path.unlink()
    path.write_bytes(data)


def replace(path: Path, randomly: random.Random) -> None:
    """Replace a file with nothing, a folder, a link, a pipe, or a file of zeros."""
    path.unlink()
    match randomly.randrange(8):
        case 0:
            pass
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(path.name)
        case 3 | 4:
            path.symlink_to(randomly.choice(_ELSEWHERE))
        case 5 | 6:
            os.mkfifo(path)
        case 7:
            path.touch()
            os.truncate(path, randomly.choice([0, 1, 2**16, 2**36]))
