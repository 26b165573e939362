"""Pickles as plain data: the values of pickle.loads, hostile pickles, and the memory they take."""

import base64
import gc
import io
import os
import pickle
import pickletools
import random
import struct
import sys
import tracemalloc
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirrorgan_fast.data import plain_pickle
from mirrorgan_fast.data.plain_pickle import read_plain_pickle
from mirrorgan_fast.errors import InputError

PROTOCOLS = range(6)
DTYPES = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">i4", ">f8")


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Any]:
    """Return a function that reads a pickle from bytes."""

    def of_bytes(content: bytes) -> Any:
        (tmp_path / "a.pickle").write_bytes(content)
        return read_plain_pickle(tmp_path / "a.pickle")

    return of_bytes


def random_data(rng: random.Random, depth: int) -> Any:
    """Return random data that a pickle of plain data may contain."""
    letters = "a' \"\\\n\r\0\xe9\xff\u20ac\U0001f426"
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice([-1, 1]) * rng.getrandbits(rng.choice([1, 8, 9, 16, 31, 32, 40, 63])),
        lambda: rng.choice([0.0, -0.5, 1e300, 5e-324, rng.gauss(0, 1)]),
        lambda: "".join(rng.choices(letters, k=rng.choice([0, 1, 5, 300]))),
        lambda: bytes(rng.choices(range(256), k=rng.choice([0, 1, 5, 300]))),
        lambda: random_array(rng),
        lambda: random_array(rng)[()] if depth else np.float32(0.5),
    ]
    if depth:
        size = rng.choice([0, 1, 2, 3, 4, 7])
        kinds += 3 * [
            lambda: [random_data(rng, depth - 1) for _ in range(size)],
            lambda: tuple(random_data(rng, depth - 1) for _ in range(size)),
            lambda: {
                rng.choice([i, str(i), -(2**40) * i]): random_data(rng, depth - 1)
                for i in range(size)
            },
        ]
    return rng.choice(kinds)()


def random_array(rng: random.Random) -> np.ndarray:
    shape = tuple(rng.choice([0, 1, 2, 3]) for _ in range(rng.choice([0, 1, 2, 3])))
    numbers = np.random.default_rng(rng.getrandbits(32)).integers(0, 100, shape)
    array = np.asarray(numbers.astype(rng.choice(DTYPES)))
    return rng.choice([array, np.asfortranarray(array), array[::-1] if array.ndim else array])


def assert_same(found: Any, expected: Any) -> None:
    """Assert that values and types are equal, except for NumPy scalars and byte orders."""
    if isinstance(expected, np.generic):
        expected = expected.item()
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype.newbyteorder("=")
        assert found.shape == expected.shape
        assert found.flags.writeable
        assert np.array_equal(found, expected)
        return
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


# The pickler that is written in Python (``_dumps``) fails on empty arrays in protocol 5.
@pytest.mark.parametrize(
    ("dumps", "protocol"),
    [*((pickle.dumps, number) for number in range(6)), *((pickle._dumps, n) for n in range(5))],
)
def test_plain_data_is_read_as_pickle_reads_it(
    read: Callable[[bytes], Any], dumps: Callable[[object, int], bytes], protocol: int
) -> None:
    rng = random.Random(protocol)
    for number in range(60):
        data = random_data(rng, depth=4)
        content = dumps(data, protocol)
        if number % 2:
            content = pickletools.optimize(content)
        # not compared with the data itself: pickle.loads defines what the pickle means
        assert_same(read(content), pickle.loads(content))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_and_scalars_of_each_dtype(
    read: Callable[[bytes], Any], dtype: str, protocol: int
) -> None:
    for array in (np.arange(6, dtype="u1").reshape(2, 3).astype(dtype), np.zeros((2, 0), dtype)):
        for laid_out in (array, np.asfortranarray(array)):
            assert_same(read(pickle.dumps([laid_out, "x"], protocol))[0], laid_out)
    for scalar in np.array([0, 1, 100], dtype):
        assert_same(read(pickle.dumps(scalar, protocol)), scalar)


