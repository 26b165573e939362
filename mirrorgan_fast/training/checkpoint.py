"""Checkpoints. They are read without trust: somebody else may have written them."""

import hashlib
import os
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.tensor_files import check_numbers, read_torch
from mirrorgan_fast.weights import load_state

CHECKPOINT = "checkpoint.pt"
ADVICE = "restore a copy of it, or move it away to start that part again"
_MOST_ENTRIES = 1_000_000  # of all containers; the largest recipe's GAN has 12,000
_MOST_STEPS = 10**12  # what TensorBoard and a float can still count
_ADAM = {"step", "exp_avg", "exp_avg_sq"}


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a checkpoint together with its checksum."""
    return {**content, "checksum": digest(content)}


def has_checkpoint(folder: Path) -> bool:
    """Return whether a run has a checkpoint."""
    return os.path.lexists(folder / CHECKPOINT)


def find_checkpoint(folder: Path) -> Path:
    """Return the path of a run's checkpoint.

    Raises:
        InputError: there is none.
    """
    path = folder / CHECKPOINT
    if not has_checkpoint(folder):
        raise InputError(f"{path}: there is no such checkpoint; train that part first")
    return path


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read the checkpoint of a run: ``step``, ``settings``, ``not_logged`` and a state a part.

    Raises:
        InputError: there is none, or it cannot be read, is damaged, or was written by another
            program or version.
    """
    path = find_checkpoint(folder)
    content = read_torch(path, "a checkpoint", ADVICE)
    if not isinstance(content, dict) or "settings" not in content:
        raise InputError(f"{path}: is not a checkpoint of this program; {ADVICE}")
    checksum = content.pop("checksum", None)
    if checksum is None:
        raise InputError(
            f"{path}: was written by an older version, without a checksum; end that run with the "
            f"version that began it, or start again in another folder"
        )
    try:
        damaged = digest(content, most_bytes=path.stat().st_size) != checksum
    except (ValueError, RecursionError):
        damaged = True
    if damaged or not _is_checkpoint(content):
        raise InputError(f"{path}: is damaged, its checksum is another; {ADVICE}")
    return content


def load_weights_of(folder: Path, module: nn.Module, prefix: str = "", part: str = "model") -> None:
    """Load the weights of a stage, a part of its checkpoint, into a module.

    Args:
        folder: of the stage's run.
        module: where to load them.
        prefix: of the names of these weights in the checkpoint; other weights are ignored.
        part: of the checkpoint.

    Raises:
        InputError: as ``load_checkpoint``, or the weights do not fit the module.
    """
    state = load_checkpoint(folder).get(part)
    if isinstance(state, dict):
        state = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.items()
            if isinstance(name, str) and name.startswith(prefix)
        }
    restore(module, state, f"{folder / CHECKPOINT}: its {part}")


def restore(part: nn.Module | torch.optim.Adam, state: Any, source: str) -> None:
    """Load a state into a module or an Adam optimizer: all of it or, on an error, nothing.

    Of an optimizer, only the moments and step counts are loaded. It keeps its own learning rates
    and betas.

    Args:
        part: where to load it.
        state: from a checkpoint; it may be anything.
        source: of the state, for errors.

    Raises:
        InputError: the state does not fit the part.
    """
    if not isinstance(state, dict):
        raise _misfit(source, "is missing")
    if isinstance(part, nn.Module):
        if not all(isinstance(t, Tensor) and isinstance(name, str) for name, t in state.items()):
            raise _misfit(source, "has something else than tensors")
        check_numbers(state, source)
        load_state(part, state, source)
        return
    parameters = [parameter for group in part.param_groups for parameter in group["params"]]
    gathered = state.get("state")
    if not isinstance(gathered, dict):
        raise _misfit(source, "is not the state of an optimizer")
    for number, tensors in gathered.items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise _misfit(source, f"has a parameter {number!r:.40} of {len(parameters)}")
        if not isinstance(tensors, dict) or set(tensors) != _ADAM:
            raise _misfit(source, f"has not Adam's state of parameter {number}")
        for name, tensor in tensors.items():
            shape = () if name == "step" else parameters[number].shape
            if not isinstance(tensor, Tensor) or tensor.shape != shape:
                raise _misfit(source, f"has another shape of {name} of parameter {number}")
        check_numbers(tensors, source)
        if tensors["step"] < 0 or (tensors["exp_avg_sq"] < 0).any():
            raise _misfit(source, f"has a negative square of parameter {number}")
    # Copies: tensors of a file may share memory, and Adam writes into them.
    own = {
        number: {name: tensor.clone() for name, tensor in tensors.items()}
        for number, tensors in gathered.items()
    }
    part.load_state_dict({"state": own, "param_groups": part.state_dict()["param_groups"]})


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return a short checksum of weights, which does not depend on their order."""
    return digest({name: state[name] for name in sorted(state)})[:16]


def digest(content: Any, most_bytes: int | None = None) -> str:
    """Return a checksum of containers of numbers, strings and tensors.

    Args:
        content: dicts, lists, tuples, tensors, and values whose ``repr`` tells them apart.
        most_bytes: the largest size of all tensors together.

    Raises:
        ValueError: there are more entries or bytes than in any checkpoint. A file of a few bytes
            can claim them by referring to the same entries again and again.
    """
    found = hashlib.sha256()
    entries, room = 0, most_bytes

    def add(value: Any) -> None:
        nonlocal entries, room
        entries += 1
        if entries > _MOST_ENTRIES:
            raise ValueError(f"more than {_MOST_ENTRIES:,} entries")
        if isinstance(value, Tensor):
            if room is not None:
                room -= value.numel() * value.element_size()
                if room < 0:
                    raise ValueError(f"tensors of more than {most_bytes:,} bytes")
            found.update(f"{value.dtype} {tuple(value.shape)} ".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, dict | list | tuple):
            found.update(f"{'dict' if isinstance(value, dict) else 'list'} {len(value)} ".encode())
            for entry in value.items() if isinstance(value, dict) else value:
                add(entry)
        else:
            found.update(f"{value!r} ".encode())

    add(content)
    return found.hexdigest()


def _is_checkpoint(content: Mapping[str, Any]) -> bool:
    """Return whether everything that a checkpoint must have is there and of the right type."""
    step, settings, not_logged = (content.get(name) for name in ("step", "settings", "not_logged"))
    if type(step) is not int or not 0 <= step <= _MOST_STEPS or not isinstance(settings, dict):
        return False
    if not isinstance(not_logged, tuple) or len(not_logged) != 2:
        return False
    sums, counts = not_logged
    return (
        isinstance(sums, dict)
        and isinstance(counts, dict)
        and sums.keys() == counts.keys()
        and all(type(total) is float and isfinite(total) for total in sums.values())
        and all(type(count) is int and 0 < count <= _MOST_STEPS for count in counts.values())
        and all(isinstance(name, str) for name in (*settings, *sums))
    )


def _misfit(source: str, fault: str) -> InputError:
    return InputError(f"{source} {fault}; {ADVICE}")
