"""Untrusted tensor files: what they must not be able to do, and how they are refused."""

import json
import os
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.tensor_files import check_numbers, read_header, read_safetensors, read_torch

STATE = {"weight": torch.randn(3, 4), "bias": torch.zeros(0), "count": torch.tensor(7)}


def refusal(read: Any, path: Path) -> str:
    with pytest.raises(InputError, match=f"^{path}: ") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- safetensors ----------------------------------------------------------------------------------


def forged(path: Path, header: Any, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)
    return path


def test_shapes_are_those_of_the_tensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors", {"format": "pt"})
    header = read_header(tmp_path / "a.safetensors")
    assert header.shapes == {name: tuple(tensor.shape) for name, tensor in STATE.items()}
    assert header.about == {"format": "pt"}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": 5},
        {"a": {}},
        {"a": {"shape": 5}},
        {"__metadata__": ["a"]},
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": {"shape": [' + b"9" * 5000 + b"]}}",
    ],
    ids=repr,
)
def test_invalid_headers_are_refused(header: Any, tmp_path: Path) -> None:
    assert "damaged" in refusal(read_safetensors, forged(tmp_path / "a.safetensors", header))


@pytest.mark.parametrize("length", [2**63, 2**40, 17 * 2**20])
def test_a_header_that_claims_much_is_not_read(length: int, tmp_path: Path) -> None:
    path = forged(tmp_path / "a.safetensors", {}, length)
    assert f"claims {length:,} bytes" in refusal(read_header, path)


@pytest.mark.parametrize("read", [read_safetensors, read_header, read_torch])
def test_a_pipe_is_refused_without_blocking(read: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(read, tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "symbolic links" in refusal(read, tmp_path / "loop")
    assert "too long" in refusal(read, tmp_path / ("x" * 300))


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_a_single_nan_is_found(value: float, dtype: torch.dtype, place: int) -> None:
    tensor = torch.randn(1000).to(dtype)
    check_numbers({"a": tensor, "count": torch.tensor(3)}, "here")
    tensor[place] = value
    with pytest.raises(InputError, match="here: b has NaN or infinity"):
        check_numbers({"a": torch.zeros(2), "b": tensor}, "here")


def test_float8_is_checked_too(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3).to(torch.float8_e5m2)}, tmp_path / "a.safetensors")
    assert read_safetensors(tmp_path / "a.safetensors")["a"].shape == (3,)
    save_file({"a": torch.tensor([0, torch.inf]).to(torch.float8_e5m2)}, tmp_path / "a.safetensors")
    assert "infinity" in refusal(read_safetensors, tmp_path / "a.safetensors")


def test_a_variance_is_not_negative() -> None:
    check_numbers({"norm.running_mean": torch.tensor([-1.0])}, "here")
    with pytest.raises(InputError, match=r"norm\.running_var has a negative variance"):
        check_numbers({"norm.running_var": torch.tensor([1.0, -1e-3])}, "here")


# --- torch.save -----------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_content_is_read_as_it_was_saved(zipped: bool, tmp_path: Path) -> None:
    half: list[Tensor] = [torch.randn(5).half(), torch.ones(2, dtype=torch.bool)]
    content = {"state": STATE, "settings": {"a": 1, "b": None, "c": (0.5, "x")}, "half": half}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    read = read_torch(tmp_path / "a.pt")
    assert read["settings"] == content["settings"]
    assert all(torch.equal(read["state"][name], tensor) for name, tensor in STATE.items())
    assert all(map(torch.equal, read["half"], half))


def with_pickle(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return path


class _Asks:
    def __init__(self, name: Any, *arguments: Any) -> None:
        self.asked = (name, arguments)

    def __reduce__(self) -> Any:
        return self.asked


@pytest.mark.parametrize(
    "asked", [_Asks(bytearray, 2**36), _Asks(set, [1]), _Asks(os.getcwd), _Asks(complex, 1)]
)
def test_no_other_name_is_allowed(asked: _Asks, tmp_path: Path) -> None:
    message = refusal(
        read_torch, with_pickle(tmp_path / "a.pt", pickle.dumps({"a": asked}, protocol=2))
    )
    assert f"asks for {asked.asked[0].__module__.replace('builtins', '__builtin__')} " in message
    refusal(read_torch, with_pickle(tmp_path / "a.pt", pickle.dumps({"a": asked}, protocol=4)))


def test_a_compressed_file_is_not_unpacked(tmp_path: Path) -> None:
    content = pickle.dumps(["a" * 2**26], protocol=2)
    path = with_pickle(tmp_path / "a.pt", content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    assert "compressed" in refusal(read_torch, path)


def test_records_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(STATE, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        size = max(entry.file_size for entry in archive.infolist())
    # the size of a record, in the archive's directory
    forged = content.replace(struct.pack("<II", size, size), struct.pack("<II", 2**30, 2**30))
    assert forged != content
    path.write_bytes(forged)
    assert "claims more bytes than it has" in refusal(read_torch, path)


def test_any_cut_and_any_flipped_bit_is_refused_or_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(STATE, path)
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(content), (150,), generator=generator).tolist():
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        for damaged in (content[:place], bytes(flipped)):
            path.write_bytes(damaged)
            with suppress(InputError):
                read_torch(path)
