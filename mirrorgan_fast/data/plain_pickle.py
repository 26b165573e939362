"""Reading pickles of plain data: numbers, text, lists, tuples, dictionaries and NumPy arrays.

A pickle is a program for a small stack machine. ``pickle.load`` runs all of it, and so imports and
calls whatever the file names. The machine here knows only the operations that plain data needs,
which are in the table at the end of this file, and refuses all others. The few names that NumPy's
numbers and arrays need become members of ``_Name``: nothing is looked up or imported.

A file may be damaged or hostile, so the memory and time that it can take are limited, too. Every
value is charged against ``MOST_MEMORY``, and no value is created that is larger than the rest of
this memory or the rest of the file. No list, tuple, dictionary or array may occur twice, so the
result is a tree: it has no cycles, and traversing it takes no longer than reading it.
"""

import codecs
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from struct import Struct
from sys import getsizeof
from typing import Any, BinaryIO

import numpy as np

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import StrPath, open_file

LARGEST_FILE = 2**30
"""Maximum size of a file in bytes. The largest such file in use has 363 MB: ten captions for each
of CUB's 8,855 training pictures, each as 1,024 numbers. Written as text, in Python 2's protocol 0,
it is three times as large."""
MOST_MEMORY = 2**30
"""Maximum memory for the values of one file, in bytes. COCO's captions as numbers, the largest file
in use in this respect, are charged 0.7 of it."""

_MAX_NESTING = 16  # depth of containers in containers; files in use have three levels
_SHORT = 255  # bytes; a value up to this size is read without a check of how many bytes are left
_LONGEST_LINE = 2**26  # bytes; an array of 1,024 numbers for each of ten captions: up to 2**18
_LONGEST_NUMBER = 32  # bytes of a line; a float takes up to 24
_LONGEST_NAME = 128  # bytes of a line

# Bytes that are charged in addition to an object's own size: its slots on the stack and in a
# container; an entry of a dictionary or of the memo, which reallocate as they grow; and the stack
# that a mark starts.
_SLOT, _ENTRY, _MARK = 32, 160, 128
_COPIES = 8  # bytes per byte of text; Python may hold the text in three widths while it decodes it


class _Name(Enum):
    """What a name in a pickle stands for."""

    DTYPE = auto()
    NDARRAY = auto()
    RECONSTRUCT = auto()
    FROMBUFFER = auto()
    SCALAR = auto()
    ENCODE = auto()
    BYTES = auto()


_NAMES = {
    ("numpy", "dtype"): _Name.DTYPE,
    ("numpy", "ndarray"): _Name.NDARRAY,
    ("numpy.core.multiarray", "_reconstruct"): _Name.RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _Name.RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _Name.FROMBUFFER,
    ("numpy._core.numeric", "_frombuffer"): _Name.FROMBUFFER,
    ("numpy.core.multiarray", "scalar"): _Name.SCALAR,
    ("numpy._core.multiarray", "scalar"): _Name.SCALAR,
    ("_codecs", "encode"): _Name.ENCODE,  # Python 3 writes bytes for Python 2 with this name
    ("__builtin__", "bytes"): _Name.BYTES,  # and empty bytes with this one
}

_TYPES = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})


@dataclass(slots=True)
class _Dtype:
    """A NumPy dtype: its kind and size, and its byte order once ``build`` has set it."""

    code: str
    order: str | None = None


class _Array:
    """A placeholder for a NumPy array, until ``build`` replaces it with the array itself."""

    __slots__ = ()


# The types that the result may contain, and the types whose values may occur more than once.
_CONTAINERS = frozenset({list, tuple, dict})
_PLAIN = _CONTAINERS | {type(None), bool, int, float, str, bytes, np.ndarray}
_MAY_RECUR = frozenset({str, bytes, int, float, _Name, _Dtype})
_LONGEST_RECURRING = 4096  # characters; a longer text is the content of an array
_ONCE = object()  # stands in the memo for a value that may not occur again


