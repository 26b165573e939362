"""Checkpoints that are damaged, forged or of another version are refused and change nothing."""

import copy
import math
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.training.checkpoint import (
    digest,
    fingerprint,
    load_checkpoint,
    load_weights_of,
    restore,
    seal,
)

ABOUT = {"step": 4, "settings": {"betas": (0.5, 0.9)}, "not_logged": ({"loss": 1.5}, {"loss": 2})}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def trained(steps: int = 2) -> tuple[nn.Module, torch.optim.Adam]:
    torch.manual_seed(steps)
    module = network()
    adam = torch.optim.Adam(module.parameters(), 0.1)
    for _ in range(steps):
        adam.zero_grad()
        module(torch.randn(8, 3)).square().sum().backward()
        adam.step()
    return module, adam


def write(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "checkpoint.pt")
    return folder / "checkpoint.pt"


def refusal(folder: Path) -> str:
    with pytest.raises(InputError, match=rf"^{folder}/checkpoint\.pt: ") as told:
        load_checkpoint(folder)
    return str(told.value)


# --- the file -------------------------------------------------------------------------------------


def test_what_was_sealed_is_read_back(tmp_path: Path, assert_same: Any) -> None:
    module, adam = trained()
    content = {**ABOUT, "model": dict(module.state_dict()), "adam": adam.state_dict()}
    write(tmp_path, seal(content))
    assert_same(load_checkpoint(tmp_path), content)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(step=5),
        lambda content: content["settings"].update(betas=(0.5, 0.99)),
        lambda content: content["model"]["0.weight"][1].add_(1e-6),
        lambda content: content["model"].update({"0.bias": content["model"]["0.bias"].double()}),
        lambda content: content.pop("model"),
        lambda content: content.update(more=1),
        lambda content: content.update(checksum=5),
    ],
)
def test_whatever_is_changed_is_noticed(change: Callable[[Any], Any], tmp_path: Path) -> None:
    content = seal({**copy.deepcopy(ABOUT), "model": network().state_dict()})
    change(content)
    write(tmp_path, content)
    assert "damaged" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", -1),
        ("step", 10**100),
        ("step", 2.5),
        ("step", True),
        ("step", "4"),
        ("step", None),
        ("settings", [1]),
        ("settings", {1: 2}),
        ("not_logged", None),
        ("not_logged", ({}, {}, {})),
        ("not_logged", ([], {})),
        ("not_logged", ({}, [])),
        ("not_logged", ({"loss": "x"}, {"loss": 1})),
        ("not_logged", ({"loss": math.nan}, {"loss": 1})),
        ("not_logged", ({5: 1.0}, {5: 1})),
        ("not_logged", ({"loss": 1.0}, {})),
        ("not_logged", ({"loss": 1.0}, {"loss": 0})),
        ("not_logged", ({"loss": 1.0}, {"loss": 10**400})),
        ("not_logged", ({"loss": 1.0}, {"loss": 1.5})),
    ],
)
def test_a_right_checksum_makes_no_right_checkpoint(name: str, value: Any, tmp_path: Path) -> None:
    write(tmp_path, seal({**ABOUT, name: value}))
    assert "damaged" in refusal(tmp_path)


@pytest.mark.parametrize("content", [[1], 5, None, "x", {}, {"model": {}}, torch.ones(3)])
def test_what_is_no_checkpoint_is_refused(content: Any, tmp_path: Path) -> None:
    write(tmp_path, content)
    assert "not a checkpoint of this program" in refusal(tmp_path)


def test_an_older_version_is_named(tmp_path: Path) -> None:
    write(tmp_path, ABOUT)
    assert "older version" in refusal(tmp_path)


def test_one_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    assert "train that part first" in refusal(tmp_path)
    os.mkfifo(tmp_path / "checkpoint.pt")
    assert "not a regular file" in refusal(tmp_path)
    (tmp_path / "checkpoint.pt").unlink()
    (tmp_path / "checkpoint.pt").mkdir()
    assert "directory" in refusal(tmp_path)