def test_data_larger_than_a_batch_or_a_frame_is_read(read: Callable[[bytes], Any]) -> None:
    data = [
        list(range(-3000, 3000)),
        {f"w{i}": i for i in range(3000)},
        {i: f"w{i}" for i in range(3000)},
        "\xe9" * 200_000,
        np.arange(100_000, dtype="f4").reshape(10, -1),
    ]
    for protocol in PROTOCOLS:
        assert_same(read(pickle.dumps(data, protocol)), data)


# [[...], [NumPy arrays and scalars]], written by Python 2.7.18: pickle with protocol 0, and cPickle
# with protocols 1 and 2.
OF_PYTHON_2 = (
    "eNqFUsmK20AQvddXhFzUEGyqetECCclpoGHwIYacBKHdlpUhGrmRJbA/OX+RKskZEzPJHKqXWt973apLCKpLBJ4g"
    "eO0cr7lzRvaVJlvY0uS25BthVTmiXBdFkUN4JHzkdTVvHrl6Ex5ozXUP1HwwiBC2WQZJy35+X2d1X9f1uanYZyB8"
    "+/Gr647v6kljiPWEiEFWFydIFoIag2JEY+J+cvAavAFv2cOz1T4VsM0CtyoFfTWjP3nHzh07CeHEU8MuyoVDQShq"
    "iP30nC7reBya9fPUjU9hGMIFvg9NPPancZjiyPkG1JII/X5JSGRBeeTh5KCl+ZDD10QFCDi1oGNneR0B+/GSGq6r"
    "QG2zgxUdELjDzEkT12rNdYYBf5Sggc1m41dMVEwGaAs7zypus/qMuFjEz7fL4vj7jqh+9hv279mi2KdbsMEvMspJ"
    "8xx2oRWm7Qs1XVyp6VLgVTdqmp0GOTqzeSrlBemFjdGcbszMpn2FiJmJ0EKE7vHemX4jbt6Iv2KHwx8T3MLeCPt/"
    "/IVTDF0YOJGftjVmRh3L/02QrqV0rVgHy9/+TldLV12tCGXNVdfZY1kxFpifuRWRrWNgYf0bH7H2EA==",
    "eNp1kMtKw0AUhieJ9TK1ar3Wy6K4cVxYElGrUKm70k7NojDgokWSNBIxTXvSCdiFIq58CF9A8CEENy70HUTc+Abu"
    "6iTNogg9izOL88//nf80QCINkAmVaP+0368ghO7Kmnp0tK9pB7v5fP4AVzW1iqs7YS+rGtZLxV8UVek2/114QMEj"
    "Q2z8enML139AOUuJifP65Lrt7Nf9M64HMLYt7DkkQohMFTrGYfwGJgiTjAZMUsmgCSaZAVMM04IpuwGYWF7Q6vRy"
    "Vtu3c63A5ZeG7xs9fO7bVtvrcj+wOIZkLMNeczCGaUIRF168BilBIyGOw0wsa/Jex8YwS5h8sQdzFImtapAmVGFS"
    "Qdf1Sl9U1ISLWVZVzDIIvRRFoJcwL7ny9I/392OEPk9gnptOkjhDxIWYKHNYdELI5SEsxZDlkRANs6w0uCeS41dB"
    "QyWUsMLNERfpWoZr+BgyxFlmk2/xH1gVzLV/+61H+yEOG046Cif4tp37A9ZalAQ=",
    "eNprYIotZNSILWTS8Gb0/u/7/78XAwNDg6ehgaWlqaGhmZG5ubkZVxcjEH3r8HO3/8EABu515k9sOhhK54QyhLJV"
    "KKlzxbwsZI7gBcpkHF6Zk5Ov8KhpDVdMaSGLpjdjayEryGwmb2ZvlpJCttpCdo1QxsTYQg5vxkRv1lDGpNJQ5sSk"
    "5ELO1NhCLo3kvNLcgkq95PyiVL3c0pySzMSiosRKrvii1OT8vOKSotLkEq5CbogqrrwUiGwhjzdDK9Ck9qBCXqhd"
    "bYV8UEUpJZUFqVyF/KFMaSaFAt4M3oxAZYIa3syhjDZ+fn5e/4EATHgzlCR1hkowMBywB3rkAMifGtl5fmfPnLFl"
    "YHjgUChUkpTBnYGwShhiFVNboUgG0PRMi0JRqOliOEzvCFVghAQgAxOUZmZAAkBlheIlSTjCoDg5MSexiKtQIkMs"
    "lOMEVEuhZFtQoRSKu6RB7mJoLZTJEOwMBdqamqoHAPpNkp8=",
)


