"""Pretrained models on disk: a folder with config.json, vocabulary.txt and model.safetensors."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mirrorgan_fast.data.vocabulary import Vocabulary
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.files import whole_file
from mirrorgan_fast.models.config import ModelConfig

PRETRAINED = Path(__file__).parent / "pretrained"
"""Where the models that come with the package are, a folder each."""

CONFIG, _VOCABULARY, _TENSORS = "config.json", "vocabulary.txt", "model.safetensors"


def find_pretrained(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the folder of a model: a path, or the name of one that comes with the package.

    Raises:
        InputError: there is no such folder; the message lists the names that come with the package.
    """
    for folder in (Path(name_or_path), PRETRAINED / name_or_path):
        if (folder / CONFIG).is_file():
            return folder
    shipped = sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CONFIG}"))
    raise InputError(
        f"{name_or_path}: no model there (a folder with {CONFIG}, {_VOCABULARY}, {_TENSORS}); "
        f"models that come with the package: {', '.join(shipped) or 'none'}"
    )


def save_description(
    folder: str | os.PathLike[str], config: ModelConfig, vocabulary: Vocabulary
) -> None:
    """Write config.json and vocabulary.txt.

    Raises:
        InputError: the folder cannot be written.
    """
    vocabulary_path = Path(folder) / _VOCABULARY
    with whole_file(vocabulary_path) as partial:
        vocabulary.save(partial)
    with whole_file(Path(folder) / CONFIG) as partial:
        partial.write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")


def load_description(folder: str | os.PathLike[str]) -> tuple[ModelConfig, Vocabulary]:
    """Read what ``save_description`` wrote.

    Raises:
        InputError: a file is missing or damaged, or describes no possible model.
    """
    path = Path(folder) / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); get it anew") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected an object with a model's sizes; get it anew")
    try:
        config = ModelConfig.from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return config, Vocabulary.load(Path(folder) / _VOCABULARY)


def save_tensors(
    folder: str | os.PathLike[str],
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


def load_tensors(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read model.safetensors.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = Path(folder) / _TENSORS
    if not path.exists() and any(Path(folder).glob("*/checkpoint.pt")):
        raise InputError(
            f"{path}: is not there yet: the training in this folder has not come to its end; go on "
            f"with it"
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: cannot be read as weights ({error}); it is missing or damaged: get it anew"
        ) from error


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


def load_state(module: torch.nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Copy ``state`` into ``module``, whose dtypes are kept: all of it or, on an error, nothing.

    A module may have been built ``without_weights``.

    Raises:
        InputError: a name or shape differs; ``source`` is named in the message.
    """
    expected = module.state_dict()
    for name in (*expected, *state):
        if name not in state:
            raise InputError(
                f"{source}: {name} is missing; these are not the weights of its config"
            )
        if name not in expected:
            raise InputError(
                f"{source}: {name} is unknown; these are not the weights of its config"
            )
        if state[name].shape != expected[name].shape:
            raise InputError(
                f"{source}: {name} has shape {tuple(state[name].shape)}, "
                f"its config says {tuple(expected[name].shape)}"
            )
    if not any(tensor.is_meta for tensor in expected.values()):
        module.load_state_dict(state)
        return
    # copies: the tensors of a file change with it
    copies = {name: tensor.to(expected[name].dtype, copy=True) for name, tensor in state.items()}
    module.load_state_dict(copies, assign=True)