def read_plain_pickle(path: StrPath) -> Any:
    """Read a pickle of plain data, of any protocol, by Python 2 or 3, without running any of it.

    Python 2's strings are decoded as Latin-1, NumPy's scalars become Python's numbers, and arrays
    get the byte order of this computer.

    Args:
        path: the file, of at most ``LARGEST_FILE`` bytes.

    Returns:
        None, bool, int of at most 64 bits, float, str, bytes, an array of numbers or of bools, or
        lists, tuples and dictionaries of these, with int or str as keys. It has no cycles.

    Raises:
        InputError: the file cannot be read, is too large, is not a pickle, or contains something
            other than plain data, or its values would take more than ``MOST_MEMORY`` bytes.
    """
    with open_file(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST_FILE:
                raise ValueError(f"it has {size:,} bytes, more than the {LARGEST_FILE:,} read")
            return _Machine(file, size).run()
        except MemoryError:
            raise
        except Exception as error:  # damaged files underflow the stack, end early, and so on
            raise InputError(f"{path}: cannot be loaded as plain data ({error})") from error


class _Machine:
    """The stack machine, for one file.

    Attributes:
        stack: the values since the last mark.
        marked: the stacks before each mark.
        memo: values that the file may refer to by their numbers.
        room: number of bytes of ``MOST_MEMORY`` that are left.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.room = MOST_MEMORY

    def run(self) -> Any:
        """Return the value that the file describes."""
        read = self.file.read
        while (opcode := read(1)) != b".":
            operation = _OPERATIONS.get(opcode)
            if not opcode:
                raise ValueError("it ends early")
            if operation is None:
                place = self.file.tell() - 1
                raise ValueError(f"byte {place} is {opcode!r}, which plain data never has")
            operation(self)
        if self.file.read(1):
            raise ValueError("it continues after its end")
        if self.marked or len(self.stack) != 1:
            raise ValueError("it leaves more or less than one value")
        _check_plain(self.stack)
        return self.stack[0]

    # --- reading the file and accounting for memory

    def take(self, count: int) -> bytes:
        """Read a few bytes."""
        data = self.file.read(count)
        if len(data) != count:
            raise ValueError("it ends early")
        return data

    def number(self, form: Struct) -> Any:
        """Read a number of fixed size."""
        return form.unpack(self.take(form.size))[0]

    def line(self, longest: int) -> bytes:
        """Read up to a line feed, and return the line without it."""
        line = self.file.readline(min(longest, self.room // _COPIES) + 1)
        if not line.endswith(b"\n"):
            raise ValueError("it ends early, or a line is too long")
        return line[:-1]

    def need(self, count: int) -> None:
        """Raise ValueError if fewer than ``count`` bytes of memory are left."""
        if count > self.room:
            raise ValueError(f"it takes more than {MOST_MEMORY:,} bytes of memory")

    def spend(self, count: int) -> None:
        """Charge ``count`` bytes of memory."""
        self.need(count)
        self.room -= count

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.room -= getsizeof(value) + _SLOT
        if self.room < 0:
            self.need(0)
        self.stack.append(value)

    # --- values

    def sized(self, size: Struct, decode: Callable[[bytes], Any], copies: int) -> None:
        """Push a value that is preceded by its size.

        Args:
            size: the form of the size.
            decode: turns the bytes into the value.
            copies: how many times its size the value may take in memory while it is decoded.
        """
        count = self.number(size)
        if count < 0 or (count > _SHORT and count > self.size - self.file.tell()):
            raise ValueError("it ends early")
        self.need(copies * count)
        self.push(decode(self.take(count)))

    def tuple_of(self, count: int) -> None:
        """Replace the last values on the stack with a tuple of them."""
        if count > len(self.stack):
            raise ValueError("a value is missing")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(items)

    # --- marks, and containers of the values after a mark

    def mark(self) -> None:
        self.spend(_MARK)
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Remove the last mark and return the values after it."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def make_tuple(self) -> None:
        self.push(tuple(self.since_mark()))

    def make_list(self) -> None:
        self.push(self.since_mark())

    def make_dict(self) -> None:
        items = self.since_mark()
        self.push({})
        self.set_items(items)

    def append(self) -> None:
        value = self.stack.pop()
        self.last(list).append(value)

    def extend(self) -> None:
        items = self.since_mark()
        self.last(list).extend(items)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def set_many(self) -> None:
        self.set_items(self.since_mark())

    def set_items(self, items: list[Any]) -> None:
        """Add items to the last dictionary. Keys and values alternate."""
        keys, values = items[::2], items[1::2]
        if not {*map(type, keys)} <= {int, str}:
            raise ValueError("a key is neither a whole number nor text")
        self.spend(_ENTRY * len(keys))
        self.last(dict).update(zip(keys, values, strict=True))

    def last(self, kind: type) -> Any:
        """Return the last value, which must be of this type."""
        value = self.stack[-1]
        if type(value) is not kind:
            raise ValueError(f"there is no {kind.__name__} to put a value into")
        return value

    # --- the memo

    def put(self, index: int) -> None:
        """Store the last value for ``get``."""
        value = self.stack[-1]
        recurs = type(value) in _MAY_RECUR
        if recurs and isinstance(value, str | bytes):
            recurs = len(value) <= _LONGEST_RECURRING
        self.spend(_ENTRY)
        self.memo[index] = value if recurs else _ONCE

    def get(self, index: int) -> None:
        """Push the value that was stored under this number."""
        if index not in self.memo:
            raise ValueError("it refers to a value that it does not have")
        value = self.memo[index]
        if value is _ONCE:
            raise ValueError("it has the same container or long text twice")
        self.push(value)

    def memoize(self) -> None:
        self.put(len(self.memo))

    # --- NumPy's numbers and arrays

    def name(self, module: object, name: object) -> None:
        """Push what a name stands for."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name is not text")
        if (module, name) not in _NAMES:
            full_name = f"{module[:_LONGEST_NAME]}.{name[:_LONGEST_NAME]}"
            raise ValueError(f"it asks for {full_name}, which could run code")
        self.push(_NAMES[module, name])

    def name_of_lines(self) -> None:
        module, name = self.line(_LONGEST_NAME), self.line(_LONGEST_NAME)
        self.name(module.decode(), name.decode())

    def name_of_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def reduce(self) -> None:
        """Push the result of calling a name with its arguments."""
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name) or type(arguments) is not tuple:
            raise ValueError("it calls something other than a name")
        match name, arguments:
            case _Name.DTYPE, (str(code), int(), int()) if code in _TYPES:
                value: Any = _Dtype(code)
            case _Name.RECONSTRUCT, (_Name.NDARRAY, (0,), "b" | b"b"):
                value = _Array()
            case (
                _Name.FROMBUFFER,
                (bytes(data), _Dtype() as dtype, tuple(shape), ("C" | "F") as order),
            ):
                value = self.array(dtype, shape, data, order)
            case _Name.SCALAR, (_Dtype() as dtype, (str() | bytes()) as data):
                value = self.array(dtype, (), data, "C").item()
            case _Name.ENCODE, (str(text), "latin1"):
                self.need(len(text))
                value = text.encode("latin-1")
            case _Name.BYTES, ():
                value = b""
            case _:
                raise ValueError(f"{name.name.lower()} does not have the arguments of plain data")
        self.push(value)

    def build(self) -> None:
        """Set the byte order of a dtype or the content of an array."""
        state, value = self.stack.pop(), self.stack[-1]
        if type(state) is not tuple:
            raise ValueError("it has an object that is not plain data")
        match value, state:
            case (
                _Dtype(order=None),
                (3, ("<" | ">" | "|") as order, None, None, None, -1, -1, 0),
            ):
                value.order = order
            case (
                _Array(),
                (1, tuple(shape), _Dtype() as dtype, int(by_columns), (str() | bytes()) as data),
            ):
                order = "F" if by_columns else "C"
                self.stack[-1] = self.array(dtype, shape, data, order)
            case _:
                raise ValueError("it has an object that is not plain data")

    def array(
        self, dtype: _Dtype, shape: tuple[Any, ...], data: str | bytes, order: Any
    ) -> np.ndarray:
        """Create an array from its bytes, which Python 2 writes as a string."""
        if dtype.order is None:
            raise ValueError("a dtype has no byte order")
        # A bool whose byte is neither 0 nor 1 would break NumPy.
        stored = np.dtype(dtype.order + ("u1" if dtype.code == "b1" else dtype.code))
        if not {*map(type, shape)} <= {int} or min(shape, default=0) < 0:
            raise ValueError("an array has an invalid shape")
        if math.prod(shape) * stored.itemsize != len(data):
            raise ValueError("an array has more or less data than its shape says")
        self.spend(_ENTRY)
        self.need(2 * len(data))
        raw = data.encode("latin-1") if isinstance(data, str) else data
        return np.frombuffer(raw, stored).astype(np.dtype(dtype.code)).reshape(shape, order=order)

    # --- operations that only describe the file

    def protocol(self) -> None:
        if self.file.tell() != 1 or self.take(1) > b"\5":
            raise ValueError("its protocol is not one of 0 to 5")

    def frame(self) -> None:
        self.spend(_ENTRY)
        if self.number(_UINT64) > self.size - self.file.tell():
            raise ValueError("it ends early")