@pytest.mark.parametrize("packed", OF_PYTHON_2)
def test_pickles_of_python_2_are_read(read: Callable[[bytes], Any], packed: str) -> None:
    content = zlib.decompress(base64.b64decode(packed))
    plain, of_numpy = read(content)
    string = "x\"'\n\\\xe9"  # of bytes
    expected = [1, 255, 65535, -(2**31), 2**40, 10, -10, True, None, 1.5, 1e300, "", string]
    expected += ["h\xe9llo \u20ac\n\\u", (), (1,), (1, 2, 3, 4), {"a": [1], 5: "b"}, "abc"]
    assert_same(plain, expected)
    expected = [
        np.array([[1.5, -2, 0], [1e9, 0.1, 7]], "f4"),
        np.array([[1, 3], [2, -(2**40)]]),
        np.int64(200),
        np.zeros(0, "f4"),
    ]
    assert_same(of_numpy, expected)
    assert_same(of_numpy, pickle.loads(content, encoding="latin-1")[1])


# --- anything but plain data


class Calls:
    """Calls a function when ``pickle.loads`` loads it."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_name_is_imported_or_called(
    read: Callable[[bytes], Any], protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pickle.dumps([Calls(os.mkdir, str(tmp_path / "made"))], protocol)
    with pytest.raises(InputError, match=r"cannot be loaded as plain data .* could run code"):
        read(content)
    assert not (tmp_path / "made").exists()
    pickle.loads(content)  # pickle.loads does run its code
    assert (tmp_path / "made").exists()

    (tmp_path / "never_imported.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in (
        ("never_imported", "thing"),
        ("builtins", "eval"),
        ("numpy", "dtype.__new__"),
        ("numpy.core.multiarray", "scalar.__call__"),
        ("numpy", "memmap"),
        ("a\nb", "c"),
        ("", ""),
        ("\udcff" if protocol >= 4 else "x", "long" * 50_000),
    ):
        module, attribute = (text.encode("utf-8", "surrogatepass") for text in name)
        by_lines = b"c" + module + b"\n" + attribute + b"\n."
        by_stack = b"".join(b"X" + struct.pack("<I", len(t)) + t for t in (module, attribute))
        for asks in (by_lines, by_stack + b"\x93."):
            with pytest.raises(InputError) as caught:
                read(asks)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 1000
    assert "never_imported" not in sys.modules


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "thing",
    [
        {1, 2},
        frozenset([1]),
        1j,
        date(2020, 1, 1),
        OrderedDict(a=1),
        defaultdict(list),
        Path("x"),
        np.dtype("f4"),
        np.ndarray,
        np.array(["text"]),
        np.array([b"bytes"]),
        np.array([None, 1]),
        np.array([1j]),
        np.zeros(2, [("a", "i4")]),
        np.array("2020-01-01", "M8[D]"),
        np.ma.zeros(2),
        np.str_("x"),
        2**64,
        -(2**63) - 1,
        {(1, 2): 3},
        {1.5: 3},
        {True: 3},
        {None: 3},
        {b"x": 3},
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_other_types_are_refused(
    read: Callable[[bytes], Any], thing: object, protocol: int
) -> None:
    for data in (thing, [thing], (1, thing), {"a": thing}):
        with pytest.raises(InputError, match=r"a\.pickle: cannot be loaded as plain data \(.+\)$"):
            read(pickle.dumps(data, protocol))


def test_every_other_operation_is_refused(read: Callable[[bytes], Any]) -> None:
    """No version of Python writes these operations for plain data."""
    others = ["POP", "DUP", "POP_MARK", "PERSID", "BINPERSID", "INST", "OBJ", "NEWOBJ"]
    others += ["NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "EMPTY_SET", "ADDITEMS", "FROZENSET"]
    others += ["NEXT_BUFFER", "READONLY_BUFFER"]
    table = {opcode.name: opcode.code.encode("latin-1") for opcode in pickletools.opcodes}
    known = {opcode.code.encode("latin-1") for opcode in pickletools.opcodes}
    for code in [table[name] for name in others] + [
        bytes([code]) for code in range(256) if bytes([code]) not in known
    ]:
        with pytest.raises(InputError, match=r"byte 5 is .*, which plain data never has"):
            read(b"(K\1)N" + code + b"1\n1\n1\n1\n.")
    used = {code for code in known if code in plain_pickle._OPERATIONS} | {b"."}
    assert len(used) == len(known) - len(others)


DTYPE = b"cnumpy\ndtype\n(X\2\0\0\0%sI0\nI1\ntR"
STATE = b"(I3\nX\1\0\0\0<NNNI-1\nI-1\nI0\ntb"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntX\1\0\0\0btR"
SCALAR = b"cnumpy.core.multiarray\nscalar\n("
INT8 = DTYPE % b"i8" + STATE


@pytest.mark.parametrize(
    "content",
    [
        # dtypes of other kinds, and states that would reach outside the array's memory
        DTYPE % b"O8" + STATE,
        DTYPE % b"V8" + STATE,
        DTYPE % b"S8" + STATE,
        DTYPE % b"i3" + STATE,
        DTYPE % b"V8"
        + b"(I3\nX\1\0\0\0|N(X\1\0\0\0at}X\1\0\0\0a("
        + INT8
        + b"I9999\ntsI8\nI1\nI0\ntb",
        DTYPE % b"i8" + b"(I3\nX\1\0\0\0<(" + INT8 + b"(I1\nttNNI8\nI1\nI0\ntb",
        DTYPE % b"i8" + b"(I3\nX\1\0\0\0<NNNI1\nI1\nI63\ntb",
        DTYPE % b"i8" + b"(I3\nX\1\0\0\0xNNNI-1\nI-1\nI0\ntb",
        INT8 + STATE[1:],
        INT8 + b"}b",
        # scalars and arrays of too few or too many bytes, or without a complete dtype
        SCALAR + INT8 + b"C\7AAAAAAAtR",
        SCALAR + INT8 + b"C\x09AAAAAAAAAtR",
        SCALAR + INT8 + b"NtR",
        SCALAR + DTYPE % b"i8" + b"C\x08AAAAAAAAtR",
        SCALAR + b"NC\x08AAAAAAAAtR",
        ARRAY,
        ARRAY + b"(I1\n(I2\nt" + INT8 + b"I00\nC\x08AAAAAAAAtb",
        ARRAY + b"(I1\n(I-1\nt" + INT8 + b"I00\nC\x08AAAAAAAAtb",
        ARRAY + b"(I1\n(I-1\nI-1\nt" + INT8 + b"I00\nC\x08AAAAAAAAtb",
        ARRAY + b"(I1\n(I0\nI9223372036854775807\nI9223372036854775807\nt" + INT8 + b"I00\nC\0tb",
        ARRAY + b"(I1\n(I01\nt" + INT8 + b"I00\nC\x08AAAAAAAAtb",
        ARRAY + b"(I1\n(F1.0\nt" + INT8 + b"I00\nC\x08AAAAAAAAtb",
        ARRAY + b"(I1\n(" + b"I1\n" * 99 + b"t" + INT8 + b"I00\nC\x08AAAAAAAAtb",
        ARRAY + b"(I1\n(I1\nt" + INT8 + b"I00\n(C\x08AAAAAAAAltb",
        ARRAY + b"}b",
        # parts of an array on their own, or with wrong arguments
        DTYPE % b"i8",
        b"cnumpy\nndarray\n",
        b"cnumpy\nndarray\n)R",
        b"cnumpy\nndarray\n(I9999999999\ntR",
        b"cnumpy\ndtype\n]R",
        b"cnumpy\ndtype\n(" + ARRAY + b"I0\nI1\ntR",
        b"c_codecs\nencode\n(X\1\0\0\0aX\3\0\0\0ziptR",
        b"c__builtin__\nbytes\n(I9999999999\ntR",
        b"K\5)R",
        b"(K\5l)R",
        b"}}b",
        b"]}b",
        b"N}b",
    ],
)
def test_forged_parts_of_arrays_are_refused(read: Callable[[bytes], Any], content: bytes) -> None:
    with pytest.raises(InputError, match="cannot be loaded as plain data"):
        read(b"]" + content + b"a.")


def test_a_bool_is_0_or_1_whatever_its_byte_is(read: Callable[[bytes], Any]) -> None:
    dtype = DTYPE % b"b1" + STATE.replace(b"<", b"|")
    found = read(ARRAY + b"(I1\n(I3\nt" + dtype + b"I00\nC\3\0\1\xfftb.")
    assert found.view("u1").tolist() == [0, 1, 1]


# --- references


def looped_list() -> object:
    loop: list[object] = []
    loop.append(loop)
    return loop


def looped_dict() -> object:
    loop: dict[str, object] = {}
    loop["a"] = [loop]
    return loop


def looped_tuple() -> object:
    inside: list[object] = []
    inside.append((inside,))
    return inside[0]


def many_in_few_bytes() -> object:
    """10 ** 50 strings in less than 3 kilobytes."""
    data: object = "ha"
    for _ in range(50):
        data = [data] * 10
    return data


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("make", [looped_list, looped_dict, looped_tuple, many_in_few_bytes])
def test_loops_and_exponentially_large_data_are_refused(
    read: Callable[[bytes], Any], make: Callable[[], object], protocol: int
) -> None:
    with pytest.raises(InputError, match="cannot be loaded as plain data"):
        read(pickle.dumps(make(), protocol))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_short_texts_may_be_shared_but_not_containers(
    read: Callable[[bytes], Any], protocol: int
) -> None:
    text, numbers = "001.Albatross/Albatross_39", [1, 2]
    assert read(pickle.dumps([text, [text], {text: text}], protocol))[2] == {text: text}
    for twice in (numbers, tuple(numbers), {1: 2}, np.zeros(3), "x" * 5000):
        with pytest.raises(InputError, match="the same container or long text twice"):
            read(pickle.dumps([twice, twice], protocol))


# --- what reading may cost


def peak_of(read: Callable[[bytes], Any], content: bytes) -> tuple[str, int]:
    """Read, and return the error message and the peak of memory in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        read(content)
        message = "read"
    except InputError as error:
        message = str(error)
        error.__traceback__ = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return message, peak


