"""Pretrained models on disk: a folder with config.json, vocabulary.txt and model.safetensors."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import StrPath, parse_json, read_file, whole_file
from mirrorgan_fast.tensor_files import check_numbers, read_header, read_safetensors, read_torch
from mirrorgan_fast.vocabulary import Vocabulary

PRETRAINED = Path(__file__).parent / "pretrained"
"""The folder of the models that come with the package; each has its own folder in it."""

CONFIG, _VOCABULARY, _TENSORS = "config.json", "vocabulary.txt", "model.safetensors"
FORMAT = 1
"""The format of config.json; increased when older versions can no longer read it."""
_MAX_CONFIG_BYTES = 2**20
Network = TypeVar("Network", bound=nn.Module)


def find_pretrained(name_or_path: StrPath) -> Path:
    """Return the folder of a model: a path, or the name of one that comes with the package.

    Raises:
        InputError: there is no such folder; the message lists the models of the package.
    """
    for folder in (Path(name_or_path), PRETRAINED / name_or_path):
        if os.path.exists(folder / CONFIG):
            return folder
    shipped = sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CONFIG}"))
    raise InputError(
        f"{name_or_path}: no model there (a folder with {CONFIG}, {_VOCABULARY}, {_TENSORS}); "
        f"models that come with the package: {', '.join(shipped) or 'none'}"
    )


def load_pretrained(
    name_or_path: StrPath,
    system: str,
    build: Callable[[Path, dict[str, Any]], Network],
    shared: Mapping[str, str] | None = None,
) -> Network:
    """Load a model for inference: one that comes with the package, or a folder.

    Args:
        name_or_path: of the model.
        system: its name in ``models.systems``.
        build: makes the model, ``without_weights``, from its folder and the content of config.json.
        shared: as for ``save_tensors``.

    Raises:
        InputError: there is no such model, its system is another, or one of its files is missing,
            damaged or from a newer version.
    """
    folder = find_pretrained(name_or_path)
    found, sizes = load_config(folder)
    if found != system:
        raise InputError(
            f"{folder}: holds a model of the system {found!r:.60}, expected {system!r}; "
            f"mirrorgan_fast.load loads a model of any system that reads text"
        )
    with without_weights():
        model = build(folder, sizes)
    load_weights(folder, model, shared)
    return model.eval()


def save_description(
    folder: StrPath, system: str, config: Any, vocabulary: Vocabulary | None = None
) -> None:
    """Write config.json and, if there is a vocabulary, vocabulary.txt.

    Args:
        folder: created if it does not exist.
        system: its name in ``models.systems``.
        config: the sizes of the networks; its ``to_dict`` says them.
        vocabulary: of the model; None: it reads no words.

    Raises:
        InputError: the folder cannot be written.
    """
    values = {"system": system, "format": FORMAT, **config.to_dict()}
    if vocabulary is not None:
        with whole_file(Path(folder) / _VOCABULARY) as partial:
            vocabulary.save(partial)
    with whole_file(Path(folder) / CONFIG) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_config(folder: StrPath) -> tuple[str, dict[str, Any]]:
    """Read config.json.

    Returns:
        the system's name, and the sizes of its networks, which are not checked yet.

    Raises:
        InputError: the file is missing or damaged, or a newer version wrote it.
    """
    path = Path(folder) / CONFIG
    content = read_file(path, _MAX_CONFIG_BYTES)
    try:
        values = parse_json(content)
    except ValueError as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({error}); get another copy of the model"
        ) from error
    if not isinstance(values, dict):
        raise InputError(
            f"{path}: expected an object with a model's sizes; get another copy of the model"
        )
    system, format = values.pop("system", "mirrorgan"), values.pop("format", 1)
    if not isinstance(system, str):
        raise InputError(f"{path}: system is {system!r:.80}, expected a name")
    if type(format) is not int or format < 1:
        raise InputError(f"{path}: format is {format!r:.80}, expected a whole number from 1 up")
    if format > FORMAT:
        raise InputError(
            f"{path}: has the format {format:,}, newer than {FORMAT}, the newest that this version "
            f"reads; install a newer version of mirrorgan-fast"
        )
    return system, values


def load_vocabulary(folder: StrPath) -> Vocabulary:
    """Read vocabulary.txt.

    Raises:
        InputError: the file is missing or damaged.
    """
    return Vocabulary.load(Path(folder) / _VOCABULARY)


def save_tensors(
    folder: StrPath,
    state: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    shared: Mapping[str, str] | None = None,
) -> None:
    """Write model.safetensors, with floating-point tensors in ``dtype``.

    Args:
        folder: made if need be.
        state: the tensors by name.
        dtype: of the floating-point tensors in the file.
        shared: parts that may be copies of another part, as prefixes of names: the part, and the
            other. A part whose tensors all equal those of the other is left out.

    Raises:
        InputError: the folder cannot be written, or ``dtype`` is not a floating-point type.
    """
    if not dtype.is_floating_point:
        raise InputError(
            f"{folder}: weights cannot be saved in {dtype}; give a floating-point dtype"
        )
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in state.items()
    }
    for part, other in (shared or {}).items():
        copies = {
            name: other + name.removeprefix(part) for name in tensors if name.startswith(part)
        }
        if all(
            twin in tensors and torch.equal(tensors[name], tensors[twin])
            for name, twin in copies.items()
        ):
            tensors = {name: tensor for name, tensor in tensors.items() if name not in copies}
    with whole_file(Path(folder) / _TENSORS) as partial:
        # safetensors' save_file makes files that only their owner can read
        partial.write_bytes(save(tensors))


def load_tensors(folder: StrPath) -> dict[str, Tensor]:
    """Read model.safetensors.

    Raises:
        InputError: the file is missing or damaged, or has NaN or infinity.
    """
    return read_safetensors(_tensors_path(folder))


def load_weights(
    folder: StrPath, module: torch.nn.Module, shared: Mapping[str, str] | None = None
) -> None:
    """Read model.safetensors into a module, which may have been built ``without_weights``.

    Names and shapes are compared before any tensor is read.

    Args:
        folder: of the model.
        module: where to load the weights.
        shared: as for ``save_tensors``; a part that the file leaves out is a copy of the other.

    Raises:
        InputError: as for ``load_tensors``, or the weights belong to another network.
    """
    path = _tensors_path(folder)
    shapes = read_header(path).shapes
    copies = {
        name: other + name.removeprefix(part)
        for part, other in (shared or {}).items()
        if not any(name.startswith(part) for name in shapes)
        for name in module.state_dict()
        if name.startswith(part)
    }
    copies = {name: twin for name, twin in copies.items() if twin in shapes}
    check_shapes(module, shapes | {name: shapes[twin] for name, twin in copies.items()}, path)
    tensors = read_safetensors(path)
    twins = {name: tensors[twin] for name, twin in copies.items() if twin in tensors}
    load_state(module, tensors | twins, path)


def _tensors_path(folder: StrPath) -> Path:
    path = Path(folder) / _TENSORS
    if not os.path.exists(path) and any(Path(folder).glob("*/checkpoint.pt")):
        raise InputError(
            f"{path}: does not exist yet: the training in this folder has not finished; run the "
            f"same training command again to resume it"
        )
    return path


@contextmanager
def without_weights() -> Iterator[None]:
    """Build modules on the device "meta", so that they have no weights until some are loaded."""
    with torch.device("meta"), _WithoutRandomNumbers():
        yield


class _WithoutRandomNumbers(TorchFunctionMode):
    """Skip weight initialization: on "meta" it has no effect, but imports torch.compile (2 s)."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: tuple[Any, ...] = (),
        named: dict[str, Any] | None = None,
    ) -> Any:
        named = named or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return named["tensor"]
        return function(*arguments, **named)


