"""Pretrained models on disk: a folder with config.json, vocabulary.txt and model.safetensors."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mirrorgan_fast.data.vocabulary import Vocabulary
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import StrPath, parse_json, read_file, whole_file
from mirrorgan_fast.models.config import ModelConfig
from mirrorgan_fast.tensor_files import read_safetensors, read_shapes

PRETRAINED = Path(__file__).parent / "pretrained"
"""Where the models that come with the package are, a folder each."""

CONFIG, _VOCABULARY, _TENSORS = "config.json", "vocabulary.txt", "model.safetensors"
_LONGEST_CONFIG = 2**20  # bytes


def find_pretrained(name_or_path: StrPath) -> Path:
    """Return the folder of a model: a path, or the name of one that comes with the package.

    Raises:
        InputError: there is no such folder; the message lists the names that come with the package.
    """
    for folder in (Path(name_or_path), PRETRAINED / name_or_path):
        if os.path.exists(folder / CONFIG):
            return folder
    shipped = sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CONFIG}"))
    raise InputError(
        f"{name_or_path}: no model there (a folder with {CONFIG}, {_VOCABULARY}, {_TENSORS}); "
        f"models that come with the package: {', '.join(shipped) or 'none'}"
    )


def save_description(folder: StrPath, config: ModelConfig, vocabulary: Vocabulary) -> None:
    """Write config.json and vocabulary.txt.

    Raises:
        InputError: the folder cannot be written.
    """
    vocabulary_path = Path(folder) / _VOCABULARY
    with whole_file(vocabulary_path) as partial:
        vocabulary.save(partial)
    with whole_file(Path(folder) / CONFIG) as partial:
        partial.write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")


def load_description(folder: StrPath) -> tuple[ModelConfig, Vocabulary]:
    """Read what ``save_description`` wrote.

    Raises:
        InputError: a file is missing or damaged, or describes no possible model.
    """
    path = Path(folder) / CONFIG
    content = read_file(path, _LONGEST_CONFIG)
    try:
        values = parse_json(content)
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); get it anew") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected an object with a model's sizes; get it anew")
    try:
        config = ModelConfig.from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return config, Vocabulary.load(Path(folder) / _VOCABULARY)


def save_tensors(
    folder: StrPath,
    state: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write model.safetensors, floating-point tensors in ``dtype``.

    Raises:
        InputError: the folder cannot be written, or ``dtype`` is no floating one.
    """
    if not dtype.is_floating_point:
        raise InputError(f"{folder}: weights cannot be saved in {dtype}, which has no fractions")
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in state.items()
    }
    with whole_file(Path(folder) / _TENSORS) as partial:
        partial.write_bytes(save(tensors))  # its save_file makes files for the owner alone


def load_tensors(folder: StrPath) -> dict[str, Tensor]:
    """Read model.safetensors.

    Raises:
        InputError: the file is missing or damaged, or has NaN or infinity.
    """
    return read_safetensors(_tensors_path(folder))


def load_weights(folder: StrPath, module: torch.nn.Module) -> None:
    """Read model.safetensors into a module, which may have been built ``without_weights``.

    Names and shapes are compared before any tensor is read.

    Raises:
        InputError: as ``load_tensors``, or the weights are of another network.
    """
    path = _tensors_path(folder)
    check_shapes(module, read_shapes(path), path)
    load_state(module, read_safetensors(path), path)


def _tensors_path(folder: StrPath) -> Path:
    path = Path(folder) / _TENSORS
    if not os.path.exists(path) and any(Path(folder).glob("*/checkpoint.pt")):
        raise InputError(
            f"{path}: is not there yet: the training in this folder has not come to its end; go on "
            f"with it"
        )
    return path


@contextmanager
def without_weights() -> Iterator[None]:
    """Build modules on the device "meta", where they have no weights until these are loaded."""
    with torch.device("meta"), _WithoutRandomNumbers():
        yield


class _WithoutRandomNumbers(TorchFunctionMode):
    """Draw no weights: on "meta" there is nothing to draw, but it imports torch.compile (2 s)."""

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
    """Raise InputError if a module has not the tensors of these names and shapes alone.

    ``source`` is named in the message.
    """
    expected = module.state_dict()
    for name in (*expected, *shapes):
        if name not in shapes:
            raise InputError(
                f"{source}: {name} is missing; these are not the weights of its config"
            )
        if name not in expected:
            raise InputError(
                f"{source}: {name:.80} is unknown; these are not the weights of its config"
            )
        if tuple(shapes[name]) != tuple(expected[name].shape):
            raise InputError(
                f"{source}: {name} has shape {tuple(shapes[name])!s:.80}, "
                f"its config says {tuple(expected[name].shape)}"
            )


def load_state(module: torch.nn.Module, state: Mapping[str, Tensor], source: StrPath) -> None:
    """Copy ``state`` into ``module``, whose dtypes are kept: all of it or, on an error, nothing.

    A module may have been built ``without_weights``.

    Raises:
        InputError: a name or shape differs, or a tensor has whole numbers where it must have
            fractions, or the reverse; ``source`` is named in the message.
    """
    check_shapes(module, {name: tensor.shape for name, tensor in state.items()}, source)
    expected = module.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise InputError(
                f"{source}: {name} has {tensor.dtype}, not numbers like {expected[name].dtype}"
            )
    if not any(tensor.is_meta for tensor in expected.values()):
        module.load_state_dict(state)
        return
    # copies: the tensors of a file change with it
    copies = {name: tensor.to(expected[name].dtype, copy=True) for name, tensor in state.items()}
    module.load_state_dict(copies, assign=True)
