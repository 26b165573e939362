"""Files of tensors that may be anything: safetensors, and what ``torch.save`` writes."""

import io
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import StrPath, open_file, parse_json, reason

_LONGEST_HEADER = 16 * 2**20  # bytes; 1,600 tensors of the largest preset take 0.2 MB
_LONGEST_PICKLE = 64 * 2**20  # bytes; what torch.save says of 1,600 tensors takes 0.2 MB
_FETCH = "fetch or make it again"
# What the pickle in a file of torch.save needs for a state dict. PyTorch's own reader, which runs
# no code either (weights_only), lets more through: a bytearray of any size, for example.
_NAMES = re.compile(
    r"collections OrderedDict"
    r"|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)"
    r"|torch (Size|(Bool|Byte|Char|Short|Int|Long|Half|BFloat16|Float|Double)Storage)"
    r"|torch\.storage UntypedStorage"
)


def read_shapes(path: StrPath) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a safetensors file, of which only the header is read.

    Raises:
        InputError: the file cannot be read, or is not safetensors.
    """
    with open_file(path) as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError(f"its header claims {length:,} bytes")
            header = parse_json(file.read(length))
            return {
                name: tuple(about["shape"])
                for name, about in header.items()
                if name != "__metadata__"
            }
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({reason(error)})") from error
        except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
            raise _damaged(path, str(error)) from error


def read_safetensors(path: StrPath) -> dict[str, Tensor]:
    """Read a safetensors file, whose tensors change with it.

    Raises:
        InputError: the file cannot be read, is not safetensors, or has NaN or infinity.
    """
    read_shapes(path)
    try:
        tensors = load_file(path)
    # Its reader says FileNotFoundError of a file that may not be mapped, and ValueError of a type.
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(path, str(error)) from error
    check_numbers(tensors, path)
    return tensors


def read_torch(path: StrPath, kind: str = "weights", advice: str = _FETCH) -> Any:
    """Read what ``torch.save`` wrote of containers, numbers, strings and tensors, to the CPU.

    No code of the file is run, and reading takes no more memory than the file has bytes.

    Args:
        path: of the file.
        kind: what it is to be, in an error.
        advice: what to do if it is not, in an error.

    Raises:
        InputError: the file cannot be read, is damaged, or holds something else.
    """
    with open_file(path) as file:
        try:
            _check_torch(file)
            return torch.load(file, map_location="cpu", weights_only=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({reason(error)})") from error
        except MemoryError:
            raise
        # What the readers raise depends on the byte that is wrong: EOFError, UnicodeDecodeError ...
        except Exception as error:
            told = str(error).splitlines()[0] if isinstance(error, ValueError) else ""
            raise _damaged(path, told or type(error).__name__, kind, advice) from error


def check_numbers(tensors: Mapping[str, Tensor], path: StrPath) -> None:
    """Raise InputError if a tensor has NaN or infinity, or a variance is negative."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        numbers = tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()
        # of numbers with NaN among them, both ends are NaN
        least, most = (float(end) for end in torch.aminmax(numbers))
        if not (least > -torch.inf and most < torch.inf):
            raise InputError(
                f"{path}: {name} has NaN or infinity, as of a training that diverged; use other "
                f"weights"
            )
        if name.endswith("running_var") and least < 0:
            raise InputError(f"{path}: {name} has a negative variance; use other weights")


def _check_torch(file: BinaryIO) -> None:
    """Raise ValueError if reading what ``torch.save`` wrote could run code or take much memory."""
    if not zipfile.is_zipfile(file):  # of before PyTorch 1.6: pickles, then the tensors' bytes
        file.seek(0)
        for _ in range(5):
            _check_names(file)
        file.seek(0)
        return
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("it claims more bytes than it has")
        for entry in entries:
            if Path(entry.filename).name == "data.pkl":
                if entry.file_size > _LONGEST_PICKLE:
                    raise ValueError(f"its pickle has {entry.file_size:,} bytes")
                _check_names(io.BytesIO(archive.read(entry)))
    file.seek(0)


def _check_names(pickle: BinaryIO) -> None:
    for opcode, argument, _ in pickletools.genops(pickle):
        # torch.save writes protocol 2, whose names are all in this opcode
        if opcode.name == "GLOBAL" and not _NAMES.fullmatch(str(argument)):
            raise ValueError(f"it asks for {argument}")
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"it has the opcode {opcode.name}")


def _damaged(path: StrPath, told: str, kind: str = "weights", advice: str = _FETCH) -> InputError:
    return InputError(
        f"{path}: cannot be read as {kind} ({told}); it is damaged, or holds more than tensors: "
        f"{advice}"
    )