def check_shapes(
    module: torch.nn.Module, shapes: Mapping[str, Sequence[int]], source: StrPath
) -> None:
    """Raise InputError unless a module has exactly the tensors of these names and shapes.

    ``source`` is named in the message.
    """
    expected = module.state_dict()
    for name in (*expected, *shapes):
        if name not in shapes:
            raise InputError(
                f"{source}: {name} is missing; use the weights that belong to the config"
            )
        if name not in expected:
            raise InputError(
                f"{source}: {name:.80} is unknown; use the weights that belong to the config"
            )
        if tuple(shapes[name]) != tuple(expected[name].shape):
            raise InputError(
                f"{source}: {name} has shape {tuple(shapes[name])!s:.80}, "
                f"but the config needs {tuple(expected[name].shape)}"
            )


def load_state(module: torch.nn.Module, state: Mapping[str, Tensor], source: StrPath) -> None:
    """Copy ``state`` into ``module``, whose dtypes are kept. On an error, nothing is copied.

    The module may have been built ``without_weights``.

    Raises:
        InputError: a name or shape differs, or a tensor has integers where the module has
            floating-point numbers, or the reverse; ``source`` is named in the message.
    """
    check_shapes(module, {name: tensor.shape for name, tensor in state.items()}, source)
    expected = module.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise InputError(f"{source}: {name} is {tensor.dtype}, expected {expected[name].dtype}")
    if not any(tensor.is_meta for tensor in expected.values()):
        module.load_state_dict(state)
        return
    # Copied, because the tensors of a file change when the file does
    copies = {name: tensor.to(expected[name].dtype, copy=True) for name, tensor in state.items()}
    module.load_state_dict(copies, assign=True)


def load_backbone(module: nn.Module, path: str | Path, ignore: tuple[str, ...] = ()) -> None:
    """Copy the weights in a file into ``module``. On an error, nothing is copied.

    Args:
        module: the network; its parameters keep their dtype and device.
        path: a state dict written by ``torch.save`` (.pth, .pt) or a .safetensors file.
        ignore: prefixes of names that the file may have although the module does not.

    Raises:
        InputError: the file cannot be read, or a name or shape differs; the message names the first
            difference.
    """
    path = Path(path)
    found = read_backbone(path)
    expected = module.state_dict()
    weights = {}
    for name, tensor in expected.items():
        if name in found:
            if found[name].shape != tensor.shape:
                shapes = f"{tuple(found[name].shape)}, not {tuple(tensor.shape)}"
                raise _mismatch(module, path, f"{name} has the shape {shapes}")
            weights[name] = found[name]
        # Files from before PyTorch 0.4.1, which torchvision still offers, lack this counter. Only a
        # batch norm without momentum uses it.
        elif not name.endswith(".num_batches_tracked"):
            raise _mismatch(module, path, f"{name} is missing")
    for name in found:
        if name not in expected and not name.startswith(ignore):
            raise _mismatch(module, path, f"{name} is unknown")
    module.load_state_dict(weights)


def read_backbone(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .pth, .pt or .safetensors file.

    Raises:
        InputError: the file cannot be read, is no state dict, or has NaN or infinity.
    """
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise InputError(f"{path}: weights must be .pth, .pt or .safetensors; convert the file")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content: Any = read_torch(path)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise InputError(f"{path}: is not a state dict; save model.state_dict() with torch.save")
    check_numbers(content, path)
    return content


def _mismatch(module: nn.Module, path: Path, difference: str) -> InputError:
    return InputError(
        f"{path}: does not fit {type(module).__name__}: {difference}; "
        "give a file of torchvision's weights for this network"
    )