def _check_plain(values: list[Any]) -> None:
    """Raise ValueError if a value or its contents are not plain data, or are nested too deeply."""
    containers: list[Any] = [values]
    for _ in range(_MAX_NESTING + 1):
        inner = []
        for container in containers:
            items = container.values() if type(container) is dict else container
            if not {*map(type, items)} <= _PLAIN:
                raise ValueError("it has an object that is not plain data")
            inner += [item for item in items if type(item) in _CONTAINERS]
        containers = inner
    if containers:
        raise ValueError(f"it has containers that are nested more than {_MAX_NESTING} deep")


# --- how values are written -----------------------------------------------------------------------


def _whole_number(line: bytes) -> int:
    return line == b"01" if line in (b"00", b"01") else _of_64_bits(int(line))


def _long_number(line: bytes) -> int:
    return _of_64_bits(int(line.removesuffix(b"L")))


def _integer(data: bytes) -> int:
    return _of_64_bits(int.from_bytes(data, "little", signed=True))


def _of_64_bits(number: int) -> int:
    if not -(2**63) <= number < 2**64:
        raise ValueError("it has a whole number of more than 64 bits")
    return number


def _quoted(line: bytes) -> str:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError("a string has no quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")


def _escaped(line: bytes) -> str:
    return line.decode("raw-unicode-escape")


