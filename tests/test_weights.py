"""Models on disk: what is written can be read, and damage is reported in one line."""

import dataclasses
import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mirrorgan_fast import weights
from mirrorgan_fast.errors import InputError
from mirrorgan_fast.models.config import CascadeConfig, MirrorGANConfig
from mirrorgan_fast.models.mirrorgan import MirrorGAN
from mirrorgan_fast.recipes import load_description
from mirrorgan_fast.vocabulary import Vocabulary
from mirrorgan_fast.weights import (
    find_pretrained,
    load_state,
    load_tensors,
    load_vocabulary,
    load_weights,
    save_description,
    save_tensors,
)
from tests.small import small_model

CONFIG = MirrorGANConfig(image_size=64, stages=2, sentence_attention="authors", text_dropout=0.25)
VOCABULARY = Vocabulary(["<end>", "a", "vögel", "鸟", "bird"])


# --- finding --------------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with the pretrained models "birds" and "flowers"."""
    folder = tmp_path / "package" / "pretrained"
    for name in ("flowers", "birds"):
        save_description(folder / name, "mirrorgan", CONFIG, VOCABULARY)
    (folder / "unfinished").mkdir()
    monkeypatch.setattr(weights, "PRETRAINED", folder)
    return folder


def test_a_model_is_found_by_name_or_path(shipped: Path, tmp_path: Path) -> None:
    assert find_pretrained("birds") == shipped / "birds"
    save_description(tmp_path / "mine", "mirrorgan", CONFIG, VOCABULARY)
    assert find_pretrained(tmp_path / "mine") == tmp_path / "mine"
    assert find_pretrained(str(tmp_path / "mine")) == tmp_path / "mine"


@pytest.mark.parametrize("name", ["bird", "unfinished", "package/birds", "a\0b"])
def test_the_error_for_an_unknown_model_lists_the_models(shipped: Path, name: str) -> None:
    with pytest.raises(InputError, match="birds, flowers") as caught:
        find_pretrained(name)
    assert "unfinished," not in str(caught.value)


def test_a_package_without_models_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PRETRAINED", tmp_path / "none")
    with pytest.raises(InputError, match="none"):
        find_pretrained("birds")


def read_description(folder: Path) -> tuple[CascadeConfig, Vocabulary]:
    return load_description(folder).config, load_vocabulary(folder)


# --- config and vocabulary ------------------------------------------------------------------------


def test_a_description_is_read_back(tmp_path: Path) -> None:
    save_description(tmp_path / "new", "mirrorgan", CONFIG, VOCABULARY)
    config, vocabulary = read_description(tmp_path / "new")
    assert config == CONFIG
    assert vocabulary.words == VOCABULARY.words
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert written == {"system": "mirrorgan", "format": 1, **dataclasses.asdict(CONFIG)}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "config.json",
        "vocabulary.txt",
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"image_size": 64',
        b"[1, 2]",
        b"null",
        b'"birds"',
        b"\xff\xfe\x00",
        b'{"image_size": "64"}',
        b'{"image_size": 65}',
        b'{"image_size": NaN}',
        b'{"text_dropout": 7}',
        b'{"GF_DIM": 32}',
        b'{"system": "vqgan"}',
        b'{"system": 7}',
        b'{"format": 2}',
        b'{"format": "1"}',
        b'{"format": true}',
        b'{"system": "attngan", "stream_encoder": "small"}',
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_a_damaged_config_is_reported(tmp_path: Path, content: bytes) -> None:
    save_description(tmp_path, "mirrorgan", CONFIG, VOCABULARY)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json") as caught:
        read_description(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "vocabulary.txt"])
def test_a_missing_file_is_reported(tmp_path: Path, name: str) -> None:
    save_description(tmp_path, "mirrorgan", CONFIG, VOCABULARY)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=name):
        read_description(tmp_path)


def test_a_damaged_vocabulary_is_reported(tmp_path: Path) -> None:
    save_description(tmp_path, "mirrorgan", CONFIG, VOCABULARY)
    (tmp_path / "vocabulary.txt").write_text("a\nbird\n")
    with pytest.raises(InputError, match=r"vocabulary\.txt, line 1"):
        read_description(tmp_path)


def test_an_unwritable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        save_description(tmp_path / "file", "mirrorgan", CONFIG, VOCABULARY)
    with pytest.raises(InputError, match="cannot be written"):
        save_tensors(tmp_path / "file", {"a": torch.ones(1)})


# --- tensors --------------------------------------------------------------------------------------


def tensors() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "matrix": torch.randn(5, 7),
        "transposed": torch.randn(5, 7).T,
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "part": torch.randn(10, 3)[2:5],
        "scalar": torch.tensor(-1.5),
        "empty": torch.empty(0, 4),
        "count": torch.tensor(2**40 + 1),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_read_back(tmp_path: Path, dtype: torch.dtype) -> None:
    save_tensors(tmp_path, tensors(), dtype)
    found = load_tensors(tmp_path)
    assert found.keys() == tensors().keys()
    for name, tensor in tensors().items():
        expected = tensor.to(dtype) if tensor.is_floating_point() else tensor
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected), name


