"""Safe reading of untrusted tensor files, in the formats of safetensors and ``torch.save``."""

import io
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import StrPath, open_file, parse_json, reason

_MAX_HEADER_BYTES = 16 * 2**20  # the header for 1,600 tensors of the largest recipe takes 0.2 MB
_MAX_PICKLE_BYTES = 64 * 2**20  # torch.save's pickle for 1,600 tensors takes 0.2 MB
_GET_ANOTHER = "download or create it again"
# The names that a state dict's pickle in a file of torch.save needs. PyTorch's own reader, which
# does not run code either (weights_only), allows more: a bytearray of any size, for example.
_ALLOWED_NAMES = re.compile(
    r"collections OrderedDict"
    r"|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)"
    r"|torch (Size|(Bool|Byte|Char|Short|Int|Long|Half|BFloat16|Float|Double)Storage)"
    r"|torch\.storage UntypedStorage"
)


class Header(NamedTuple):
    """What the beginning of a safetensors file says."""

    shapes: dict[str, tuple[int, ...]]
    """Of the tensors."""
    about: dict[str, str]
    """Texts that were written with the tensors, by their names."""


def read_header(path: StrPath) -> Header:
    """Return what the beginning of a safetensors file says; the tensors are not read.

    Raises:
        InputError: the file cannot be read, or is not a safetensors file.
    """
    with open_file(path) as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"its header claims {length:,} bytes")
            header = parse_json(file.read(length))
            about = header.pop("__metadata__", {})
            shapes = {name: tuple(tensor["shape"]) for name, tensor in header.items()}
            return Header(shapes, {name: str(text) for name, text in about.items()})
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({reason(error)})") from error
        except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
            raise _damaged(path, str(error)) from error


def read_safetensors(path: StrPath) -> dict[str, Tensor]:
    """Read a safetensors file. Its tensors map the file's memory and change when the file does.

    Raises:
        InputError: the file cannot be read, is not a safetensors file, or has NaN or infinity.
    """
    read_header(path)
    try:
        tensors = load_file(path)
    # load_file raises FileNotFoundError if the file cannot be mapped, ValueError for unknown types
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(path, str(error)) from error
    check_numbers(tensors, path)
    return tensors


def read_torch(path: StrPath, kind: str = "weights", advice: str = _GET_ANOTHER) -> Any:
    """Read containers, numbers, strings and tensors that ``torch.save`` wrote, to the CPU.

    No code in the file is run, and reading takes no more memory than the file has bytes.

    Args:
        path: of the file.
        kind: what the file should contain, for error messages.
        advice: what to do if it does not, for error messages.

    Raises:
        InputError: the file cannot be read, is damaged, or contains something else.
    """
    with open_file(path) as file:
        try:
            _check_torch(file)
            return torch.load(file, map_location="cpu", weights_only=True)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({reason(error)})") from error
        except MemoryError:
            raise
        # The exception depends on which byte is wrong: EOFError, UnicodeDecodeError ...
        except Exception as error:
            why = str(error).splitlines()[0] if isinstance(error, ValueError) else ""
            raise _damaged(path, why or type(error).__name__, kind, advice) from error


def check_numbers(tensors: Mapping[str, Tensor], path: StrPath) -> None:
    """Raise InputError if a tensor has NaN or infinity, or a variance is negative."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        numbers = tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()
        # both are NaN if any number is NaN
        minimum, maximum = (float(end) for end in torch.aminmax(numbers))
        if not (minimum > -torch.inf and maximum < torch.inf):
            raise InputError(
                f"{path}: {name} has NaN or infinity, as after training that diverged; use other "
                f"weights"
            )
        if name.endswith("running_var") and minimum < 0:
            raise InputError(f"{path}: {name} has a negative variance; use other weights")


def _check_torch(file: BinaryIO) -> None:
    """Raise ValueError if reading what ``torch.save`` wrote could run code or take much memory."""
    if not zipfile.is_zipfile(file):  # from before PyTorch 1.6: pickles, then the tensors' bytes
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
                if entry.file_size > _MAX_PICKLE_BYTES:
                    raise ValueError(f"its pickle has {entry.file_size:,} bytes")
                _check_names(io.BytesIO(archive.read(entry)))
    file.seek(0)


def _check_names(pickle: BinaryIO) -> None:
    for opcode, argument, _ in pickletools.genops(pickle):
        # torch.save writes protocol 2, in which GLOBAL is the only opcode with names
        if opcode.name == "GLOBAL" and not _ALLOWED_NAMES.fullmatch(str(argument)):
            raise ValueError(f"it asks for {argument}")
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"it has the opcode {opcode.name}")


def _damaged(
    path: StrPath, why: str, kind: str = "weights", advice: str = _GET_ANOTHER
) -> InputError:
    return InputError(
        f"{path}: cannot be read as {kind} ({why}); it is damaged, or contains more than tensors: "
        f"{advice}"
    )