@pytest.mark.parametrize(
    "content",
    [
        b"]r\xff\xff\xff\x0f.",
        b"]r\xff\xff\xff\xff.",
        b"]p9999999999999999999\n.",
        b"\x8e" + struct.pack("<Q", 2**60) + b"x.",
        b"\x96" + struct.pack("<Q", 2**64 - 1) + b"x.",
        b"\x8d" + struct.pack("<Q", 2**40) + b"x.",
        b"B\xff\xff\xff\xffx.",
        b"X\xff\xff\xff\xffx.",
        b"T\xff\xff\xff\x7fx.",
        b"T\xff\xff\xff\xffx.",
        b"\x8b\xff\xff\xff\x7fx.",
        b"\x8b\xff\xff\xff\xffx.",
        b"\x80\4\x95" + struct.pack("<Q", 2**60) + b"N.",
        b"I" + b"9" * 1_000_000 + b"\n.",
        b"L" + b"9" * 1_000_000 + b"L\n.",
        b"F" + b"9" * 1_000_000 + b"\n.",
        b"g" + b"9" * 1_000_000 + b"\n.",
        b"\x8b" + struct.pack("<i", 1_000_000) + b"\1" * 1_000_000 + b".",
        ARRAY + b"(I1\n(I1152921504606846976\nt" + INT8 + b"I00\nC\0tb.",
    ],
)
def test_a_large_number_in_a_file_allocates_nothing(
    read: Callable[[bytes], Any], content: bytes
) -> None:
    _, peak = peak_of(read, content)
    assert peak < 200_000 + 4 * len(content)


