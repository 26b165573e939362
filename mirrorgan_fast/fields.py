"""Dataclass fields with bounds, and checks of their types and values."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from math import isfinite
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mirrorgan_fast.errors import InputError

WORDS = tuple[str, ...]
"""The type of fields that list words."""


def bounded(
    default: Any, least: float, most: float | None = None, *, below: float | None = None
) -> Any:
    """Return a dataclass field for numbers from ``least`` to ``most``, or below ``below``.

    For a pair of numbers, the bounds apply to each of them.
    """
    return dataclasses.field(
        default=default, metadata={"least": least, "most": most, "below": below}
    )


def check_fields(record: Any, subject: str) -> None:
    """Check every field of a dataclass: its type, its choices and its bounds.

    ``True``, NaN and infinity do not count as numbers. Fields of types other than bool, int, float,
    Literal, pairs of float and tuples of words are not checked.

    Args:
        record: an instance of a dataclass.
        subject: its name in error messages, such as "model config".

    Raises:
        InputError: a value is not valid for its field; the message names the field and what is
            expected.
    """
    kinds = field_kinds(type(record))
    for field in dataclasses.fields(record):
        value, kind = getattr(record, field.name), kinds[field.name]
        wanted = _wanted(value, kind, field.metadata)
        if wanted is not None:
            raise InputError(f"{subject}: {field.name} is {value!r:.80}, expected {wanted}")


def changed_fields(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that do not have their default value.

    If a later version adds a field, its default therefore changes neither a fingerprint nor the
    settings of a run.
    """
    changed = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = field.default
        if value != default:
            changed[field.name] = value
    return changed


def describe_fields(record: Any, within: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield the name, value, expected values and meaning of every field, also of nested records.

    The meaning is the text below the field in the source of its class.

    Args:
        record: an instance of a dataclass.
        within: put before the names.
    """
    kinds, meanings = field_kinds(type(record)), _meanings(type(record))
    for field in dataclasses.fields(record):
        name, value, kind = within + field.name, getattr(record, field.name), kinds[field.name]
        if dataclasses.is_dataclass(value):
            yield from describe_fields(value, f"{name}.")
            continue
        expected = _expected(kind, field.metadata) or ""
        if isinstance(value, bool):
            text = str(value).lower()
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        yield name, text, expected, meanings.get(field.name, "")


def _meanings(record: type) -> dict[str, str]:
    """Return the text below each field in the source of a dataclass and its bases."""
    found: dict[str, str] = {}
    for cls in reversed(record.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(tree, ast.ClassDef)
        for statement, below in itertools.pairwise(tree.body):
            match statement, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = " ".join(text.replace("``", "").split())
    return found


def field_kinds(record: type) -> dict[str, Any]:
    """Return the type of each field of a dataclass, even if its annotations are strings."""
    return get_type_hints(record)


def _wanted(value: object, kind: Any, bounds: Any) -> str | None:
    """Return what is expected instead of a value, or None if the value is valid."""
    if get_origin(kind) is Literal:
        right = any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    elif kind is bool:
        right = type(value) is bool
    elif kind == WORDS:
        right = isinstance(value, tuple) and all(
            isinstance(word, str) and word.split() == [word] and "," not in word for word in value
        )
    elif get_origin(kind) is tuple:
        parts = value if isinstance(value, tuple) else ()
        right = len(parts) == 2 and all(_is_within(part, float, bounds) for part in parts)
    else:
        right = kind not in (int, float) or _is_within(value, kind, bounds)
    return None if right else _expected(kind, bounds)


def _expected(kind: Any, bounds: Any) -> str | None:
    """Return what the values of a field may be, or None if it may be anything."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if kind is bool:
        return "true or false"
    if kind == WORDS:
        return "words with commas between them"
    if get_origin(kind) is tuple:
        return f"two numbers {_range(bounds)}"
    if kind in (int, float):
        return f"a {'whole ' if kind is int else ''}number {_range(bounds)}"
    return None


def _is_within(value: Any, kind: type, bounds: Any) -> bool:
    if type(value) is not int and (kind is int or type(value) is not float or not isfinite(value)):
        return False
    least, most, below = (bounds.get(name) for name in ("least", "most", "below"))
    return (
        (least is None or value >= least)
        and (most is None or value <= most)
        and (below is None or value < below)
    )


def _range(bounds: Any) -> str:
    least, most, below = (bounds.get(name) for name in ("least", "most", "below"))
    end = f" to {most:,}" if most is not None else f" to below {below:,}" if below else ""
    return f"from {least:,}{end}" if end else f"from {least:,} up"
