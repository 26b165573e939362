"""Damaged training runs, which are resumed."""

import io
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mirrorgan_fast.training.checkpoint import seal
from tests.fuzz import given
from tests.fuzz.cases import Case
from tests.fuzz.damage import ODD_VALUES, damage, rewrite

_CHECKPOINT, _CURVES = "checkpoint.pt", "curves.jsonl"
_STAGES = ("cnn", "stem", "stream", "gan")
_WRITTEN = (_CURVES, "lock", f".{_CHECKPOINT}", f".{_CURVES}", "samples/0000002.png")
_OF_RUN = (f"../cnn/{_CHECKPOINT}", f"../stem/{_CHECKPOINT}", "../config.json", "../vocabulary.txt")
_ODD_TYPES = (torch.float64, torch.int8, torch.bool, torch.complex64, torch.bfloat16)


class _Given(NamedTuple):
    data: Path
    run: Path
    resumed: Path
    """For each stage, a folder with the run after another step of that stage."""


def prepare(folder: Path) -> _Given:
    """Train all stages for one step."""
    there = _Given(given.data_set(folder / "data", 4), folder / "run", folder / "resumed")
    given.made(given.train("all", there.data, 1), folder)
    for stage in _STAGES:
        given.copy(there.run, there.resumed / stage / "run")
        given.made(given.train(stage, there.data, 2), there.resumed / stage)
    return there


def make(randomly: random.Random, there: _Given, folder: Path) -> Case:
    """Write a damaged run."""
    stage = randomly.choice(_STAGES)
    linked = (_CHECKPOINT, "model.safetensors")
    part = given.copy(there.run, folder / "run", linked=linked) / stage
    (folder / "canary").write_text("keep")
    kind = randomly.randrange(10)
    match kind:
        case 0 | 1:
            damage(part / _CHECKPOINT, randomly)
        case 2 | 3 | 4 | 5:
            _change(part / _CHECKPOINT, randomly)
        case 6 | 7:
            damage(part / _CURVES, randomly)
        case 8:
            damage(part / randomly.choice(["lock", *_OF_RUN]), randomly)
        case 9:  # redirects a file that is written
            path = part / randomly.choice(_WRITTEN)
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to(folder / randomly.choice(["canary", "new"]))
    curves = part / _CURVES
    plain = curves.is_file() and not curves.is_symlink() and curves.stat().st_size < 2**30
    refusable = kind not in (6, 7) or (os.path.lexists(curves) and not plain)

    def check(status: int) -> None:
        assert status == 0 or refusable, "curves must not stop a run"
        if status == 0 and not 2 <= kind <= 5:
            same = _model(part) == _model(there.resumed / stage / "run" / stage)
            assert same, "the trained weights differ"

    return Case(given.train(stage, there.data, 2), check)


def _model(part: Path) -> list[tuple[str, bytes]]:
    """Return the weights that a stage trained."""
    content = torch.load(part / _CHECKPOINT, weights_only=True)
    state = content["average" if "average" in content else "model"]
    return [(name, tensor.numpy().tobytes()) for name, tensor in state.items()]


def _change(path: Path, randomly: random.Random) -> None:
    """Save content with a wrong type, shape or value, mostly with a matching checksum."""
    content = torch.load(path, weights_only=True)
    checksum = content.pop("checksum")
    content = _changed(content, randomly)
    if isinstance(content, dict):
        sealed = {**content, "checksum": checksum}
        with suppress(Exception):  # some content has no checksum
            sealed = seal(content) if randomly.random() < 0.8 else sealed
        content = sealed
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=randomly.random() < 0.9)
    rewrite(path, file.getvalue())


def _changed(value: Any, randomly: random.Random) -> Any:
    if isinstance(value, torch.Tensor):
        return _odd_tensor(value, randomly)
    if not isinstance(value, dict | list | tuple) or not value or randomly.random() < 0.03:
        return randomly.choice([*ODD_VALUES, torch.zeros(()), torch.tensor([2**62]), {1: 2}, b"a"])
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    key = randomly.choice([*copy] if isinstance(copy, dict) else range(len(copy)))
    if randomly.random() < 0.1:
        del copy[key]
    elif isinstance(copy, dict) and randomly.random() < 0.1:
        copy[randomly.choice(["a", 5, None, ()])] = copy[key]
    else:
        copy[key] = _changed(copy[key], randomly)
    return tuple(copy) if isinstance(value, tuple) else copy


def _odd_tensor(tensor: torch.Tensor, randomly: random.Random) -> Any:
    match randomly.randrange(8):
        case 0:
            return tensor.to(randomly.choice(_ODD_TYPES))
        case 1:
            return randomly.choice([tensor[None], tensor.flatten()[:-1], tensor.flatten()])
        case 2:
            return torch.full_like(tensor, randomly.choice([0, -1, 2**30]))
        case 3 if tensor.is_floating_point():
            return torch.full_like(tensor, randomly.choice([float("nan"), 1e38, -float("inf")]))
        case 4:  # one number in the file, but more memory than any machine has
            return torch.zeros(1).expand(1 << 50)
        case 5:
            return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        case 6:
            return tensor.to_sparse() if tensor.dim() else tensor.to("meta")
    return randomly.choice([None, [0.5], torch.nn.Parameter(tensor.float())])