def _latin(data: bytes) -> str:
    return data.decode("latin-1")


def _utf8(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


# --- the operations -------------------------------------------------------------------------------

_Operation = Callable[[_Machine], None]

_UINT8, _UINT16, _UINT32, _UINT64 = Struct("<B"), Struct("<H"), Struct("<I"), Struct("<Q")
_INT32, _DOUBLE = Struct("<i"), Struct(">d")


def _new(make: Callable[[], Any]) -> _Operation:
    return lambda machine: machine.push(make())


def _fixed(form: Struct) -> _Operation:
    size, unpack = form.size, form.unpack
    return lambda machine: machine.push(unpack(machine.file.read(size))[0])


def _line(parse: Callable[[bytes], Any], longest: int = _LONGEST_NUMBER) -> _Operation:
    return lambda machine: machine.push(parse(machine.line(longest)))


def _sized(size: Struct, decode: Callable[[bytes], Any], copies: int = 2) -> _Operation:
    return lambda machine: machine.sized(size, decode, copies)


def _tuple(count: int) -> _Operation:
    return lambda machine: machine.tuple_of(count)


def _put(form: Struct) -> _Operation:
    return lambda machine: machine.put(machine.number(form))


def _get(form: Struct) -> _Operation:
    return lambda machine: machine.get(machine.number(form))


_OPERATIONS: dict[bytes, _Operation] = {
    # numbers and None
    b"N": _new(lambda: None),
    b"\x88": _new(lambda: True),
    b"\x89": _new(lambda: False),
    b"I": _line(_whole_number),
    b"L": _line(_long_number),
    b"F": _line(float),
    b"K": _fixed(_UINT8),
    b"M": _fixed(_UINT16),
    b"J": _fixed(_INT32),
    b"G": _fixed(_DOUBLE),
    b"\x8a": _sized(_UINT8, _integer),
    b"\x8b": _sized(_INT32, _integer),
    # text: strings of Python 2, then Unicode strings
    b"S": _line(_quoted, _LONGEST_LINE),
    b"U": _sized(_UINT8, _latin),
    b"T": _sized(_INT32, _latin),
    b"V": _line(_escaped, _LONGEST_LINE),
    b"\x8c": _sized(_UINT8, _utf8, _COPIES),
    b"X": _sized(_UINT32, _utf8, _COPIES),
    b"\x8d": _sized(_UINT64, _utf8, _COPIES),
    # bytes; NumPy writes the content of an array as a bytearray
    b"C": _sized(_UINT8, bytes),
    b"B": _sized(_UINT32, bytes),
    b"\x8e": _sized(_UINT64, bytes),
    b"\x96": _sized(_UINT64, bytes),
    # containers
    b"(": _Machine.mark,
    b")": _new(tuple),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"t": _Machine.make_tuple,
    b"]": _new(list),
    b"l": _Machine.make_list,
    b"a": _Machine.append,
    b"e": _Machine.extend,
    b"}": _new(dict),
    b"d": _Machine.make_dict,
    b"s": _Machine.set_item,
    b"u": _Machine.set_many,
    # the memo
    b"p": lambda machine: machine.put(int(machine.line(_LONGEST_NUMBER))),
    b"q": _put(_UINT8),
    b"r": _put(_UINT32),
    b"\x94": _Machine.memoize,
    b"g": lambda machine: machine.get(int(machine.line(_LONGEST_NUMBER))),
    b"h": _get(_UINT8),
    b"j": _get(_UINT32),
    # NumPy's numbers and arrays
    b"c": _Machine.name_of_lines,
    b"\x93": _Machine.name_of_stack,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
    # description of the file; `run` handles its end, b"."
    b"\x80": _Machine.protocol,
    b"\x95": _Machine.frame,
}