def test_saving_does_not_change_what_is_saved(tmp_path: Path) -> None:
    given = tensors()
    save_tensors(tmp_path, given, torch.float16)
    for name, tensor in tensors().items():
        assert given[name].dtype == tensor.dtype
        assert torch.equal(given[name], tensor)


def test_all_files_of_a_model_have_the_same_permissions(tmp_path: Path) -> None:
    save_description(tmp_path, "mirrorgan", CONFIG, VOCABULARY)
    save_tensors(tmp_path, tensors())
    modes = {path.name: stat.filemode(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 3
    assert len(set(modes.values())) == 1, modes


@pytest.mark.parametrize(
    "content",
    [None, b"", b"no weights", b"\xff" * 64, "half", "header"],
    ids=str,
)
def test_damaged_weights_are_reported(tmp_path: Path, content: bytes | str | None) -> None:
    save_tensors(tmp_path, tensors())
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    if content is None:
        path.unlink()
    elif content == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "header":
        path.write_bytes(whole[:8] + b"!" + whole[9:])
    else:
        path.write_bytes(content)
    reason = "No such file" if content is None else "damaged"
    with pytest.raises(InputError, match=rf"model\.safetensors.*{reason}") as caught:
        load_tensors(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_in_the_place_of_the_weights_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_tensors(tmp_path)


# --- into a module --------------------------------------------------------------------------------


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_a_state_is_copied_into_a_module() -> None:
    source, target = network(), network()
    source(torch.randn(8, 3))  # statistics
    load_state(target, source.state_dict(), Path("here"))
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)
        assert target.state_dict()[name].data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_keeps_its_dtypes(dtype: torch.dtype) -> None:
    source, target = network().to(dtype), network()
    load_state(target, source.state_dict(), Path("here"))
    assert all(p.dtype == torch.float32 for p in target.parameters())
    assert torch.equal(target[0].weight, source[0].weight.float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("1.running_mean"), "1.running_mean is missing"),
        (lambda state: state.update(extra=torch.ones(1)), "extra is unknown"),
        (
            lambda state: state.update({"0.weight": torch.ones(4, 2)}),
            r"0.weight has shape \(4, 2\).*\(4, 3\)",
        ),
        (lambda state: state.clear(), "0.weight is missing"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change: Any, message: str) -> None:
    target, state = network(), network().state_dict()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    change(state)
    with pytest.raises(InputError, match=f"some/place.*{message}"):
        load_state(target, state, Path("some/place"))
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_loaded_model_does_not_change_with_its_file(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    model = MirrorGAN.from_pretrained(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "model.safetensors"
    with path.open("r+b") as file:  # in place: a new file of the same name would not be mapped
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * (path.stat().st_size // 2))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_unfinished_training_is_not_reported_as_damage(tmp_path: Path) -> None:
    save_description(tmp_path, "mirrorgan", CONFIG, VOCABULARY)
    (tmp_path / "gan").mkdir()
    (tmp_path / "gan" / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(InputError, match="training in this folder has not finished"):
        load_tensors(tmp_path)


def test_weights_are_not_saved_as_integers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"torch\.int8; give a floating-point dtype"):
        save_tensors(tmp_path, {"weight": torch.ones(2)}, torch.int8)
    assert not any(tmp_path.iterdir())


def test_a_part_that_is_a_copy_is_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4), "c": nn.Linear(4, 4)})
    shared = {"b.": "a.", "c.": "a."}
    for equal in (False, True):
        if equal:
            network["b"].load_state_dict(network["a"].state_dict())
        save_tensors(tmp_path, network.state_dict(), shared=shared)
        found = load_tensors(tmp_path)
        assert ("b.weight" in found, "c.weight" in found) == (not equal, True)
        loaded = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4), "c": nn.Linear(4, 4)})
        load_weights(tmp_path, loaded, shared)
        for name, tensor in network.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    with pytest.raises(InputError, match=r"b\.weight is missing"):
        load_weights(tmp_path, loaded)
    del found["a.bias"]
    save_file(found, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"a\.bias is missing"):
        load_weights(tmp_path, loaded, shared)
    found |= {"b.weight": torch.zeros(4, 3)}  # a part of the part
    save_file(found, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="is missing"):
        load_weights(tmp_path, loaded, shared)


def test_the_trained_cnn_of_a_model_is_stored_once(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path / "two")
    model.stream.cnn.load_state_dict(model.image_encoder.cnn.state_dict())
    model.save_pretrained(tmp_path / "one")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("one", "two")]
    assert sizes[1] - sizes[0] > 7_000_000  # 1.9 M parameters in float32
    loaded = MirrorGAN.from_pretrained(tmp_path / "one")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    cnn = loaded.image_encoder.cnn.regions[0][0].weight
    with torch.no_grad():
        cnn += 1
    assert not torch.equal(loaded.stream.cnn.regions[0][0].weight, cnn)