@pytest.mark.parametrize(
    "content",
    [
        b"(" + b"]" * 100_000 + b"l.",
        b"(" + b"}" * 100_000 + b"l.",
        b"(" + b"}K\1Ns" * 100_000 + b"l.",
        b"(" * 100_000 + b".",
        b"(" + b"G\0\1\2\3\4\5\6\7" * 100_000 + b"l.",
        b"(" + b"\x8a\x08\1\2\3\4\5\6\7\x08" * 100_000 + b"l.",
        b"(" + b"U\2ab" * 100_000 + b"l.",
        b"(" + b"V\\u1234\n" * 100_000 + b"l.",
        b"]" + b"]a" * 100_000 + b".",
        b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(100_000)) + b".",
        b"}" + b"".join(b"J" + struct.pack("<i", i) + b"Ns" for i in range(100_000)) + b".",
        b"(U\xff" + b"x" * 255 + b"q\0" + b"h\0" * 100_000 + b"l.",
        b"X\0\0\x30\0" + b"x" * (0x300000 - 4) + "\U0001f426".encode() + b".",
        b"V" + b"x" * 3_000_000 + b"\\U0001f426\n.",
        b"S'" + b"x" * 9_000_000 + b"'\n.",
        b"T\0\0\x90\0" + b"x" * 0x900000 + b".",
        b"B\0\0\x90\0" + b"x" * 0x900000 + b".",
        b"(" + b"T\0\0\x10\0" + b"x" * 0x100000 + b"T\0\0\x60\0" + b"x" * 0x600000 + b"t.",
        ARRAY + b"(I1\n(I262144\nt" + INT8 + b"I00\nB\0\0\x20\0" + b"x" * 0x200000 + b"tb.",
    ],
)
def test_values_take_no_more_than_the_limit(
    read: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """The limit is 4 MiB here, not 1 GiB; it does not include the file's own buffer."""
    monkeypatch.setattr(plain_pickle, "MOST_MEMORY", 2**22)
    message, peak = peak_of(read, content)
    if not content.startswith(ARRAY):
        assert "takes more than 4,194,304 bytes of memory" in message or "too long" in message
    assert peak < 2**22 + 100_000


def test_a_negative_length_reads_nothing(read: Callable[[bytes], Any]) -> None:
    for code in (b"T", b"\x8b"):
        message, peak = peak_of(read, code + b"\xff" * 4 + b"x" * 3_000_000 + b".")
        assert "ends early" in message
        assert peak < 200_000


def test_a_file_above_the_size_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.pickle"
    with path.open("wb") as file:
        file.write(b"N.")
        file.truncate(plain_pickle.LARGEST_FILE + 1)  # takes no space on the disk
    with pytest.raises(InputError, match=r"has 1,073,741,825 bytes, more than .* read\)"):
        read_plain_pickle(path)


@pytest.mark.parametrize(
    "content",
    [
        b"]" * 100_000 + b"a" * 99_999 + b".",
        b"(" * 100_000 + b"l" * 100_000 + b".",
        b"(" * 100_000 + b"t" * 100_000 + b".",
        b"N" + b"\x85" * 100_000 + b".",
        b"(K\1" * 100_000 + b"N" + b"d" * 100_000 + b".",
        b"}N" + b"\x85" * 100_000 + b"Ns.",
        b"cnumpy\ndtype\nN" + b"\x85" * 100_000 + b"R.",
        ARRAY + b"N" + b"\x85" * 100_000 + b"b.",
    ],
)
def test_deep_nesting_is_refused(read: Callable[[bytes], Any], content: bytes) -> None:
    with pytest.raises(InputError, match="cannot be loaded as plain data"):
        read(content)
    gc.collect()


def test_containers_may_be_nested_16_deep(read: Callable[[bytes], Any]) -> None:
    data: list[object] = [1]
    for _ in range(15):
        data = [data]
    assert read(pickle.dumps(data)) == data
    with pytest.raises(InputError, match="more than 16 deep"):
        read(pickle.dumps([data]))


# --- damage


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"N",
        b"NN.",
        b"(N.",
        b"N.N",
        b"N.\n",
        b"K",
        b"J\0\0",
        b"a.",
        b"Na.",
        b"NNa.",
        b"](a.",
        b"e.",
        b"(e.",
        b"}(K\1u.",
        b"}K\1s.",
        b"\x85.",
        b"(N\x86.",
        b"q\0.",
        b"h\0.",
        b"Nh\0.",
        b"g-1\n.",
        b"S\n.",
        b"S'\n.",
        b"S'a\"\n.",
        b"S'\\x\n.",
        b"Sabc\n.",
        b"S'abc'",
        b"Ix\n.",
        b"I\n.",
        b"I1",
        b"Fx\n.",
        b"U\5abc.",
        b"X\1\0\0\0\xff.",
        b"V\\u12\n.",
        b"R.",
        b"NR.",
        b"NNR.",
        b"b.",
        b"Nb.",
        b"\x80\6N.",
        b"\x80\xffN.",
        b"N\x80\2.",
        b"\x95\0\0.",
        b"c.",
        b"cnumpy\n.",
        b"NN\x93.",
    ],
)
def test_a_damaged_pickle_is_refused(read: Callable[[bytes], Any], content: bytes) -> None:
    with pytest.raises(InputError, match=r"a\.pickle: cannot be loaded as plain data \(.+\)$"):
        read(content)