def nested(depth: int, width: int) -> list[Any]:
    """A list of ``width`` references to one list of such, ``depth`` times: small in a file."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value] * width
    return value


def test_content_without_end_is_not_walked_to_its_end(tmp_path: Path) -> None:
    write(tmp_path, {**ABOUT, "more": nested(40, 40), "checksum": "x"})
    assert "damaged" in refusal(tmp_path)


def test_deep_content_is_refused(tmp_path: Path) -> None:
    def text(word: str) -> bytes:
        return b"X" + struct.pack("<I", len(word)) + word.encode()

    deep = b"]" * 100_000 + b"a" * 99_999
    with zipfile.ZipFile(tmp_path / "checkpoint.pt", "w") as archive:
        items = text("settings") + b"}" + b"s" + text("checksum") + text("x") + b"s"
        archive.writestr("a/data.pkl", b"\x80\x02}" + items + text("more") + deep + b"s.")
        archive.writestr("a/version", "3\n")
    assert "damaged" in refusal(tmp_path)


def test_a_tensor_that_claims_more_than_the_file_has_is_not_made(tmp_path: Path) -> None:
    write(tmp_path, {**ABOUT, "model": torch.zeros(1).expand(2**40), "checksum": "x"})
    assert "damaged" in refusal(tmp_path)


def test_a_digest_tells_apart(tmp_path: Path) -> None:
    different = [
        {"a": 1},
        {"a": 1.0},
        {"a": "1"},
        {"a": True},
        {"b": 1},
        {"a": [1]},
        {"a": torch.ones(1)},
        {"a": torch.ones(1, 1)},
        {"a": torch.ones(1).double()},
        {"a": None, "b": 1},
        {"b": 1, "a": None},
    ]
    assert len({digest(content) for content in different}) == len(different)
    state = network().state_dict()
    backwards = dict(reversed(list(state.items())))
    assert fingerprint(state) == fingerprint(backwards)


# --- into parts -----------------------------------------------------------------------------------


def test_parts_go_on_as_they_were(assert_same: Any) -> None:
    module, adam = trained()
    other, other_adam = network(), None
    other_adam = torch.optim.Adam(other.parameters(), 0.1)
    restore(other, module.state_dict(), "here")
    restore(other_adam, adam.state_dict(), "here")
    assert_same(other.state_dict(), module.state_dict())
    assert_same(other_adam.state_dict(), adam.state_dict())


def test_tensors_that_share_their_memory_are_taken_apart() -> None:
    module, adam = trained()
    state = adam.state_dict()
    moment = state["state"][0]["exp_avg"]
    state["state"][0]["exp_avg"] = torch.zeros(()).expand(moment.shape)
    restore(adam, state, "here")
    module(torch.randn(8, 3)).square().sum().backward()
    adam.step()


def test_an_optimizer_keeps_its_own_rates() -> None:
    module, adam = trained()
    state = adam.state_dict()
    state["param_groups"][0]["lr"] = "quick"
    other = torch.optim.Adam(module.parameters(), 0.25)
    restore(other, state, "here")
    assert other.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize(
    "state",
    [None, 5, [], {}, {"0.weight": 1}, {1: torch.ones(3)}, {"0.weight": torch.ones(4, 3)}],
    ids=repr,
)
def test_a_module_refuses_other_states(state: Any) -> None:
    with pytest.raises(InputError, match=r"^here"):
        restore(network(), state, "here")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_module_refuses_what_is_not_finite(value: float) -> None:
    state = network().state_dict()
    state["2.weight"][1, 1] = value
    with pytest.raises(InputError, match=r"2\.weight has NaN or infinity"):
        restore(network(), state, "here")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.clear(),
        lambda state: state.update(state=[1]),
        lambda state: state["state"].update({99: state["state"][0]}),
        lambda state: state["state"].update({-1: state["state"][0]}),
        lambda state: state["state"].update(x=state["state"][0]),
        lambda state: state["state"].update({0: 5}),
        lambda state: state["state"][0].pop("exp_avg"),
        lambda state: state["state"][0].update(more=torch.ones(1)),
        lambda state: state["state"][0].update(exp_avg=torch.ones(1)),
        lambda state: state["state"][0].update(step=5),
        lambda state: state["state"][0].update(step=torch.tensor(-1.0)),
        lambda state: state["state"][0]["exp_avg"].fill_(math.nan),
        lambda state: state["state"][0]["exp_avg_sq"].fill_(-1.0),
    ],
)
def test_an_optimizer_refuses_other_states(change: Callable[[Any], Any], assert_same: Any) -> None:
    _, adam = trained()
    state = copy.deepcopy(adam.state_dict())
    change(state)
    target = trained(3)[1]
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(InputError, match=r"^here"):
        restore(target, state, "here")
    assert_same(target.state_dict(), before)


def test_weights_of_another_stage_are_taken_by_prefix(tmp_path: Path) -> None:
    whole = nn.ModuleDict({"cnn": network(), "heads": nn.Linear(2, 2)})
    write(tmp_path, seal({**ABOUT, "model": dict(whole.state_dict())}))
    cnn = network()
    load_weights_of(tmp_path, cnn, prefix="cnn.")
    for name, tensor in cnn.state_dict().items():
        assert torch.equal(tensor, whole["cnn"].state_dict()[name])
    with pytest.raises(InputError, match="its model: "):
        load_weights_of(tmp_path, nn.Linear(3, 3), prefix="cnn.")
    write(tmp_path, seal(dict(ABOUT)))
    with pytest.raises(InputError, match="its model is missing"):
        load_weights_of(tmp_path, cnn, prefix="cnn.")