def test_random_operations_and_mutations_give_data_or_one_line(
    read: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_pickle, "MOST_MEMORY", 2**24)
    rng = random.Random(28)
    parts = [code + b"\1\0\0\0" for code in plain_pickle._OPERATIONS]
    parts += [*plain_pickle._OPERATIONS, b".", INT8, ARRAY, SCALAR, STATE, b"C\x08", b"0\n"]
    parts += [b"N", b"]", b")", b"}", b"(", b"t", b"l", b"R", b"b", b"\xff\xff\xff\xff"]
    read_well, messages = 0, []
    for number in range(1500):
        if number % 2:
            content = b"".join(rng.choices(parts, k=rng.randrange(1, 30))) + b"."
        else:
            content = pickle.dumps(random_data(rng, 3), rng.choice(PROTOCOLS))
            damaged = bytearray(content)
            for _ in range(rng.choice([0, 1, 1, 2, 5])):
                place = rng.randrange(len(damaged) + 1)
                other = rng.choice([b"", rng.choice(parts), rng.randbytes(1)])
                damaged[place : place + rng.choice([0, 1, 1, 4])] = other
            content = bytes(damaged)
        try:
            assert only_plain(read(content)), content
            read_well += 1
        except InputError as error:
            messages.append(str(error))
    assert all(message.isprintable() and len(message) < 1000 for message in messages)
    assert 150 < read_well < 1000


def only_plain(data: object) -> bool:
    if isinstance(data, np.ndarray):
        return data.dtype.kind in "biuf" and data.dtype.isnative
    if type(data) is dict:
        return {*map(type, data)} <= {int, str} and only_plain(list(data.values()))
    if type(data) in (list, tuple):
        return all(map(only_plain, data))
    return type(data) in (type(None), bool, int, float, str, bytes)


# --- files


def test_anything_but_a_regular_file_is_refused_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in (".", "pipe", "loop", "missing", "x" * 300, "a\0b", "missing\n"):
        with pytest.raises(InputError) as caught:
            read_plain_pickle(f"{tmp_path}/{name}")
        assert str(caught.value).isprintable()


def test_the_file_is_closed(tmp_path: Path) -> None:
    (tmp_path / "a.pickle").write_bytes(pickle.dumps([1]))
    opened: list[io.IOBase] = []
    original = plain_pickle.open_file

    def keep(path: Any) -> Any:
        opened.append(original(path))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_pickle, "open_file", keep)
        assert read_plain_pickle(tmp_path / "a.pickle") == [1]
        (tmp_path / "a.pickle").write_bytes(b"")
        with pytest.raises(InputError):
            read_plain_pickle(tmp_path / "a.pickle")
    assert all(file.closed for file in opened)
